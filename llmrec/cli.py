"""The `llmrec` command: one subcommand for each step that is not training."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

from llmrec.version import __version__


class Subcommand(NamedTuple):
    """A subcommand and the module that implements it with `add_arguments(parser)` and `run(args) -> int`."""

    module: str
    summary: str


SUBCOMMANDS = {
    "prepare": Subcommand("llmrec.data.command", "filter and split interactions into histories and a catalogue"),
    "plan": Subcommand("llmrec.planning.command", "tell what a training will cost before it starts"),
    "evaluate": Subcommand("llmrec.evaluation.command", "rank the catalogue for every test user and write the metrics"),
    "recommend": Subcommand("llmrec.retrieval.command", "print the best items for a history of titles"),
    "export": Subcommand("llmrec.hub.formats.command", "write a model for other servers: ONNX, OpenVINO, TEI"),
    "card": Subcommand("llmrec.hub.card_command", "write the model card of a run"),
    "push-data": Subcommand("llmrec.hub.dataset_command", "publish a prepared folder as a data set on the Hub"),
    "pull-data": Subcommand("llmrec.hub.dataset_pull_command", "make the prepared folder that somebody published"),
    "demo-data": Subcommand("llmrec.data.demo_command", "write the demo's made-up interactions and items"),
}

TRACEBACK_VARIABLE = "LLMREC_TRACEBACK"
_USER_ERRORS = (ValueError, OSError, KeyError, ModuleNotFoundError)
_OWN_PACKAGES = ("llmrec", "modeling_llmrec", "configuration_llmrec")


def build_parser(requested: str | None = None) -> argparse.ArgumentParser:
    """Build the parser; only the module of `requested` is imported, since most of them bring torch.

    Args:
        requested: the subcommand whose arguments are wanted, or None to list the subcommands only.
    """
    parser = argparse.ArgumentParser(
        prog="llmrec",
        description="Multi-domain sequential recommendation from item titles.",
        epilog="Training is `accelerate launch train.py CONFIG.yaml`, publishing `python push_to_hub.py RUN ORG/NAME`. "
        f"{TRACEBACK_VARIABLE}=1 in the environment shows where an error arose.",
    )
    parser.add_argument("--version", action="version", version=f"llmrec {__version__}")
    subparsers = parser.add_subparsers(dest="subcommand", metavar="SUBCOMMAND", required=True)
    for name, subcommand in SUBCOMMANDS.items():
        subparser = subparsers.add_parser(name, help=subcommand.summary, description=subcommand.summary)
        if name == requested:
            module = importlib.import_module(subcommand.module)
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    requested = next((argument for argument in arguments if argument in SUBCOMMANDS), None)

    def action() -> int:
        args = build_parser(requested).parse_args(arguments)
        return int(args.run(args))

    return run_reporting_errors("llmrec", action)


def run_reporting_errors(program: str, action: Callable[[], int]) -> int:
    """Call `action`; returns its exit status.

    What a user did wrong (a `ValueError`, missing file, … raised by this project) is one line on standard error and
    status 2, as for a wrong argument. Anything else is a defect of ours or of a library and keeps its traceback.
    Warnings are one line too; those of libraries about coming changes speak to us, and are left out.
    """

    def show(message: Warning | str, category: type[Warning], *where: object, **more: object) -> None:
        print(f"{program}: warning: {message}", file=sys.stderr)

    try:
        with warnings.catch_warnings():
            warnings.showwarning = show
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.|peft\.")
            return action()
    except _USER_ERRORS as error:
        if os.environ.get(TRACEBACK_VARIABLE) == "1" or not _raised_by_us(error):
            raise
        # str() of a KeyError puts its message in quotes.
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"{program}: error: {message}", file=sys.stderr)
        return 2


def _raised_by_us(error: BaseException) -> bool:
    """Whether the innermost frame is this project's code, so that the message was written for the user."""
    traceback = error.__traceback__
    if traceback is None:
        return False
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    module: str = traceback.tb_frame.f_globals.get("__name__", "")
    return module.split(".")[0] in _OWN_PACKAGES


if __name__ == "__main__":
    sys.exit(main())
