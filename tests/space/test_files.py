"""What a Space reads of the folder: its metadata, its requirements, and what the code needs of them."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import metadata_load

SPACE = Path(__file__).resolve().parents[2] / "space"
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}


def test_the_metadata_is_what_a_space_wants() -> None:
    metadata = metadata_load(SPACE / "README.md")
    assert metadata is not None
    assert metadata["sdk"] == "gradio" and re.fullmatch(r"\d+\.\d+\.\d+", metadata["sdk_version"])
    assert (SPACE / metadata["app_file"]).is_file()
    assert {metadata["colorFrom"], metadata["colorTo"]} <= COLOURS
    assert len(metadata["short_description"]) <= 60
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+", name) for name in metadata["models"])


def test_the_page_imports_only_what_a_space_installs() -> None:
    lines = (SPACE / "requirements.txt").read_text().splitlines()
    required = {re.split(r"[<>=~\[]", line)[0] for line in lines if line and not line.startswith("#")}
    own = {path.stem for path in SPACE.glob("*.py")}
    allowed = required | own | {"gradio"} | set(sys.stdlib_module_names)
    for path in SPACE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= allowed, f"{path.name}: {names}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "name a model: --model"), (["--model", "MODEL"], "has no index/catalogue.parquet")],
)
def test_the_command_says_what_is_missing(tmp_path: Path, arguments: list, message: str) -> None:
    given = [str(tmp_path) if word == "MODEL" else word for word in arguments]
    done = subprocess.run(
        [sys.executable, str(SPACE / "app.py"), *given], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr
