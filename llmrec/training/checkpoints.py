"""Checkpoints that survive a kill at any moment.

A checkpoint is complete once its folder holds `complete.json`, written last and by a rename, and every file that it
lists, subfolders included, has the listed size. So neither a kill while a checkpoint is written nor one while an old
checkpoint is removed leaves anything that could be mistaken for a place to resume from.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

MARKER = "complete.json"
TRAINABLE = "trainable.safetensors"
SHARDS = "trainable"
_NAME = re.compile(r"checkpoint-(\d+)")


class CheckpointError(ValueError):
    """A checkpoint that is incomplete, or belongs to another configuration."""


@dataclass(frozen=True)
class Batches:
    """How the examples of an optimizer step are shared out; the order of examples does not depend on it."""

    processes: int
    per_device: int
    """Examples of one forward pass of one process."""
    accumulation: int
    """Forward passes of an optimizer step."""
    contrast: str = "own"
    """What an example is contrasted with: its "own" negatives, those of its "process" (in_batch), or of "all"."""
    weights: str = "whole"
    """How the processes hold the weights: "whole", or in shards ("fsdp2", "deepspeed")."""

    @property
    def examples(self) -> int:
        """Examples of an optimizer step, over all processes."""
        return self.processes * self.per_device * self.accumulation

    @property
    def pool(self) -> int | None:
        """Examples that are contrasted with each other; None where that does not matter to the loss."""
        return {"own": None, "process": self.per_device, "all": self.per_device * self.processes}[self.contrast]

    def describe(self) -> dict[str, Any]:
        """What a run and its checkpoints keep of it."""
        return {"world_size": self.processes, "examples": self.examples, "pool": self.pool, "weights": self.weights}


def step_of(checkpoint: Path) -> int:
    """Optimizer steps behind a folder named `checkpoint-<steps>`; -1 for another name."""
    match = _NAME.fullmatch(checkpoint.name)
    return int(match.group(1)) if match else -1


def checkpoint_folders(folder: Path) -> list[Path]:
    """All checkpoint folders, complete or not, oldest first."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if path.is_dir() and step_of(path) >= 0), key=step_of)


def mark_complete(checkpoint: Path, batches: Batches) -> None:
    """Declare a checkpoint complete: the last thing that is written to it."""
    files = {
        path.relative_to(checkpoint).as_posix(): path.stat().st_size
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and path.name != MARKER
    }
    write_json(checkpoint / MARKER, {"step": step_of(checkpoint), **batches.describe(), "files": files})


def is_complete(checkpoint: Path) -> bool:
    """Whether everything that was written to a checkpoint is still there."""
    try:
        marker = json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))
        return all((checkpoint / name).stat().st_size == size for name, size in marker["files"].items())
    except FileNotFoundError:
        return False


def last_complete(folder: Path) -> Path | None:
    """The newest complete checkpoint, or None."""
    return next((path for path in reversed(checkpoint_folders(folder)) if is_complete(path)), None)


def remove_incomplete(folder: Path) -> list[Path]:
    """Remove checkpoints that a kill left behind half written or half removed; returns them."""
    broken = [path for path in checkpoint_folders(folder) if not is_complete(path)]
    for path in broken:
        logger.warning("%s is incomplete (the run was stopped while it was written or removed): removing it", path)
        shutil.rmtree(path)
    return broken


def rotate(folder: Path, limit: int | None, best: Path | None) -> None:
    """Keep the newest `limit` checkpoints; the best one is kept too, and counts, and so always is the newest.

    Args:
        folder: where the checkpoints are.
        limit: how many to keep; None for all.
        best: a checkpoint to keep whatever its age.
    """
    if limit is None:
        return
    checkpoints = checkpoint_folders(folder)
    protected = {path for path in checkpoints if path == checkpoints[-1] or (best and path.name == best.name)}
    removable = [path for path in checkpoints if path not in protected]
    for path in removable[: max(0, len(checkpoints) - max(limit, len(protected)))]:
        # Without its marker a folder is incomplete from the first moment on, whatever rmtree gets to.
        (path / MARKER).unlink(missing_ok=True)
        shutil.rmtree(path)


def check_resumable(checkpoint: Path, batches: Batches) -> int:
    """Refuse a checkpoint that cannot be gone on from.

    Returns:
        The number of processes that wrote it.

    Raises:
        CheckpointError: it is incomplete, or its steps were made of other batches.
    """
    if not is_complete(checkpoint):
        raise CheckpointError(
            f"{checkpoint} is not a complete checkpoint of this project (no {MARKER}, or files that it lists are "
            "missing): resume from another one, or say resume: true for the last complete one"
        )
    marker = json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))
    check_batches(str(checkpoint), marker, batches)
    weights = marker.get("weights", "whole")
    if weights != batches.weights:
        launched = {"whole": "ddp.yaml", "fsdp2": "fsdp2.yaml", "deepspeed": "deepspeed_zero3.yaml"}
        raise CheckpointError(
            f"{checkpoint} holds {weights} weights and this run has {batches.weights} ones: start it with "
            f"configs/accelerate/{launched[weights]}, or train anew with overwrite"
        )
    if weights == "deepspeed" and marker["world_size"] != batches.processes:
        raise CheckpointError(
            f"{checkpoint} was written by {marker['world_size']} processes under DeepSpeed, which cannot share it out "
            f"to {batches.processes}: start as many, or train anew with overwrite"
        )
    return int(marker["world_size"])


def check_batches(where: str, then: dict[str, Any], now: Batches) -> None:
    """Refuse to go on with steps of other batches than before; other numbers of processes are welcome.

    Args:
        where: what was written then, for the error.
        then: what `Batches.describe` gave then; of old runs the number of processes alone.
        now: of this run.

    Raises:
        CheckpointError: naming settings that would fit this number of processes, if there are any.
    """
    if "examples" not in then:  # written before the batches were kept
        if then.get("world_size", now.processes) != now.processes:
            raise CheckpointError(
                f"{where} was written by {then['world_size']} processes and does not say with which batches, this run "
                f"has {now.processes}: start as many, or train anew with overwrite"
            )
        return
    if then["examples"] == now.examples and then["pool"] == now.pool:
        return
    said = f"steps of {then['examples']} examples" + (f", contrasted {then['pool']} at a time" if then["pool"] else "")
    found = f"{now.examples}" + (f", contrasted {now.pool} at a time" if now.pool else "")
    fits = fitting_batches(then["examples"], then["pool"], now)
    advice = (
        f"with {now.processes} {'process' if now.processes == 1 else 'processes'} say per_device_train_batch_size: "
        f"{fits[0]} and gradient_accumulation_steps: {fits[1]}"
        if fits
        else f"no batch size fits {now.processes} processes; start another number"
    )
    raise CheckpointError(
        f"{where} has {said} (on {then['world_size']} processes), this run has {found}: {advice}, or train anew with "
        "overwrite"
    )


def fitting_batches(examples: int, pool: int | None, now: Batches) -> tuple[int, int] | None:
    """(per_device_train_batch_size, gradient_accumulation_steps) that give the same steps; None if nothing does."""
    if examples % now.processes:
        return None
    share = examples // now.processes
    if now.contrast == "own":
        sizes = [share // now.accumulation, now.per_device, share]
    elif now.contrast == "process":
        sizes = [pool or 0]
    else:
        sizes = [pool // now.processes] if pool and pool % now.processes == 0 else []
    return next(((size, share // size) for size in sizes if size and share % size == 0), None)


def write_json(file: Path, content: object) -> None:
    """Write JSON beside `file`, then rename: readers see the old file or the new one, never half of it."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(draft, file)
