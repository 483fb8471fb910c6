"""Running `hub_client.py`."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

SCRIPT = Path(__file__).with_name("hub_client.py")
ROOT = Path(__file__).parents[2]


def run_client(kind: str, jobs: list[dict], environment: dict[str, str], timeout: float = 900) -> list[dict]:
    """The answers of a "stranger" or "publisher" process to a list of jobs."""
    with tempfile.TemporaryDirectory(prefix="hub-client-") as elsewhere:
        answers = Path(elsewhere) / "answers.json"
        options, folder = (["-I"], elsewhere) if kind == "stranger" else ([], str(ROOT))
        done = subprocess.run(
            [sys.executable, *options, str(SCRIPT), kind, str(answers)],
            input=json.dumps(jobs, default=str), capture_output=True, text=True, env=environment, cwd=folder,
            timeout=timeout,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(answers.read_text())


def succeeded(answers: list[dict]) -> list[dict]:
    """The same answers, none of which is an error."""
    errors = [answer["error"] for answer in answers if "error" in answer]
    assert not errors, errors
    return answers
