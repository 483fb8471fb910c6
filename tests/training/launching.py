"""Starts two processes as a user would, for tests."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("many_processes.py")


def launch(config: str | Path, shared: dict[str, Any], processes: int = 2, timeout: int = 400) -> str:
    """Run jobs of `many_processes.py` under `accelerate launch --config_file configs/accelerate/<config>.yaml`, or
    under a configuration file of another path.

    Returns:
        What the processes wrote to stderr.
    """
    environment = {
        **os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "LLMREC_JOBS": json.dumps(shared),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])),
        "PYTHONWARNINGS": "ignore",
    }  # fmt: skip
    if not isinstance(config, Path):
        config = REPOSITORY / "configs" / "accelerate" / f"{config}.yaml"
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config),
        "--num_processes", str(processes), "--main_process_port", "0", str(WORKER),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment, cwd=REPOSITORY)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-12000:]
    return done.stderr
