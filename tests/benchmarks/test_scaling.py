"""The benchmark of growth: its shops have the sizes asked for, and the command measures them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.scaling_parts.shop import make_shop
from llmrec.data.prepared import load_prepared
from llmrec.training.examples import PrefixExamples, split_histories


def test_a_shop_has_the_sizes_asked_for(tmp_path: Path) -> None:
    data = load_prepared(make_shop(tmp_path, users=50, events=6, items=300))
    histories = split_histories(data.train)
    assert len(histories) == 50
    # Two events of each user are held out, and the first has no history.
    assert (np.diff(histories.offsets) == 4).all()
    assert len(PrefixExamples(histories, 10)) == 50 * 3
    assert len(set(data.catalogue.titles)) == len(data.catalogue.titles) == 300


@pytest.mark.slow
def test_the_command_from_end_to_end(repository: Path, tmp_path: Path) -> None:
    output = tmp_path / "scaling.json"
    command = [sys.executable, str(repository / "benchmarks" / "scaling.py"), "--tiny", "--steps", "1"]
    command += ["--only", "history", "ranks", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env={**os.environ}, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(output.read_text(encoding="utf-8"))
    tokens = {(row["size"], row["variant"]): row["tokens_per_example"] for row in result["dimensions"]["history"]}
    # Read one by one, a longer history costs more tokens; read once for all prefixes it does not.
    assert tokens[6, "one by one"] > 1.3 * tokens[3, "one by one"]
    assert tokens[6, "prefixes shared"] < 1.2 * tokens[3, "prefixes shared"]
    assert [row["ranks"] for row in result["dimensions"]["ranks"]] == [1, 2]
    assert all(row["seconds_per_step"] > 0 for rows in result["dimensions"].values() for row in rows)
