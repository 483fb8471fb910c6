"""Several adapters over one backbone, each trained by itself, in one folder that switches between them."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmrec.hub.export import check_complete, replace_folder
from modeling_llmrec import LLMRecConfig, LLMRecProcessor
from modeling_llmrec.checkpoint import ADAPTER_CONFIG, ADAPTER_FOLDER, ADAPTER_WEIGHTS, write_code
from modeling_llmrec.fingerprint import read_header

# Fields in which models may differ and still give the vectors they gave alone: the names of their adapters, and what
# only the loss reads. The rest changes a vector, or which weights are looked for.
FREE_FIELDS = frozenset({"adapters", "default_adapter", "temperature", "contrastive_loss", "transformers_version"})
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "spiece.model", "tokenizer.model")


class CombineError(ValueError):
    """Adapters cannot share a folder."""


def combine_adapters(
    models: Mapping[str, str | Path], target: str | Path, *, default: str | None = None, overwrite: bool = False
) -> Path:
    """Put the adapters of several model folders into one.

    Args:
        models: name of an adapter in the new folder to the folder of a model that was saved with `form="adapter"`; of a
            folder with several adapters, its default one is taken.
        target: the new folder. It appears only once it is complete.
        default: the adapter that is active after loading; the first by default.
        overwrite: whether to replace an existing folder.

    Returns:
        The new folder.

    Raises:
        CombineError: the models have other backbones, other weights of the backbone, or another layout; a name is no
            plain folder name; or a folder holds no adapters. All differences are named.
        FileExistsError: where the target exists and `overwrite` is false.
        OSError: a file is missing or damaged.
    """
    target = Path(target)
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists already: choose another folder, or pass overwrite=True.")
    if not models:
        raise CombineError("There are no models to combine.")
    if default is not None and default not in models:
        raise CombineError(f"default={default!r} is not among the names {list(models)}.")
    folders = {name: Path(folder) for name, folder in models.items()}
    configs = {name: _read_config(name, folder) for name, folder in folders.items()}
    first = next(iter(folders))
    chosen = default or first
    problems = [
        problem
        for name in list(folders)[1:]
        for problem in _differences(folders[first], configs[first], folders[name], configs[name])
    ]
    if problems:
        raise CombineError("These adapters do not go together:\n" + "\n".join(f"- {problem}" for problem in problems))

    config = LLMRecConfig.from_pretrained(folders[chosen])
    config.adapters = {name: f"{ADAPTER_FOLDER}/{name}" for name in models}
    config.default_adapter = chosen
    config = _checked(config)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as beside:
        draft = Path(beside) / target.name
        for name, folder in folders.items():
            source = folder / configs[name]["adapters"][_default(configs[name])]
            _copy_adapter(source, draft / ADAPTER_FOLDER / name, set(models))
        config.save_pretrained(draft)
        LLMRecProcessor.from_pretrained(folders[chosen]).save_pretrained(draft)
        write_code(draft)
        check_complete(draft)
        replace_folder(draft, target)
    return target


def _read_config(name: str, folder: Path) -> dict[str, Any]:
    """config.json as it is written, its defaults filled in."""
    if not (folder / "config.json").is_file():
        raise CombineError(f"{name}: {folder} has no config.json, so it is no model folder (a run's is its model/).")
    config = LLMRecConfig.from_pretrained(folder).to_dict()
    if not config.get("adapters"):
        raise CombineError(f'{name}: {folder} holds no adapters: save the model with form="adapter".')
    return config


def _default(config: dict[str, Any]) -> str:
    return config["default_adapter"] or next(iter(config["adapters"]))


def _checked(config: Any) -> Any:
    """The same configuration, made anew, so that the names of the adapters are looked at."""
    try:
        return LLMRecConfig(**config.to_dict())
    except ValueError as error:
        raise CombineError(str(error)) from error


def _differences(first_folder: Path, first: dict[str, Any], other_folder: Path, other: dict[str, Any]) -> list[str]:
    """What keeps two models apart, a line each."""
    problems = []
    for field in sorted((first.keys() | other.keys()) - FREE_FIELDS):
        mine, theirs = first.get(field), other.get(field)
        if isinstance(mine, dict) and isinstance(theirs, dict):
            for inner in sorted(mine.keys() | theirs.keys()):
                if mine.get(inner) != theirs.get(inner):
                    problems.append(
                        _line(f"{field}.{inner}", first_folder, mine.get(inner), other_folder, theirs.get(inner))
                    )
        elif mine != theirs:
            problems.append(_line(field, first_folder, mine, other_folder, theirs))
    for name in TOKENIZER_FILES:
        files = [folder / name for folder in (first_folder, other_folder)]
        if all(file.is_file() for file in files) and not _same(*files):
            problems.append(f"{name} in {other_folder} is another than in {first_folder}")
    return problems


def _line(field: str, first_folder: Path, mine: Any, other_folder: Path, theirs: Any) -> str:
    return f"{field} is {theirs!r} in {other_folder}, and {mine!r} in {first_folder}"


def _same(first: Path, other: Path) -> bool:
    if first.suffix != ".json":
        return first.read_bytes() == other.read_bytes()
    mine, theirs = (json.loads(file.read_text(encoding="utf-8")) for file in (first, other))
    for settings in (mine, theirs):
        # Left over from the last text that was read; the layout sets both anew.
        settings.pop("truncation", None)
        settings.pop("padding", None)
    return mine == theirs


def _copy_adapter(source: Path, target: Path, names: set[str]) -> None:
    target.mkdir(parents=True)
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (source / name).is_file():
            raise FileNotFoundError(f"{source / name} is missing: save that model again.")
    tensors, _ = read_header(source / ADAPTER_WEIGHTS)
    for tensor in tensors:
        confused = names.intersection(tensor.split("."))
        if confused:
            raise CombineError(
                f"An adapter cannot be called {min(confused)!r}: the backbone has a module of that name ({tensor}), "
                "and peft could not tell them apart. Give it another name."
            )
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        shutil.copyfile(source / name, target / name)
