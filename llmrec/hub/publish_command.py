"""`python push_to_hub.py RUN ORG/NAME`: arguments, and what is printed when it fails."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

DESCRIPTION = "Publish a trained model on the Hugging Face Hub, so that a stranger loads it in one line."
EPILOG = """examples:
  python push_to_hub.py runs/food_kitchen org/llmrec-minilm-food-kitchen --dry-run
  python push_to_hub.py runs/food_kitchen org/llmrec-minilm-food-kitchen --private --tag v1.0
  python push_to_hub.py runs/food org/llmrec-minilm-shop --name food --also books=runs/books --default books
"""


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="push_to_hub.py",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="RUN", help="a run folder (runs/<name>), or a model folder")
    parser.add_argument("repo_id", metavar="ORG/NAME", help="the repository; made if it does not exist")
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--adapter-only", dest="form", action="store_const", const="adapter",
        help="adapters over a backbone that stays in its own repository (default if that is how the run saved them)",
    )  # fmt: skip
    form.add_argument("--merge", dest="form", action="store_const", const="merged", help="all weights, adapters added")
    parser.set_defaults(form="auto")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to commit to; made if it does not exist")
    parser.add_argument("--create-pr", action="store_true", help="propose a pull request instead of committing")
    parser.add_argument("--dry-run", action="store_true", help="list the files, their sizes and contents; send nothing")
    parser.add_argument("--tag", dest="tags", nargs="+", default=[], metavar="TAG", help="names for the commit")
    parser.add_argument(
        "--backbone", metavar="ORG/NAME", help="repository of the backbone, if the model has a path there"
    )
    parser.add_argument(
        "--backbone-revision", metavar="COMMIT", help="of the backbone; by default the model's, else its newest"
    )
    parser.add_argument("--name", help="call the model's own adapter so")
    parser.add_argument(
        "--also", action="append", default=[], type=_named_folder, metavar="NAME=RUN",
        help="publish a further adapter over the same backbone under this name; may be repeated",
    )  # fmt: skip
    parser.add_argument("--default", metavar="NAME", help="the adapter that is active after loading")
    parser.add_argument(
        "--catalogue",
        metavar="FOLDER",
        help="a prepared folder, or its catalogue.parquet: publish the items with vectors",
    )
    parser.add_argument("--license", help="licence of the weights, such as apache-2.0; by default the backbone's")
    parser.add_argument("--language", nargs="+", default=[], metavar="CODE", help="languages of the titles, such as en")
    parser.add_argument("--dataset", nargs="+", default=[], metavar="ORG/NAME", help="data sets it was trained on")
    parser.add_argument("--commit-message", help="says what changed")
    parser.add_argument(
        "--no-verify", action="store_true", help="do not load it from the Hub afterwards to compare its scores"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Publish; returns the exit status, 1 for whatever the user can set right."""
    arguments = build_parser().parse_args(argv)
    # After the arguments: they bring torch.
    from llmrec.hub.contents import UnpublishableError
    from llmrec.hub.hub_errors import PublishError
    from llmrec.hub.publish import publish

    card = {"license": arguments.license, "language": arguments.language, "datasets": arguments.dataset}
    try:
        publish(
            arguments.source,
            arguments.repo_id,
            form=arguments.form,
            private=arguments.private,
            revision=arguments.revision,
            create_pr=arguments.create_pr,
            dry_run=arguments.dry_run,
            backbone=arguments.backbone,
            backbone_revision=arguments.backbone_revision,
            also=dict(arguments.also),
            name=arguments.name,
            default=arguments.default,
            tags=arguments.tags,
            catalogue=arguments.catalogue,
            verify=not arguments.no_verify,
            commit_message=arguments.commit_message,
            card={key: value for key, value in card.items() if value},
        )
    except (PublishError, UnpublishableError) as error:
        print(f"push_to_hub.py: error: {error}", file=sys.stderr)
        return 1
    return 0


def _named_folder(text: str) -> tuple[str, str]:
    name, separator, folder = text.partition("=")
    if not (name and separator and folder):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=RUN, such as books=runs/books")
    return name, folder
