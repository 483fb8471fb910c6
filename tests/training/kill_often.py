"""Trains one run undisturbed, and another one that is killed (SIGKILL) at moments drawn from a seed and resumed.

Run as a script, with a JSON description in $LLMREC_KILLS. Starting Python and importing torch takes longer than the
training of the tiny model, so this process imports everything once and forks the trainings, each of which calls the
`main` of train.py. It computes nothing itself, so the children inherit modules and nothing else.
"""

import json
import mmap
import os
import random
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmrec.training import run as run_module
from llmrec.training.checkpoints import checkpoint_folders, is_complete, step_of
from llmrec.training.trainer import LLMRecTrainer

PHASES = ("start", "train", "evaluate", "save", "final")


class Progress:
    """What a child does at the moment, in memory that it shares with its parent: phase, how many times it has been
    entered, and forward passes made in this session."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 12)

    def write(self, phase: str, times: int, steps: int) -> None:
        self._memory[:] = struct.pack("iii", PHASES.index(phase), times, steps)

    def read(self) -> tuple[str, int, int]:
        phase, times, steps = struct.unpack("iii", self._memory[:])
        return PHASES[phase], times, steps


def report_phases(progress: Progress) -> None:
    """Let the trainer tell what it is doing. Numbers are untouched."""
    counts = dict.fromkeys(PHASES, 0)
    steps = 0

    def telling(phase: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal steps
            steps += phase == "train"
            counts[phase] += 1
            progress.write(phase, counts[phase], steps)
            try:
                return method(*args, **kwargs)
            finally:
                progress.write("train", counts["train"], steps)

        return wrapped

    LLMRecTrainer.training_step = telling("train", LLMRecTrainer.training_step)  # type: ignore[method-assign]
    LLMRecTrainer.evaluate = telling("evaluate", LLMRecTrainer.evaluate)  # type: ignore[method-assign]
    LLMRecTrainer._save_checkpoint = telling("save", LLMRecTrainer._save_checkpoint)  # type: ignore[method-assign]
    run_module.evaluate_and_save = telling("final", run_module.evaluate_and_save)


def start(arguments: list[str], log: Path, progress: Progress) -> int:
    """Fork a training; returns its process id."""
    progress.write("start", 1, 0)
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        with open(log, "ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        report_phases(progress)
        status = run_module.main(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def finish(child: int, log: Path) -> None:
    _, status = os.waitpid(child, 0)
    if status:
        raise SystemExit(f"a training failed with {status}:\n{log.read_text()[-6000:]}")


def kill(child: int, progress: Progress, phase: str, times: int, steps: int, delay: float) -> dict[str, Any] | None:
    """Kill a training a little after it has entered `phase` for the `times`-th time, at pass `steps` or later; when the
    final evaluation begins at the latest. None if it has ended before."""
    began, entered = time.monotonic(), None
    while True:
        if os.waitpid(child, os.WNOHANG)[0]:
            return None
        now, count, done = progress.read()
        due = (now == phase and count >= times and done >= steps) or now == "final"
        if due and entered is None:
            entered = time.monotonic()
        if entered is not None and time.monotonic() - entered >= delay:
            break
        if time.monotonic() - began > 200:
            raise SystemExit(f"waited too long for {phase}")
        time.sleep(0.0005)
    seen = progress.read()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return {"wanted": phase, "phase": seen[0], "steps": seen[2]}


def draw(rng: random.Random, kills: int) -> list[tuple[str, int, int, float]]:
    """(phase, times, passes, delay) of every kill; the last two fall into the final evaluation."""
    drawn = []
    for _ in range(kills - 2):
        phase = rng.choices(("start", "train", "evaluate", "save"), (2, 4, 3, 6))[0]
        # Up to two checkpoints are written before, so that the run advances.
        times = {"start": 1, "train": 1, "evaluate": rng.randint(1, 2), "save": rng.randint(1, 3)}[phase]
        passes = rng.randint(1, 20) if phase == "train" else 0
        span = {"start": 0.8, "train": 0.03, "evaluate": 0.04, "save": 0.04}[phase]
        drawn.append((phase, times, passes, rng.uniform(0, span)))
    return [*drawn, ("final", 1, 0, rng.uniform(0, 0.05)), ("final", 1, 0, rng.uniform(0, 0.3))]


def main() -> None:
    job = json.loads(os.environ["LLMREC_KILLS"])
    out, progress = Path(job["out"]), Progress()
    arguments = {name: [*job["arguments"], "--run_dir", str(out / name)] for name in ("undisturbed", "killed")}
    finish(start(arguments["undisturbed"], out / "undisturbed.log", progress), out / "undisturbed.log")
    kills = []
    for wanted in draw(random.Random(job["seed"]), job["kills"]):
        found = kill(start([*arguments["killed"], "--resume"], out / "killed.log", progress), progress, *wanted)
        if found is None:
            raise SystemExit(f"ended before kill {len(kills) + 1}:\n{(out / 'killed.log').read_text()[-6000:]}")
        folders = checkpoint_folders(out / "killed" / "checkpoints")
        complete = [step_of(path) for path in folders if is_complete(path)]
        kills.append({**found, "complete": complete, "incomplete": len(folders) - len(complete)})
    finish(start([*arguments["killed"], "--resume"], out / "killed.log", progress), out / "killed.log")
    (out / "kills.json").write_text(json.dumps(kills))


if __name__ == "__main__":
    sys.exit(main())
