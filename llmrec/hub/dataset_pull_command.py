"""`llmrec pull-data`: make the prepared folder that somebody published."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `llmrec pull-data`."""
    parser.add_argument("repo_id", help="repository of the data set, as `llmrec push-data` made it")
    parser.add_argument("folder", help="folder to write, such as prepared/name")
    parser.add_argument("--revision", help="branch, tag or commit")
    parser.add_argument("--overwrite", action="store_true", help="replace a folder of prepared data")


def run(args: argparse.Namespace) -> int:
    """Fetch the data, check it, and say what it is; returns the exit status."""
    from llmrec.hub.dataset import pull_dataset

    data = pull_dataset(args.repo_id, args.folder, revision=args.revision, overwrite=args.overwrite)
    print(f"{len(data.train):,} users and {len(data.catalogue):,} items, hash {data.hash}")
    print(f"wrote {data.folder}")
    return 0
