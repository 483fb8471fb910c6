"""What is in a model folder, and may it travel? Only kinds of files that are known, each looked into."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmrec.hub.file_kinds import UNKNOWN, json_object, kind_of, look_into, siblings
from llmrec.hub.leaks import (
    PICKLE_SUFFIXES,
    find_named_secrets,
    find_paths,
    find_paths_in_json,
    find_secrets,
    pickle_inside,
    read_json,
)
from modeling_llmrec.checkpoint import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from modeling_llmrec.fingerprint import INDEX, WEIGHTS, DamagedFileError, read_header, shards

CONFIG = "config.json"


class UnpublishableError(ValueError):
    """A folder must not, or cannot, be published.

    Attributes:
        problems: everything that was found, a line each.
    """

    def __init__(self, folder: str | os.PathLike[str], problems: list[str]) -> None:
        self.problems = problems
        if len(problems) == 1:
            super().__init__(f"{folder} cannot be published: {problems[0]}")
        else:
            lines = "\n".join(f"  - {problem}" for problem in problems)
            super().__init__(f"{folder} cannot be published: {len(problems)} problems\n{lines}")


@dataclass(frozen=True)
class Entry:
    """A file of the folder.

    Attributes:
        path: inside the folder, with `/`.
        size: bytes.
        kind: one of those above, or `"unknown"`.
        about: what is inside, in a few words.
    """

    path: str
    size: int
    kind: str
    about: str


def inspect_folder(folder: str | os.PathLike[str]) -> list[Entry]:
    """Every file of a folder with what is inside, in the order of their paths. Nothing is refused.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    return [entry for entry, _ in _examine(Path(folder))]


def check_folder(folder: str | os.PathLike[str], *, complete: bool = True) -> list[Entry]:
    """As `inspect_folder`, for a folder that may travel.

    Args:
        folder: a model folder.
        complete: whether to ask for all that a published folder has: code, its closure of imports, the tokenizer,
            and no path of this machine anywhere. False checks what was saved by a run, which is completed and
            scrubbed on the way.

    Returns:
        Its files.

    Raises:
        UnpublishableError: listing every problem: files of unknown kinds, pickles, secrets, paths of this machine,
            links that lead out, damaged or missing weights, and code that is incomplete or imports too much.
        FileNotFoundError: there is no such folder.
    """
    folder = Path(folder)
    examined = _examine(folder)
    problems = [
        f"{entry.path}: {problem.text}"
        for entry, found in examined
        for problem in found
        if complete or not problem.scrubbed_later
    ]
    entries = [entry for entry, _ in examined]
    names = {entry.path for entry in entries}
    if CONFIG not in names:
        problems.append(f"{CONFIG} is missing: this is no model folder, which is runs/<name>/model")
    else:
        problems += list(_check_together(folder, names, complete))
    if problems:
        raise UnpublishableError(folder, list(dict.fromkeys(problems)))
    return entries


# Vocabularies hold whatever their training text held, "/usr/bin" too.
_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "added_tokens.json")
_TEXT_SUFFIXES = (".json", ".py", ".md", ".txt", ".jinja", ".cff", ".gitattributes")


# -- one file ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Problem:
    text: str
    scrubbed_later: bool = False


def _examine(folder: Path) -> list[tuple[Entry, list[_Problem]]]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: name a run (runs/<name>) or the model folder inside it.")
    root, examined = folder.resolve(), []
    for place, folders, files in os.walk(folder):
        folders.sort()
        here = Path(place)
        for name in sorted(files) + [name for name in folders if (here / name).is_symlink()]:
            path = here / name
            relative = path.relative_to(folder).as_posix()
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                problem = _Problem(
                    "a link that leads out of the folder: put the file itself there, if it belongs there"
                )
                examined.append((Entry(relative, 0, UNKNOWN, "a link"), [problem]))
            elif path.is_symlink() and path.is_dir():
                examined.append((Entry(relative, 0, UNKNOWN, "a link"), [_Problem("a link to a folder: remove it")]))
            elif not path.is_file():
                problem = _Problem("neither a file nor a folder: remove it")
                examined.append((Entry(relative, 0, UNKNOWN, "no file"), [problem]))
            else:
                examined.append(_examine_file(path, relative))
    return sorted(examined, key=lambda pair: pair[0].path)


def _examine_file(path: Path, relative: str) -> tuple[Entry, list[_Problem]]:
    kind, size = kind_of(relative), path.stat().st_size
    about, problems = kind, []
    if kind != UNKNOWN:
        try:
            about = look_into(path, kind)
        except (ValueError, OSError) as error:
            about = "damaged"
            problems.append(_Problem(str(error).replace(str(path), relative)))
    pickled = None if path.suffix == ".safetensors" and not problems else pickle_inside(path)
    if kind == UNKNOWN:
        why = pickled or ("perhaps a pickle" if path.suffix in PICKLE_SUFFIXES else None)
        about = why or "unknown"
        if why:
            problems.append(_Problem(f"{why}: it could run code where it is loaded; save weights as safetensors"))
        else:
            problems.append(_Problem(f"{_unknown(relative)}: remove it, or keep it elsewhere"))
    elif pickled:
        problems.append(_Problem(f"{pickled} under the name of a {kind}: it could run code where it is loaded"))
    problems += _leaks(path, relative)
    return Entry(relative, size, kind, about), problems


def _unknown(relative: str) -> str:
    if relative in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        return (
            "an adapter at the root of the folder, which loads as the bare backbone from the Hub (it goes to adapters/)"
        )
    if relative.endswith(".py"):
        return "code in a subfolder, which cannot be loaded from the Hub"
    return "not a file of a published model"


def _leaks(path: Path, relative: str) -> Iterator[_Problem]:
    """Secrets and paths. Of weights only the header is text."""
    if path.suffix == ".safetensors":
        try:
            data = _safetensors_metadata(path)
        except (ValueError, OSError):
            return  # not one, which has been said
    else:
        data = path.read_bytes()
    yield from (_Problem(text) for text in find_secrets(data))
    if not (path.suffix in _TEXT_SUFFIXES or path.name in _TEXT_SUFFIXES or path.suffix == ".safetensors"):
        return
    if path.name in _VOCABULARIES:
        return
    text = data.decode("utf-8", errors="replace")
    if path.suffix != ".json":
        yield from (_Problem(found, scrubbed_later=True) for found in find_paths(text))
        return
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return  # not JSON, which has been said
    if kind_of(relative) != "tokenizer":  # whose `eos_token` and the like are words
        yield from (_Problem(found) for found in find_named_secrets(value))
    yield from (_Problem(found, scrubbed_later=True) for found in find_paths_in_json(value))


def _safetensors_metadata(path: Path) -> bytes:
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(min(length, path.stat().st_size)))
    return json.dumps(header.get("__metadata__") or {}).encode()


# -- all files together --------------------------------------------------------------------------------------------


def _check_together(folder: Path, names: set[str], complete: bool) -> Iterator[str]:
    try:
        config = json_object(folder / CONFIG)
    except ValueError:
        return  # said already
    if config.get("model_type") != "llmrec":
        yield f"{CONFIG}: model_type is {config.get('model_type')!r}, not 'llmrec'"
        return
    if config.get("adapters"):
        yield from _check_adapters(config, names)
    else:
        yield from _check_weights(folder, names)
    if complete:
        yield from _check_backbone(config)
        yield from _check_code(folder, config, names)
        if not names & {"tokenizer.json", "vocab.txt", "spiece.model", "tokenizer.model"}:
            yield "the tokenizer is missing: save the processor into the folder too"
        if "processor_config.json" not in names:
            yield "processor_config.json is missing: save the processor into the folder too"


def _check_adapters(config: dict[str, Any], names: set[str]) -> Iterator[str]:
    adapters = config["adapters"]
    if not isinstance(adapters, dict) or not all(isinstance(place, str) for place in adapters.values()):
        yield f"{CONFIG}: adapters must name the folder of each adapter"
        return
    for name, place in adapters.items():
        for file in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
            if f"{place}/{file}" not in names:
                yield f"{place}/{file} is missing, which {CONFIG} names as adapter {name!r}"
    listed = {f"{place}/{file}" for place in adapters.values() for file in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)}
    for extra in sorted(name for name in names if kind_of(name).startswith("adapter") and name not in listed):
        yield f"{extra}: an adapter that {CONFIG} does not name"
    if config.get("default_adapter") not in (None, *adapters):
        yield f"{CONFIG}: default_adapter {config['default_adapter']!r} is none of {sorted(adapters)}"
    for extra in sorted(name for name in names if kind_of(name).startswith("weights")):
        yield f"{extra}: full weights beside adapters, which would never be read"


def _check_weights(folder: Path, names: set[str]) -> Iterator[str]:
    present = {name for name in names if kind_of(name) == "weights"}
    if any(kind_of(name).startswith("adapter") for name in names):
        yield f"adapters/ is there, but {CONFIG} names no adapters"
    if INDEX not in names:
        if WEIGHTS not in present:
            yield f"{WEIGHTS} is missing: there are no weights, and {CONFIG} names no adapters"
        for extra in sorted(present - {WEIGHTS}):
            yield f"{extra}: part of a sharded model whose {INDEX} is missing"
        return
    try:
        listed = set(shards(folder / INDEX))
        places = read_json(folder / INDEX)["weight_map"]
    except (DamagedFileError, ValueError, KeyError):
        return  # said already
    for name in sorted(listed - present):
        yield f"{name} is missing, which {INDEX} names"
    for name in sorted(present - listed):
        yield f"{name}: weights that {INDEX} does not name"
    for name in sorted(listed & present):
        try:
            header, _ = read_header(folder / name)
        except DamagedFileError:
            continue  # said already
        lacking = sorted(tensor for tensor, place in places.items() if place == name and tensor not in header)
        if lacking:
            yield f"{name} lacks {len(lacking)} tensors that {INDEX} promises, the first {lacking[0]!r}"


def is_hub_id(name: Any) -> bool:
    """Whether a backbone's name is that of a repository, and not a folder of this machine."""
    return isinstance(name, str) and bool(re.fullmatch(r"[\w.-]+(?:/[\w.-]+)?", name)) and not Path(name).is_dir()


def _check_backbone(config: dict[str, Any]) -> Iterator[str]:
    name = config.get("backbone_name_or_path")
    if is_hub_id(name) or (name is None and not config.get("adapters")):
        return
    if config.get("adapters"):
        yield (
            f"{CONFIG}: the backbone {name!r} is a folder of this machine, where no stranger finds it: name its "
            "repository with --backbone org/name, or publish all weights with --merge"
        )
    else:
        yield f"{CONFIG}: backbone_name_or_path {name!r} is no repository: name it with --backbone org/name"


def _check_code(folder: Path, config: dict[str, Any], names: set[str]) -> Iterator[str]:
    """The code that config.json asks for is there with all it imports, and nothing beside it."""
    references = dict(config.get("auto_map") or {})
    if not {"AutoConfig", "AutoModel"} <= set(references):
        yield f"{CONFIG} has no auto_map of AutoConfig and AutoModel, so nobody could load the folder: save it again"
        return
    for task, pipeline in (config.get("custom_pipelines") or {}).items():
        references[f"pipeline {task!r}"] = pipeline.get("impl", "") if isinstance(pipeline, dict) else ""
    for file in ("processor_config.json", "tokenizer_config.json"):
        try:
            settings = json_object(folder / file) if file in names else {}
        except ValueError:
            continue  # said already
        for user, reference in (settings.get("auto_map") or {}).items():
            references.setdefault(user, reference if isinstance(reference, str) else reference[-1])
    waiting = []
    for user, reference in references.items():
        if "--" in reference:
            yield f"{user} takes its code from another repository ({reference}): save the model again"
        waiting.append((reference.split("--")[-1].split(".")[0], user))
    found: set[str] = set()
    while waiting:
        module, user = waiting.pop()
        name = f"{module}.py"
        if name in found:
            continue
        found.add(name)
        if name not in names:
            yield f"{name} is missing, which {user} needs"
            continue
        try:
            waiting += [(sibling, name) for sibling in siblings((folder / name).read_text(encoding="utf-8"))]
        except ValueError:
            continue  # said already
    for name in sorted(names - found):
        if kind_of(name) == "code":
            yield f"{name}: code that nothing in the folder uses: remove it"
