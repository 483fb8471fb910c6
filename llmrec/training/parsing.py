"""`train.py CONFIG.yaml --flag value`: a YAML file, then flags that override it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from llmrec.training.arguments import LLMRecTrainingArguments
from llmrec.training.data_arguments import DataArguments
from llmrec.training.model_arguments import ModelArguments

DATACLASSES = (ModelArguments, DataArguments, LLMRecTrainingArguments)


class ArgumentsError(ValueError):
    """An argument that is unknown, of the wrong type, or excluded by another one."""


class _Parser(HfArgumentParser):
    """Raises instead of leaving the process, and offers near matches for unknown flags."""

    def error(self, message: str) -> NoReturn:
        raise ArgumentsError(message)


def build_parser() -> _Parser:
    """The parser of `train.py`."""
    return _Parser(
        DATACLASSES,
        prog="train.py",
        usage="train.py [CONFIG.yaml] [--flag value …]",
        description="Train and evaluate a recommender; a YAML file gives the arguments, flags override it.",
        # An abbreviated flag would change its meaning when a new argument begins with the same letters.
        allow_abbrev=False,
    )


def parse_arguments(argv: Sequence[str]) -> tuple[ModelArguments, DataArguments, LLMRecTrainingArguments]:
    """Read the arguments of a run.

    Args:
        argv: arguments after the program's name; a first one that does not begin with `-` is the YAML file.

    Raises:
        ArgumentsError: naming the file and key, or the flag.
    """
    arguments = list(argv)
    parser = build_parser()
    from_file: list[str] = []
    nulls: dict[str, None] = {}
    if arguments and not arguments[0].startswith("-"):
        file = Path(arguments.pop(0))
        values = read_yaml(file, _known_keys())
        nulls = {key: None for key, value in values.items() if value is None}
        for key, value in values.items():
            one = _as_flags(key, value)
            try:
                parser.parse_known_args(one)
            except ArgumentsError as error:
                raise ArgumentsError(f"{file}: key {key!r}: {error}") from error
            from_file += one
    # `null` in the file means "not set", also where the default is something else; a flag still overrides it.
    parser.set_defaults(**nulls)
    namespace, unknown = parser.parse_known_args([*from_file, *arguments])
    if unknown:
        flag = unknown[0]
        known = [option for action in parser._actions for option in action.option_strings]
        raise ArgumentsError(f"unknown argument {flag!r}{_near(flag, known)}")
    values = vars(namespace)
    try:
        model = ModelArguments(**{key: values[key] for key in _fields(ModelArguments)})
        data = DataArguments(**{key: values[key] for key in _fields(DataArguments)})
        training = LLMRecTrainingArguments(**{key: values[key] for key in _fields(LLMRecTrainingArguments)})
    except ValueError as error:
        raise ArgumentsError(str(error)) from error
    return model, data, training


def read_yaml(file: Path, known: Sequence[str]) -> dict[str, Any]:
    """Read a flat YAML mapping and refuse keys that are not arguments.

    Raises:
        ArgumentsError: naming the file and, for an unknown key, the nearest known ones.
    """
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArgumentsError(f"{file}: cannot be read ({error.strerror}); name a YAML file of configs/") from error
    except yaml.YAMLError as error:
        raise ArgumentsError(f"{file}: is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ArgumentsError(f"{file}: must be a mapping of arguments to values, not {type(values).__name__}")
    for key in values:
        if key not in known:
            raise ArgumentsError(f"{file}: unknown key {key!r}{_near(str(key), known)}")
    return values


def _fields(dataclass: Any) -> list[str]:
    return [name for name, field in dataclass.__dataclass_fields__.items() if field.init]


def _known_keys() -> list[str]:
    return [name for dataclass in DATACLASSES for name in _fields(dataclass)]


def _as_flags(key: str, value: Any) -> list[str]:
    """What one would have typed for a key and value of the file, so that both are checked by the same types."""
    if value is None:
        return []
    if isinstance(value, list):
        if not value:
            return []  # argparse knows no empty list on the command line; empty is the default wherever it can be given
        return [f"--{key}", *(_as_text(entry) for entry in value)]
    return [f"--{key}", _as_text(value)]


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, dict) else str(value)


def _near(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name.replace("-", "_") if not name.startswith("-") else name, known, n=3)
    return f"; did you mean {', '.join(close)}?" if close else "; `train.py --help` lists all arguments"
