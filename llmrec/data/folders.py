"""An output folder that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmrec.data.errors import DataError


def check_output(path: Path, *, overwrite: bool, marker: str) -> None:
    """Refuse an output folder that holds something.

    Args:
        path: the folder to be written.
        overwrite: whether a folder with `marker` in it may be replaced.
        marker: name of the file by which our own folders are known; nothing else is ever replaced.

    Raises:
        DataError: the folder holds something that must not be replaced.
    """
    if path.is_file():
        raise DataError("the output is a file, not a folder", file=path, advice="Choose another output")
    if not path.is_dir() or not any(path.iterdir()):
        return
    if not (path / marker).is_file():
        raise DataError(
            f"the output folder is not empty, and holds no {marker}, so it is not ours to replace",
            file=path,
            advice="Choose another output",
        )
    if not overwrite:
        raise DataError(
            "the output folder already holds prepared data",
            file=path,
            advice="Choose another output, or overwrite",
        )


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside `path` that takes its place when the block ends well, and vanishes
    otherwise.

    A folder that is already there is replaced: call `check_output` first.
    """
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    try:
        content = temporary / "new"
        content.mkdir()
        yield content
        replaced = temporary / "old"
        if path.exists():
            os.replace(path, replaced)
        try:
            os.replace(content, path)
        except OSError:
            if replaced.exists():
                os.replace(replaced, path)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
