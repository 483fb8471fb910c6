"""`llmrec push-data`: publish a prepared folder as a data set on the Hub."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `llmrec push-data`."""
    parser.add_argument("folder", help="prepared data folder, made by `llmrec prepare`")
    parser.add_argument("repo_id", help="repository of the data set, such as org/name; made if it does not exist")
    parser.add_argument(
        "--license",
        required=True,
        help="licence of the data (cc-by-4.0, …); unknown and other need --note or --private",
    )
    parser.add_argument("--note", help="where the data comes from and under which terms, in whole sentences")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument("--revision", help="branch to commit to; made if it does not exist")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request")
    parser.add_argument("--dry-run", action="store_true", help="list what would be uploaded, and upload nothing")
    parser.add_argument("--language", action="append", default=[], help="code of a language of the titles; repeatable")
    parser.add_argument("--tag", dest="tags", action="append", default=[], help="a further tag; repeatable")
    parser.add_argument("--no-verify", action="store_true", help="do not fetch and compare what was uploaded")


def run(args: argparse.Namespace) -> int:
    """Publish the data and print what was uploaded; returns the exit status."""
    from llmrec.hub.dataset import push_dataset

    pushed = push_dataset(
        args.folder,
        args.repo_id,
        license=args.license,
        private=args.private,
        revision=args.revision,
        create_pr=args.create_pr,
        dry_run=args.dry_run,
        language=args.language,
        tags=args.tags,
        note=args.note,
        verify=not args.no_verify,
    )
    for path, size in pushed.files:
        print(f"{size:>14,} B  {path}")
    print(f"content hash {pushed.hash}")
    if pushed.commit is None:
        print(f"dry run: nothing was uploaded to {pushed.repo_id}")
    else:
        compared = "not compared" if args.no_verify else "fetched again, the same hash"
        print(f"uploaded to {pushed.url} ({compared})")
    return 0
