"""`llmrec demo-data`: write the demo's made-up shop as a pair of CSV files."""

from __future__ import annotations

import argparse
from pathlib import Path

from llmrec.data.demo import INTERACTIONS_FILE, ITEMS_FILE, write_demo_data


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `llmrec demo-data`."""
    parser.add_argument("output", type=Path, help=f"new folder for {INTERACTIONS_FILE} and {ITEMS_FILE}")
    parser.add_argument("--users", type=int, default=800, help="number of customers (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the customers (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Write the files and say so; returns the exit status."""
    write_demo_data(args.output, users=args.users, seed=args.seed)
    print(f"wrote {args.output / INTERACTIONS_FILE} and {args.output / ITEMS_FILE}")
    return 0
