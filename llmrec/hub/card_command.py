"""`llmrec card`: write the model card of a run, or of a model without one."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `llmrec card`."""
    parser.add_argument("source", help="run folder (runs/<name>), or a model folder, whose card then knows no results")
    parser.add_argument("repo_id", help="repository that the card is for, such as org/name")
    parser.add_argument("--model", help="the model's folder as it is published, where that is not the run's own")
    parser.add_argument("--output", help="file to write (default: README.md in the model's folder)")
    parser.add_argument("--license", help="licence of the weights (default: that of a well-known backbone)")
    parser.add_argument("--base-model", help="Hub id of the backbone, where the model does not tell it")
    parser.add_argument(
        "--dataset", dest="datasets", action="append", default=[], help="Hub id of the data; repeatable"
    )
    parser.add_argument("--language", action="append", default=[], help="code of a language of the titles; repeatable")
    parser.add_argument("--tag", dest="tags", action="append", default=[], help="a further tag; repeatable")
    parser.add_argument("--data-note", help="where the data comes from and under which terms, in whole sentences")
    parser.add_argument("--hardware", help="what the training ran on, in words")
    parser.add_argument("--watts", type=float, help="power that it drew, for an estimate of the energy")
    parser.add_argument("--template", help="another template, in Jinja2")


def run(args: argparse.Namespace) -> int:
    """Write the card, check it and print where it is; returns the exit status."""
    from llmrec.hub.model_card import write_model_card

    source = Path(args.source)
    is_run = (source / "model").is_dir()
    path = write_model_card(
        args.model or (source / "model" if is_run else source),
        repo_id=args.repo_id,
        run=source if is_run else None,
        output=args.output,
        base_model=args.base_model,
        license=args.license,
        datasets=args.datasets,
        tags=args.tags,
        language=args.language,
        data_note=args.data_note,
        hardware=args.hardware,
        watts=args.watts,
        template=args.template,
    )
    print(f"wrote {path}{'' if is_run else ', without results'}")
    return 0
