"""The main job in processes of its own: the run folder, kills, two processes, and what must not be overwritten."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
import yaml
from safetensors.torch import load_file

from llmrec.training.checkpoints import checkpoint_folders, is_complete, last_complete, step_of
from llmrec.training.run import main

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def recipe(tiny_backbone: Path, tiny_raw: Path, tiny_prepared: Path, tmp_path: Path) -> Path:
    """A YAML file for a run of some seconds."""
    file = tmp_path / "tiny.yaml"
    content = {
        "run_dir": str(tmp_path / "run"), "data": str(tiny_prepared), "backbone": str(tiny_backbone),
        "tuning": "lora", "lora_r": 4, "num_train_epochs": 3, "per_device_train_batch_size": 16,
        "learning_rate": 5e-3, "precision": "fp32", "use_cpu": True, "logging_steps": 4, "eval_steps": 4,
        "save_steps": 4, "eval_users": 30, "bootstrap_resamples": 50, "disable_tqdm": True,
    }  # fmt: skip
    file.write_text(yaml.safe_dump(content))
    return file


def start(*arguments: str, processes: int = 1, **environment: str) -> subprocess.Popen:
    """`train.py` with arguments, by torchrun where there are several processes."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", _free_port()]
    return subprocess.Popen(
        [*launcher, str(REPOSITORY / "train.py"), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment},
    )  # fmt: skip


def finish(process: subprocess.Popen) -> str:
    """Wait for success; returns what was printed."""
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output[-4000:]
    return output


def losses_of(run: Path) -> list[tuple[int, float]]:
    state = json.loads((checkpoint_folders(run / "checkpoints")[-1] / "trainer_state.json").read_text())
    return [(entry["step"], entry["loss"]) for entry in state["log_history"] if "loss" in entry]


def rows_of(run: Path) -> list[dict]:
    return json.loads((run / "results.json").read_text())["rows"]


def test_the_run_folder(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(recipe), "--num_train_epochs", "1", "--test_protocols", "domain"]) == 0
    run = tmp_path / "run"
    names = {path.name for path in run.iterdir()}
    assert names == {"model", "results.json", "ranks.parquet", "report.md", "plots", "config.yaml", "checkpoints"}
    results = json.loads((run / "results.json").read_text())
    assert {row["system"] for row in results["rows"]} == {"popularity", "untuned", "tuned"}
    facts = results["training"]
    assert facts["examples_used"] == facts["examples_available"] == facts["examples_seen"]
    assert facts["steps"] == -(-facts["examples_used"] // 16)
    assert facts["precision"] == "fp32" and facts["trained_parameters"] > 0 and facts["seconds"] > 0
    ranks = pl.read_parquet(run / "ranks.parquet").filter(pl.col("system") == "tuned")
    recall = next(
        row["value"] for row in results["rows"]
        if (row["system"], row["metric"], row["group"]) == ("tuned", "recall@10", "users")
    )  # fmt: skip
    assert recall == pytest.approx((ranks["rank"] < 10).mean(), abs=1e-12)
    printed = capsys.readouterr().out
    assert "popularity" in printed and "untuned" in printed and "Kitchen" in printed
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["num_train_epochs"] == 1 and config["learning_rate"] == 5e-3
    assert config["negatives_per_example"] == 0 and config["precision"] == "fp32"

    # What must not be overwritten, and what may.
    with pytest.raises(ValueError, match="already holds a finished run: go on with --resume, start again with --over"):
        main([str(recipe), "--num_train_epochs", "1", "--test_protocols", "domain"])
    before = (run / "results.json").stat().st_mtime_ns
    assert main([str(recipe), "--num_train_epochs", "1", "--test_protocols", "domain", "--resume"]) == 0
    assert (run / "results.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"another configuration:\n  lora_r: 4 there, 2 now\n"):
        main([str(recipe), "--num_train_epochs", "1", "--test_protocols", "domain", "--lora_r", "2", "--resume"])
    # The resolved configuration is itself a configuration, and the same one.
    assert main([str(run / "config.yaml"), "--resume"]) == 0
    (run / "note.txt").write_text("mine")
    assert main([str(run / "config.yaml"), "--overwrite", "--lora_r", "2"]) == 0
    assert yaml.safe_load((run / "config.yaml").read_text())["lora_r"] == 2
    assert (run / "note.txt").read_text() == "mine"


@pytest.mark.slow
def test_kills_at_random_moments(recipe: Path, tmp_path: Path) -> None:
    options = (str(recipe), "--num_train_epochs", "8", "--eval_steps", "5", "--save_steps", "5")
    finish(start(*options, "--run_dir", str(tmp_path / "undisturbed")))
    expected = losses_of(tmp_path / "undisturbed")
    assert len(expected) > 20
    run, moments = tmp_path / "killed", random.Random(5)
    # By real signals to the real command; test_kills.py strikes twenty times, in every phase.
    for least, pause in ((40, 0.3), (expected[-1][0], 0.05)):
        process = start(*options, "--run_dir", str(run), "--resume")
        _wait_for_checkpoint(process, run, least)
        time.sleep(moments.uniform(0, pause))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        # The last kill strikes after training and before the results, so that none comes too late.
        assert process.returncode == -signal.SIGKILL and not (run / "results.json").exists()
        if least == 40:
            # What a kill in the middle of writing leaves: a folder without its marker, later than all others.
            broken = run / "checkpoints" / "checkpoint-99999"
            broken.mkdir()
            (broken / "trainable.safetensors").write_bytes(b"half")
    output = finish(start(*options, "--run_dir", str(run), "--resume"))
    assert "resuming from" in output
    assert losses_of(run) == expected
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (run, tmp_path / "undisturbed"))
    assert ours.keys() == theirs.keys() and all((ours[name] == theirs[name]).all() for name in ours)
    assert rows_of(run) == rows_of(tmp_path / "undisturbed")


@pytest.mark.slow
def test_two_processes_write_and_resume_one_run(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "two"
    options = (
        str(recipe), "--run_dir", str(run), "--num_train_epochs", "2", "--per_device_train_batch_size", "8",
        "--save_total_limit", "99",
    )  # fmt: skip
    output = finish(start(*options, processes=2, ACCELERATE_USE_CPU="true"))
    assert output.count("written to") == 1
    facts = json.loads((run / "results.json").read_text())["training"]
    assert facts["processes"] == 2 and facts["batch_size"] == 16
    checkpoint = last_complete(run / "checkpoints")
    assert checkpoint is not None and is_complete(checkpoint)
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in checkpoint.iterdir()}
    ranks = pl.read_parquet(run / "ranks.parquet")
    assert ranks.group_by("system", "protocol").len()["len"].unique().to_list() == [60]

    # As if it had been killed in the middle of its second epoch.
    expected, rows = losses_of(run), rows_of(run)
    for later in checkpoint_folders(run / "checkpoints"):
        if step_of(later) > 16:
            shutil.rmtree(later)
    (run / "results.json").unlink()
    one = start(*options, "--resume")
    assert "with 1 process say per_device_train_batch_size: 16" in one.communicate()[0] and one.returncode == 2
    assert "resuming from" in finish(start(*options, "--resume", processes=2, ACCELERATE_USE_CPU="true"))
    assert losses_of(run) == expected and rows_of(run) == rows


def _wait_for_checkpoint(process: subprocess.Popen, run: Path, least: int) -> None:
    """Until there is a complete checkpoint of at least so many steps, or the process has ended."""
    deadline = time.time() + 120
    while time.time() < deadline and process.poll() is None:
        newest = last_complete(run / "checkpoints")
        if newest is not None and step_of(newest) >= least:
            return
        time.sleep(0.01)


def _free_port() -> str:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])
