"""What a model card tells, read from a model folder and the run that made it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from llmrec.backbones import MINILM, MINILM_PACKAGE
from llmrec.evaluation.results import RANKS_FILE, RESULTS_FILE, ResultsError, load_ranks, load_results
from llmrec.evaluation.table import unique

CONFIG_FILE = "config.json"
RECIPE_FILE = "config.yaml"
INDEX_FOLDER = "index"

_ABSOLUTE = re.compile(r"(?P<flag>-{0,2}[\w.]+=)?(?P<path>(?:/|~|[A-Za-z]:[\\/]|\\\\).+)", re.DOTALL)


class CardError(ValueError):
    """A model card cannot be written, or is not one that the Hub would take."""


@dataclass(frozen=True)
class ModelFacts:
    """What the folder of a model says.

    Attributes:
        config: contents of config.json.
        form: "adapter" (adapters over a backbone elsewhere) or "full" (weights in the folder).
        weight_bytes: of all safetensors files.
        sentence_transformers: whether sentence-transformers can load the folder.
        indexed_items: items of the catalogue in `index/`; 0 without one.
    """

    config: dict[str, Any]
    form: str
    weight_bytes: int = 0
    sentence_transformers: bool = False
    indexed_items: int = 0

    @property
    def adapters(self) -> list[str]:
        """Names of the adapters."""
        return list(self.config.get("adapters") or {})

    @property
    def default_adapter(self) -> str | None:
        """The adapter that is active after loading."""
        return self.config.get("default_adapter") or next(iter(self.adapters), None)

    @property
    def backbone(self) -> str | None:
        """Hub id of the backbone; None where it came from a folder, whose name is nobody's business."""
        return hub_name(self.config.get("backbone_name_or_path"))


@dataclass(frozen=True)
class RunFacts:
    """What a run folder says.

    Attributes:
        folder: of the run.
        results: contents of results.json.
        ranks: the table of ranks.parquet; None where it is not there.
        recipe: contents of config.yaml; empty where it is not there (`llmrec evaluate` writes none).
    """

    folder: Path
    results: dict[str, Any]
    ranks: pl.DataFrame | None = None
    recipe: dict[str, Any] = field(default_factory=dict)

    @property
    def training(self) -> dict[str, Any]:
        """Facts of the training; empty where only an evaluation was run."""
        return self.results.get("training") or {}

    @property
    def protocols(self) -> list[str]:
        """Names of the protocols, in the order of the results."""
        return unique(row["protocol"] for row in self.results["rows"])

    @property
    def model_system(self) -> str:
        """Name of the system that is the model: the last one, as in the run's report."""
        return unique(row["system"] for row in self.results["rows"])[-1]

    @property
    def baselines(self) -> list[str]:
        """Names of the other systems."""
        return unique(row["system"] for row in self.results["rows"])[:-1]

    def row(self, system: str, protocol: str, metric: str, group: tuple[str, str]) -> dict[str, Any] | None:
        """One row of the results; `group` is (group_by, group)."""
        wanted = (system, protocol, metric, *group)
        for row in self.results["rows"]:
            if (row["system"], row["protocol"], row["metric"], row["group_by"], row["group"]) == wanted:
                return dict(row)
        return None

    @property
    def groups(self) -> list[tuple[str, str, int]]:
        """(group_by, group, users) of every group, in the order of the results."""
        return list(dict.fromkeys((row["group_by"], row["group"], row["users"]) for row in self.results["rows"]))


def read_model(folder: str | os.PathLike[str]) -> ModelFacts:
    """Read a model folder.

    Raises:
        CardError: it holds no config.json, or one of another kind of model.
    """
    path = Path(folder) / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CardError(f"{path}: no such file; a card is written for a model folder, such as runs/<name>/model") from (
            error
        )
    except ValueError as error:
        raise CardError(f"{path}: not JSON ({error}); save the model again") from error
    if not isinstance(config, dict) or config.get("model_type") != "llmrec":
        found = config.get("model_type") if isinstance(config, dict) else type(config).__name__
        raise CardError(f"{path}: model_type is {found!r}, not 'llmrec': this card tells of LLM-Rec models only")
    weights = [file for file in Path(folder).rglob("*.safetensors") if file.parent.name != INDEX_FOLDER]
    return ModelFacts(
        config=config,
        form="adapter" if config.get("adapters") else "full",
        weight_bytes=sum(file.stat().st_size for file in weights),
        sentence_transformers=(Path(folder) / "modules.json").is_file(),
        indexed_items=_indexed_items(Path(folder) / INDEX_FOLDER / "index.json"),
    )


def read_run(folder: str | os.PathLike[str]) -> RunFacts:
    """Read a run folder.

    Raises:
        CardError: no results.json, results of another schema, ranks or a recipe that cannot be read. The message
            names the file and what to do.
    """
    folder = Path(folder)
    if not (folder / RESULTS_FILE).is_file():
        raise CardError(
            f"{folder / RESULTS_FILE}: no such file, so the run is unfinished or no run: finish it with --resume true, "
            "rank its model with `llmrec evaluate`, or write a card without a run"
        )
    try:
        results = load_results(folder)
        ranks = load_ranks(folder) if (folder / RANKS_FILE).is_file() else None
    except (ResultsError, pl.exceptions.PolarsError) as error:
        raise CardError(f"{error}: evaluate the model again with this version (`llmrec evaluate --overwrite`)") from (
            error
        )
    if not results["rows"]:
        raise CardError(f"{folder / RESULTS_FILE}: holds no rows: evaluate the model again (`llmrec evaluate`)")
    recipe: Any = {}
    path = folder / RECIPE_FILE
    if path.is_file():
        try:
            recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise CardError(f"{path}: not YAML ({' '.join(str(error).split())}): bring the run's own back") from error
        if not isinstance(recipe, dict):
            raise CardError(f"{path}: holds no mapping: bring the run's own back")
    return RunFacts(folder, results, ranks, recipe)


def hub_name(name: Any) -> str | None:
    """The Hub id that a name stands for; None for a path of some machine."""
    if not isinstance(name, str) or not name:
        return None
    if MINILM_PACKAGE in re.split(r"[\\/]", name):
        return MINILM  # its weights, installed by pip; llmrec.backbones checks that they are the published ones
    if re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name) and not os.path.isdir(name):
        return name
    return None


def without_folders(words: Sequence[str]) -> list[str]:
    """A command line in which absolute paths are cut down to their last part, since their folders are private."""

    def cut(word: str) -> str:
        match = _ABSOLUTE.fullmatch(word)
        if match is None:
            return word
        return (match["flag"] or "") + re.split(r"[\\/]", match["path"].rstrip("\\/"))[-1]

    return [cut(word) for word in words]


def _indexed_items(path: Path) -> int:
    if not path.is_file():
        return 0
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["items"])
    except (ValueError, KeyError, TypeError) as error:
        raise CardError(f"{path}: not the description of a catalogue's index ({error!r}): save it again") from error
