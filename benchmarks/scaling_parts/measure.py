"""One measured run: a small model on one shop, some steps, in a process of its own or in several."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from training_sides.gate import start_server

SCRIPT = Path(__file__).resolve().parents[1] / "scaling.py"
WARM_UP_STEPS = 2


class Recorder:
    """Stands in for a `Gate`: nobody waits, every step is written down."""

    def __init__(self, steps: int) -> None:
        self.left = steps
        self.steps: list[dict[str, float]] = []
        self._last = (0.0, 0.0)

    def begin(self, **facts: Any) -> bool:
        """The trainer is ready."""
        self._last = (time.perf_counter(), time.process_time())
        return True

    def step(self, **counts: float) -> bool:
        """A step has been taken; False when it was the last."""
        now = (time.perf_counter(), time.process_time())
        self.steps.append({"seconds": now[0] - self._last[0], "cpu_seconds": now[1] - self._last[1], **counts})
        self._last = now
        self.left -= 1
        return self.left > 0


def work(job: dict[str, Any]) -> None:
    """Run one job and write its figures to `job["result"]`; every process of a distributed run calls it."""
    import torch
    from training_sides.machine import peak_memory_gib, reset_peak_memory
    from training_sides.ours import count, training_arguments
    from training_sides.turns import prepare

    from llmrec.data.prepared import load_prepared
    from llmrec.data.title_tokens import TitleTokens
    from llmrec.training.model import build_model
    from llmrec.training.model_arguments import ModelArguments
    from llmrec.training.run import build_trainer

    torch.set_num_threads(job["threads"])
    reset_peak_memory("cpu")
    model_arguments = ModelArguments(backbone=job["backbone"], tuning="full", **job["model_settings"])
    recorder = Recorder(job["steps"] + WARM_UP_STEPS)
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(folder, job["batch_size"], 0, "cpu", precision="fp32", **job["settings"])
        start = time.perf_counter()
        data = load_prepared(job["data"])
        model, processor = build_model(model_arguments)
        tokens = TitleTokens.from_titles(processor, data.catalogue.titles)
        arguments.resolve_defaults("full", model.config.contrastive_loss)
        trainer = build_trainer(model, processor, tokens, data, arguments)
        setup = time.perf_counter() - start
        loader = _loader_seconds(trainer)
        prepare(trainer, recorder, count, {})
        trainer.train()
    if arguments.process_index:
        return
    measured = recorder.steps[WARM_UP_STEPS:]
    examples = sum(step["examples"] for step in measured)
    seconds = median(step["seconds"] for step in measured)
    result = {
        "seconds_per_step": round(seconds, 4),
        "cpu_seconds_per_step": round(median(step["cpu_seconds"] for step in measured), 4),
        "first_step_seconds": round(recorder.steps[0]["seconds"], 3),
        "examples_per_second": round(examples / len(measured) * arguments.world_size / seconds, 1),
        "tokens_per_example": round(sum(step["tokens"] for step in measured) / examples, 1),
        "loader_seconds_per_batch": round(loader, 5),
        "setup_seconds": round(setup, 2),
        "peak_memory_gib": round(peak_memory_gib("cpu"), 3),
        "examples_of_an_epoch": len(trainer.train_dataset),
        "packing": trainer_packing(trainer),
    }
    Path(job["result"]).write_text(json.dumps(result), encoding="utf-8")


def trainer_packing(trainer: Any) -> dict[str, Any]:
    """How the trainer packs its texts."""
    return {name: getattr(trainer.data_collator, name, None) for name in ("packing", "share_prefixes")}


def _loader_seconds(trainer: Any, batches: int = 5) -> float:
    """Median time in which one batch is made, model aside."""
    order, size = iter(trainer._get_train_sampler()), trainer.args.train_batch_size
    times = []
    for _ in range(batches):
        start = time.perf_counter()
        trainer.data_collator([trainer.train_dataset[next(order)] for _ in range(size)])
        times.append(time.perf_counter() - start)
    return median(times)


def measure(job: dict[str, Any], work_folder: Path, ranks: int = 1) -> dict[str, Any]:
    """Run a job in processes of its own.

    Args:
        job: what `work` reads, but for `result`.
        work_folder: for the description and the result.
        ranks: processes.

    Raises:
        SystemExit: if it fails, with the end of what it printed.
    """
    description, result = work_folder / "job.json", work_folder / "result.json"
    result.unlink(missing_ok=True)
    if ranks == 1:
        start_server()
        process = multiprocessing.get_context("forkserver").Process(target=work, args=({**job, "result": str(result)},))
        process.start()
        process.join()
        if process.exitcode or not result.exists():
            raise SystemExit(f"a run of the scaling benchmark failed, see above (exit status {process.exitcode})")
        return json.loads(result.read_text(encoding="utf-8"))
    description.write_text(json.dumps({**job, "result": str(result)}), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks), str(SCRIPT),
         "--worker", str(description)],
        env={**os.environ, "ACCELERATE_USE_CPU": "true"}, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode or not result.exists():
        raise SystemExit(f"a run of the scaling benchmark failed:\n{done.stderr[-3000:]}")
    return json.loads(result.read_text(encoding="utf-8"))
