"""A run that is killed twenty times and resumed ends with the very weights and results of an undisturbed one."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from safetensors.torch import load_file

REPOSITORY = Path(__file__).resolve().parents[2]
STEPS = 60

RECIPE = {
    "precision": "fp32", "use_cpu": True, "disable_tqdm": True, "tuning": "lora", "projection_dim": 16,
    "learning_rate": 3e-3, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "max_steps": STEPS,
    "eval_steps": 3, "save_steps": 3, "logging_steps": 2, "eval_users": 20, "test_users": 20, "save_total_limit": 2,
    "bootstrap_resamples": 20,
}  # fmt: skip


def _environment() -> dict[str, str]:
    return {
        **os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])),
    }  # fmt: skip


@pytest.mark.slow
def test_twenty_kills_change_nothing(tiny_backbone: Path, tiny_prepared: Path, tmp_path: Path) -> None:
    flags = {**RECIPE, "backbone": tiny_backbone, "data": tiny_prepared}
    arguments = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    # The first kill falls into the imports of a real start; nothing is there yet, and nothing is left behind.
    process = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "train.py"), *arguments, "--run_dir", str(tmp_path / "killed")],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=_environment(), cwd=REPOSITORY,
    )  # fmt: skip
    time.sleep(1.5)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()

    job = {"out": str(tmp_path), "arguments": arguments, "seed": 5, "kills": 19}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("kill_often.py"))], capture_output=True, text=True, timeout=500,
        env={**_environment(), "LLMREC_KILLS": json.dumps(job)}, cwd=REPOSITORY,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    kills = json.loads((tmp_path / "kills.json").read_text())
    assert len(kills) == 19
    # They did fall everywhere, some of them with a checkpoint half written or half removed; and the run went on.
    assert set(Counter(kill["phase"] for kill in kills)) >= {"start", "train", "evaluate", "save", "final"}, kills
    assert sum(kill["incomplete"] for kill in kills) >= 1, kills
    newest = [max(kill["complete"], default=0) for kill in kills]
    assert newest == sorted(newest) and 0 < len({*newest} - {0, STEPS}), newest

    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    one, other = (load_file(folder / "model" / "model.safetensors") for folder in (undisturbed, killed))
    assert one.keys() == other.keys()
    assert all((one[name] == other[name]).all() for name in one)
    assert (undisturbed / "ranks.parquet").read_bytes() == (killed / "ranks.parquet").read_bytes()
    assert _timeless(undisturbed) == _timeless(killed)
    assert _losses(undisturbed) == _losses(killed)


def _timeless(folder: Path) -> dict:
    def strip(value: object) -> object:
        if isinstance(value, dict):
            dropped = ("seconds", "created", "command", "per_second", "run_dir")
            return {name: strip(one) for name, one in value.items() if not any(part in name for part in dropped)}
        return [strip(one) for one in value] if isinstance(value, list) else value

    return strip(json.loads((folder / "results.json").read_text()))  # type: ignore[return-value]


def _losses(folder: Path) -> list[tuple[int, float]]:
    state = json.loads((folder / "checkpoints" / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    return [(entry["step"], entry["loss"]) for entry in state["log_history"] if "loss" in entry]
