"""`llmrec recommend`: the best items of a catalogue for a history of titles."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("titles", nargs="+", help="titles of the history, oldest first")
    parser.add_argument("--model", required=True, help="saved model: a folder (runs/<name>/model) or a Hub id")
    parser.add_argument(
        "--catalogue", help="catalogue.parquet, or a prepared data folder (default: the one published beside the model)"
    )
    parser.add_argument("--revision", help="branch, tag or commit of a model on the Hub")
    parser.add_argument("-k", type=int, default=10, help="how many items (default: 10)")
    parser.add_argument("--domain", help="recommend from this domain only")
    parser.add_argument(
        "--keep-history", action="store_true", help="also recommend items whose title is in the history"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")


def run(args: argparse.Namespace) -> int:
    from llmrec.retrieval.recommender import Recommender

    options = {} if args.revision is None else {"revision": args.revision}
    recommender = Recommender.from_pretrained(args.model, args.catalogue, progress=not args.json, **options)
    found = recommender.recommend(args.titles, args.k, domain=args.domain, exclude_history=not args.keep_history)
    if args.json:
        for item in found:
            print(json.dumps(asdict(item), ensure_ascii=False))
        return 0
    width = max((len(item.domain) for item in found), default=0)
    for place, item in enumerate(found, start=1):
        print(f"{place:>3}  {item.score:6.3f}  {item.domain:<{width}}  {item.title}")
    return 0
