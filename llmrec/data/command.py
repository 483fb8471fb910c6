"""`llmrec prepare`: filter and split interactions into a folder of prepared data."""

from __future__ import annotations

import argparse

from llmrec.data.card import render_statistics
from llmrec.data.encode import MISSING_ITEMS
from llmrec.data.k_core import SCOPES
from llmrec.data.options import PrepareOptions, prepare_from_options
from llmrec.data.order import ORDER_POLICIES
from llmrec.data.readers import READERS
from llmrec.data.splits import SPLITS
from llmrec.data.titles import UNTITLED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `llmrec prepare`."""
    defaults = PrepareOptions()
    files = parser.add_argument_group("input")
    files.add_argument("--format", dest="data_format", choices=tuple(READERS), default=defaults.data_format)
    files.add_argument(
        "--source",
        dest="sources",
        action="append",
        default=[],
        metavar="DOMAIN=INTERACTIONS[,ITEMS]",
        help="files of one domain; repeat it for several, whose users merge over ids",
    )
    files.add_argument("--interactions", help="one file for all domains, instead of --source")
    files.add_argument("--items", help="items of --interactions, with a column 'domain'")
    files.add_argument(
        "--columns",
        type=_columns,
        default={},
        metavar="OURS=THEIRS,…",
        help="for tables: names of the columns in the files, such as user_id=reviewer,items.title=name",
    )
    files.add_argument("--time-unit", choices=("s", "ms"), default=defaults.time_unit, help="of numeric timestamps")

    steps = parser.add_argument_group("steps")
    steps.add_argument("--domains", nargs="+", help="keep these domains only")
    steps.add_argument("--k-core", type=int, default=defaults.k_core, help="0 for none (default: %(default)s)")
    steps.add_argument("--k-core-scope", choices=SCOPES, default=defaults.k_core_scope)
    steps.add_argument("--untitled", choices=UNTITLED, default=defaults.untitled, help="items without a title")
    steps.add_argument(
        "--missing-items",
        choices=MISSING_ITEMS,
        default=defaults.missing_items,
        help="items of interactions without a row in the items file (default: %(default)s)",
    )
    steps.add_argument("--order-policy", choices=tuple(ORDER_POLICIES), default=defaults.order_policy)
    steps.add_argument("--split", choices=tuple(SPLITS), default=defaults.split)
    steps.add_argument(
        "--quantiles",
        type=float,
        nargs=2,
        default=defaults.quantiles,
        metavar=("VALIDATION", "TEST"),
        help="for global-time: shares of the interactions before the two windows (default: 0.8 0.9)",
    )
    steps.add_argument(
        "--cuts",
        nargs=2,
        metavar=("VALIDATION", "TEST"),
        help="for global-time: the two moments themselves, such as 2014-01-01 2014-04-01",
    )
    steps.add_argument("--max-users", type=int, help="a sample of users by the hash of their id, for experiments")

    result = parser.add_argument_group("output")
    result.add_argument("--output", required=True, help="folder to write")
    result.add_argument("--name", help="name in the data card (default: the folder's)")
    result.add_argument("--overwrite", action="store_true", help="replace a folder of prepared data")


def run(args: argparse.Namespace) -> int:
    """Prepare the data, print steps and statistics; returns the exit status."""
    names = PrepareOptions.__dataclass_fields__
    options = PrepareOptions(**{key: value for key, value in vars(args).items() if key in names})
    prepared = prepare_from_options(options, args.output, echo=_print)
    print(f"\n{render_statistics(prepared.card['statistics'])}\n")
    print(f"order policy {options.order_policy}, split {options.split}, hash {prepared.hash}")
    print(f"wrote {prepared.folder}")
    return 0


def _print(line: str) -> None:
    print(line, flush=True)


def _columns(text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(",") if part]
    for ours, equals, theirs in pairs:
        if not (ours.strip() and equals and theirs):
            raise argparse.ArgumentTypeError(f"'{text}' is not of the form OURS=THEIRS,OURS=THEIRS")
    return {ours.strip(): theirs for ours, _, theirs in pairs}
