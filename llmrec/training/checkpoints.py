"""Checkpoints that survive a kill at any moment.

A checkpoint is complete once its folder holds `complete.json`, written last and by a rename, and every file that it
lists has the listed size. So neither a kill while a checkpoint is written nor one while an old checkpoint is removed
leaves anything that could be mistaken for a place to resume from.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from pathlib import Path

logger = logging.getLogger(__name__)

MARKER = "complete.json"
TRAINABLE = "trainable.safetensors"
_NAME = re.compile(r"checkpoint-(\d+)")


class CheckpointError(ValueError):
    """A checkpoint that is incomplete, or belongs to another configuration."""


def step_of(checkpoint: Path) -> int:
    """Optimizer steps behind a folder named `checkpoint-<steps>`; -1 for another name."""
    match = _NAME.fullmatch(checkpoint.name)
    return int(match.group(1)) if match else -1


def checkpoint_folders(folder: Path) -> list[Path]:
    """All checkpoint folders, complete or not, oldest first."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if path.is_dir() and step_of(path) >= 0), key=step_of)


def mark_complete(checkpoint: Path, world_size: int) -> None:
    """Declare a checkpoint complete: the last thing that is written to it."""
    files = {path.name: path.stat().st_size for path in sorted(checkpoint.iterdir()) if path.is_file()}
    write_json(checkpoint / MARKER, {"step": step_of(checkpoint), "world_size": world_size, "files": files})


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


def check_resumable(checkpoint: Path, world_size: int) -> None:
    """Refuse a checkpoint that cannot give an undisturbed run's losses.

    Raises:
        CheckpointError: it is incomplete, or was written by another number of processes.
    """
    if not is_complete(checkpoint):
        raise CheckpointError(
            f"{checkpoint} is not a complete checkpoint of this project (no {MARKER}, or files that it lists are "
            "missing): resume from another one, or say resume: true for the last complete one"
        )
    written_by = json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))["world_size"]
    if written_by != world_size:
        raise CheckpointError(
            f"{checkpoint} was written by {written_by} processes, this run has {world_size}: each has its own share "
            "of the data and its own random state; start as many, or train anew with overwrite"
        )


def write_json(file: Path, content: object) -> None:
    """Write JSON beside `file`, then rename: readers see the old file or the new one, never half of it."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(draft, file)
