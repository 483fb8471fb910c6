"""From what a run saved to the folder that is published: form, backbone's name, card, results, index."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import LocalEntryNotFoundError

from llmrec.backbones import MINILM, MINILM_PACKAGE, resolve_backbone
from llmrec.hub.card_facts import hub_name
from llmrec.hub.contents import CONFIG, UnpublishableError, check_folder, is_hub_id
from llmrec.hub.leaks import read_json, without_paths
from llmrec.hub.model_card import write_model_card
from modeling_llmrec import LLMRecConfig, LLMRecProcessor
from modeling_llmrec.checkpoint import ADAPTER_CONFIG, ADAPTER_WEIGHTS, write_code
from modeling_llmrec.fingerprint import INDEX, WEIGHTS, fingerprint, shards, weight_files

FORMS = ("auto", "adapter", "merged", "full")
RESULTS, RECIPE = "results.json", "config.yaml"


@dataclass(frozen=True)
class Source:
    """What is to be published.

    Attributes:
        model: the model's folder.
        run: the run that made it, if it was named.
    """

    model: Path
    run: Path | None


def find_source(source: str | os.PathLike[str]) -> Source:
    """A run folder or a model folder.

    Raises:
        UnpublishableError: it is neither, or the run is unfinished.
    """
    path = Path(source)
    if not path.is_dir():
        raise UnpublishableError(path, ["there is no such folder: name a run (runs/<name>) or a model folder"])
    if (path / CONFIG).is_file():
        return Source(path, None)
    finished = (path / RESULTS).is_file()
    if (path / "model" / CONFIG).is_file() and finished:
        return Source(path / "model", path)
    if not finished and (path / RECIPE).is_file():
        raise UnpublishableError(path, [f"the run has no {RESULTS}, so it is unfinished: finish it with --resume true"])
    raise UnpublishableError(path, [f"neither a run (no model/{CONFIG}) nor a model folder (no {CONFIG})"])


def saved_form(model: Path) -> str:
    """ "adapter" or "full": how a model folder was saved."""
    return "adapter" if read_json(model / CONFIG).get("adapters") else "full"


def stage(
    source: Source,
    target: Path,
    *,
    form: str = "auto",
    backbone: str | None = None,
    also: Mapping[str, str | os.PathLike[str]] | None = None,
    name: str | None = None,
    default: str | None = None,
) -> str:
    """Write the model, without card and index, into a new folder.

    Adapters are copied as they are: their backbone, which may be a thousand times larger, is not loaded. Code and
    configuration are written anew, by this version of the project.

    Args:
        source: the model.
        target: the new folder.
        form: "auto" for how it was saved; "merged" adds adapters to the weights, "full" takes either.
        backbone: Hub id of the backbone, where the model does not know it.
        also: further adapters, by their name: run or model folders.
        name: of the model's own adapter; the one it has by default.
        default: the adapter that is active after loading.

    Returns:
        The form: "adapter", "merged" or "full".

    Raises:
        UnpublishableError: the sources hold what must not travel, or cannot take this form.
        CombineError: the adapters do not go together.
        OSError, ValueError: the model cannot be loaded to be merged.
    """
    if form not in FORMS:
        raise ValueError(f"form={form!r} is none of {', '.join(map(repr, FORMS))}.")
    check_folder(source.model, complete=False)
    saved = saved_form(source.model)
    if form == "adapter" and saved != "adapter":
        raise UnpublishableError(
            source.model,
            ["it holds all weights and no adapters: leave out --adapter-only, or train with --save_form adapter"],
        )
    wanted = saved if form == "auto" or saved == "full" else form
    if (also or name or default) and wanted != "adapter":
        raise UnpublishableError(
            source.model, ["--also, --name and --default are for adapters, and these are full weights"]
        )
    if wanted == "adapter" and (also or name):
        _combine(source, target, also or {}, name, default)
    elif wanted == "adapter":
        _copy_adapters(source.model, target, default)
    elif saved == "full":
        _copy_weights(source.model, target)
    else:
        _merge(source.model, target)
    _name_backbone(source.model, target, backbone)
    for extra in ("LICENSE", "NOTICE"):
        if (source.model / extra).is_file():
            shutil.copyfile(source.model / extra, target / extra)
    return "merged" if saved == "adapter" and wanted != "adapter" else wanted


def add_results(source: Source, target: Path) -> None:
    """Copy the run's results.json, its paths cut down to names."""
    if source.run is not None:
        results = without_paths(read_json(source.run / RESULTS))
        (target / RESULTS).write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def add_card(source: Source, target: Path, repo_id: str, name: str | None = None, **options: Any) -> None:
    """Write the card, from the run where there is one.

    Args:
        name: of the run's own adapter, if it was given another; of several, the figures are that one's.

    Raises:
        CardError: it cannot be filled in, or its metadata is invalid.
    """
    settings = read_json(source.model / CONFIG)
    own = name or settings.get("default_adapter") or next(iter(settings.get("adapters") or {}), None)
    write_model_card(target, repo_id=repo_id, run=source.run, results_of=own, **options)


def add_index(source: Source, target: Path, catalogue: str | os.PathLike[str], repo_id: str) -> None:
    """Encode a catalogue with the staged model and write it into `index/`.

    Raises:
        DataError: the catalogue cannot be read.
        OSError: the backbone of an adapter cannot be had.
    """
    from llmrec.hub.catalogue_index import save_index
    from llmrec.retrieval.recommender import Recommender

    backbone = local_backbone(source.model)
    options: dict[str, Any] = {} if backbone is None or saved_form(target) == "full" else {"backbone": backbone}
    save_index(target, Recommender.from_pretrained(target, Path(catalogue), **options), name=repo_id)


def local_backbone(model: Path) -> str | None:
    """The folder of this machine that a model's adapters were trained over; None where it is a repository's name."""
    named = read_json(model / CONFIG).get("backbone_name_or_path")
    if named is None or not read_json(model / CONFIG).get("adapters"):
        return None
    if named == MINILM and importlib.util.find_spec(MINILM_PACKAGE) is None:
        return None  # `resolve_backbone` would ask the Hub
    found = resolve_backbone(named)
    return found if Path(found).is_dir() else None


# -- the forms -----------------------------------------------------------------------------------------------------


def _copy_adapters(model: Path, target: Path, default: str | None) -> None:
    config = LLMRecConfig.from_pretrained(model)
    if default is not None:
        if default not in config.adapters:
            raise UnpublishableError(model, [f"--default {default}: its adapters are {', '.join(config.adapters)}"])
        config.default_adapter = default
    target.mkdir(parents=True)
    for place in config.adapters.values():
        (target / place).mkdir(parents=True)
        for file in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
            shutil.copyfile(model / place / file, target / place / file)
    _write_around(model, target, config)


def _combine(
    source: Source, target: Path, also: Mapping[str, str | os.PathLike[str]], name: str | None, default: str | None
) -> None:
    from llmrec.hub.combine import combine_adapters

    config = LLMRecConfig.from_pretrained(source.model)
    if len(config.adapters) > 1:
        raise UnpublishableError(
            source.model,
            [f"it holds several adapters already ({', '.join(config.adapters)}): leave out --also, --name"],
        )
    own = name or config.default_adapter or next(iter(config.adapters))
    if own in also:
        raise UnpublishableError(source.model, [f"two adapters are called {own!r}: give this one another --name"])
    folders = {own: source.model}
    for other, folder in also.items():
        folders[other] = find_source(folder).model
        check_folder(folders[other], complete=False)
    combine_adapters(folders, target, default=default or own)


def _copy_weights(model: Path, target: Path) -> None:
    target.mkdir(parents=True)
    names = [INDEX, *shards(model / INDEX)] if (model / INDEX).is_file() else [WEIGHTS]
    for name in names:
        try:
            os.link((model / name).resolve(), target / name)  # gigabytes need not be copied
        except OSError:  # another file system, or one without links
            shutil.copyfile(model / name, target / name)
    _write_around(model, target, LLMRecConfig.from_pretrained(model))


def _merge(model: Path, target: Path) -> None:
    from llmrec.hub.export import save_model
    from llmrec.hub.loading import load_model

    loaded, processor = load_model(model)
    save_model(loaded, processor, target, form="merged")


def _write_around(model: Path, target: Path, config: Any) -> None:
    config.save_pretrained(target)
    LLMRecProcessor.from_pretrained(model).save_pretrained(target)
    write_code(target)


def _name_backbone(model: Path, target: Path, backbone: str | None) -> None:
    """Put the repository of the backbone where a path of this machine stands, and the print of its weights."""
    config = LLMRecConfig.from_pretrained(target)
    old = config.backbone_name_or_path
    new = backbone or hub_name(old)
    if new is not None and not is_hub_id(new):
        raise UnpublishableError(model, [f"--backbone {new} is not the name of a repository, such as org/name"])
    if config.adapters and new is None:
        raise UnpublishableError(
            model,
            [
                f"its backbone {old!r} is a folder of this machine, where no stranger finds it: name its repository "
                "with --backbone org/name, or publish all weights with --merge"
            ],
        )
    if new != old:
        config.backbone_revision = None  # of another repository
    config.backbone_name_or_path = new
    if config.adapters and not config.backbone_fingerprint:
        files = local_backbone_files(model)
        config.backbone_fingerprint = fingerprint(files) if files else None
    config.save_pretrained(target)
    for place in (config.adapters or {}).values():
        path = target / place / ADAPTER_CONFIG
        settings = read_json(path)
        settings["base_model_name_or_path"] = new
        path.write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")


def local_backbone_files(model: Path) -> list[Path]:
    """The weights of a model's backbone as far as they are on this machine, without asking the Hub."""
    settings = read_json(model / CONFIG)
    named, revision = settings.get("backbone_name_or_path"), settings.get("backbone_revision")
    folder = local_backbone(model)
    try:
        if folder is not None:
            return weight_files(folder)
        return weight_files(named, local_files_only=True, **({"revision": revision} if revision else {}))
    except (OSError, LocalEntryNotFoundError):
        return []
