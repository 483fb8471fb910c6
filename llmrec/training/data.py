"""The prepared data of a run: made if it does not exist, and what was asked for if it does."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

from llmrec.data.errors import DataError
from llmrec.data.options import prepare_from_options
from llmrec.data.prepared import CARD_FILE
from llmrec.training.data_arguments import DataArguments

logger = logging.getLogger(__name__)


def ensure_prepared(arguments: DataArguments) -> None:
    """Prepare the data where the folder does not exist and raw files are named; check a folder that exists.

    Raises:
        DataError: bad data, neither a folder nor raw files, or a folder that was prepared with other options.
    """
    folder = Path(str(arguments.data))
    if not arguments.has_raw_files:
        return
    if not folder.exists():
        logger.info("preparing %s", folder)
        prepare_from_options(arguments.prepare_options(), folder, echo=logger.info)
    elif (folder / CARD_FILE).is_file():
        _check_options(arguments, folder)


def _check_options(arguments: DataArguments, folder: Path) -> None:
    """A folder of an earlier recipe must not pass for what the arguments ask for."""
    stored = json.loads((folder / CARD_FILE).read_text(encoding="utf-8"))["options"]
    wanted = dataclasses.asdict(arguments.prepare_options())
    # Quantiles and cuts say something for one of the splits only; elsewhere the card has null.
    names = [name for name in stored if name not in ("quantiles", "cuts") or stored["split"] == "global-time"]
    for name in names:
        if stored[name] != wanted[name]:
            raise DataError(
                f"was prepared with {name}={stored[name]!r}, and {name}={wanted[name]!r} is asked for now",
                file=folder,
                advice="Name another folder as data, or delete this one to have it prepared again",
            )
