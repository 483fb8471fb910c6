"""`llmrec export`: write a model for another server, checked against the original."""

from __future__ import annotations

import argparse

NAMES = ("text-embeddings-inference", "onnx", "openvino")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `llmrec export`."""
    parser.add_argument("model", help="saved model in any form: a folder (runs/<name>/model) or a Hub id")
    parser.add_argument("--format", required=True, choices=NAMES, help="what to write")
    parser.add_argument("--output", required=True, help="folder to write; appears once the check has passed")
    parser.add_argument("--adapter", help="which of several adapters to merge (default: the model's default)")
    parser.add_argument("--revision", help="revision of the model on the Hub")
    parser.add_argument("--backbone", help="folder or Hub id of the backbone, if not where the adapter's config says")
    parser.add_argument(
        "--catalogue", help="catalogue.parquet or prepared folder with titles to check with (default: built-in titles)"
    )
    parser.add_argument(
        "--bound", type=float, default=1e-3, help="largest difference of a vector that is let pass (default: 1e-3)"
    )
    parser.add_argument(
        "--top-10-overlap", type=float, default=0.99,
        help="smallest share of equal titles among the ten best of a history (default: 0.99)",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that is there")


def run(args: argparse.Namespace) -> int:
    """Export, and print what the check found."""
    from pathlib import Path

    from llmrec.data.catalogue import Catalogue
    from llmrec.hub.formats.exporting import export_model

    titles = source = None
    if args.catalogue:
        path = Path(args.catalogue)
        catalogue = Catalogue.load(path / "catalogue.parquet" if path.is_dir() else path)
        titles, source = catalogue.titles, f"catalogue of {len(catalogue)} items"
    options = {"revision": args.revision, "default_adapter": args.adapter, "backbone": args.backbone}
    found = export_model(
        args.model,
        args.output,
        args.format,
        titles=titles,
        source=source,
        bound=args.bound,
        overlap=args.top_10_overlap,
        overwrite=args.overwrite,
        **{name: value for name, value in options.items() if value is not None},
    )
    rows = [
        ("texts", f"{found.titles} titles, {found.histories} histories ({found.source})", ""),
        ("largest difference", f"{found.largest_difference:.2e}", f"{args.bound:g}"),
        ("top-10 overlap", f"{found.top_10_overlap:.4f}", f"{args.top_10_overlap:g}"),
    ]
    if found.shapes_difference is not None:
        rows.append(("… in batches of every shape", f"{found.shapes_difference:.2e}", f"{args.bound:g}"))
    if found.other_ids is not None:
        others = found.other_ids
        rows.append(("other token ids (too long)", f"{others['titles']} titles, {others['histories']} histories", ""))
        rows.append(("… top-10 overlap with them", f"{found.overlap_with_them or 0:.4f}", ""))
    print(f"{args.format}: {args.output}")
    for name, value, limit in rows:
        print(f"  {name:<28}{value:<44}{limit}".rstrip())
    return 0
