"""benchmarks/loader.py runs, and its figures are those of the batches."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_loader_benchmark(repository: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "loader.json"
    sizes = ["--users", "300", "--items", "600", "--batch_size", "16", "--batches", "3", "--turns", "1"]
    process = subprocess.run(
        [sys.executable, str(repository / "benchmarks" / "loader.py"), *sizes, "--output", str(output)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-3000:]
    result = json.loads(output.read_text())
    rows = {row["variant"]: row for row in result["variants"]}
    assert len(rows) == 7 and all(name in process.stdout for name in rows)
    padded, packed = rows["padded, 10 own negatives (paper)"], rows["segments, 10 own negatives"]
    assert padded["negatives_per_example"] == packed["negatives_per_example"] == 10
    assert padded["titles_per_example"] == packed["titles_per_example"]
    assert padded["fill_rate"] < 0.7 and packed["fill_rate"] == 1.0
    shared = rows["segments, prefixes shared, 256 shared negatives"]
    assert shared["tokens_per_example"] == rows["the same in passes of 4,096 tokens"]["tokens_per_example"]
    assert result["title_tokens"]["titles"] == 600 and result["versions"]["torch"]
    assert result["command"][:2] == ["python", "benchmarks/loader.py"]
