"""`llmrec evaluate`: rank the catalogue for the users of a split and write results, ranks and a report."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `llmrec evaluate`."""
    from llmrec.evaluation.protocols import PRESETS, SEED
    from llmrec.evaluation.runner import TUNED

    parser.add_argument("model", help="saved model (a folder or a Hub id), or a run folder that holds model/")
    parser.add_argument("--data", required=True, help="prepared data folder, made by `llmrec prepare`")
    parser.add_argument(
        "--protocols",
        default="sampled,full",
        help=f"comma-separated, among {', '.join(PRESETS)} (default: sampled,full)",
    )
    parser.add_argument("--split", default="test", choices=("validation", "test"), help="users to rank (default: test)")
    parser.add_argument("--max-users", type=int, help="rank a fixed random sample of so many users")
    parser.add_argument("--sample-seed", type=int, default=0, help="seed of that sample (default: 0)")
    parser.add_argument("--seed", type=int, default=SEED, help=f"seed of the drawn candidates (default: {SEED})")
    parser.add_argument(
        "--output", help="folder for results.json, ranks.parquet and report.md (default: the run folder)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace results that are there")
    parser.add_argument("--name", default=TUNED, help=f"name of the model in the report (default: {TUNED})")
    parser.add_argument(
        "--baseline-backbone", help="folder or Hub id of the untuned backbone, if not where it came from"
    )
    parser.add_argument("--no-untuned", action="store_true", help="leave the untuned backbone out")
    parser.add_argument("--resamples", type=int, default=1000, help="bootstrap resamples (default: 1000)")
    parser.add_argument("--batch-tokens", type=int, help="tokens of a batch when encoding")
    parser.add_argument("--device", help="cpu, cuda, … (default: cuda if there is one)")
    parser.add_argument("--no-progress", action="store_true", help="show no progress bars")


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the table, write the files."""
    import torch

    from llmrec.data.prepared import load_prepared
    from llmrec.evaluation.encode import embedding_scorer, untuned_twin
    from llmrec.evaluation.intervals import Bootstrap
    from llmrec.evaluation.protocols import get_protocol
    from llmrec.evaluation.results import check_free
    from llmrec.evaluation.runner import POPULARITY, UNTUNED, EvaluationData, evaluate_systems, sample_rows
    from llmrec.hub.loading import load_model

    # All that can be refused is refused before the long work.
    model_path, run_folder = find_model(args.model)
    output = args.output or run_folder
    if output is None:
        raise ValueError(f"{args.model} is not a run folder: say with --output where the results go")
    if args.name in (POPULARITY, UNTUNED):
        raise ValueError(f"--name {args.name} is the name of a baseline: choose another")
    check_free(output, args.overwrite)
    protocols = [get_protocol(name.strip(), seed=args.seed) for name in args.protocols.split(",") if name.strip()]
    bootstrap = Bootstrap(resamples=args.resamples)
    data = EvaluationData.from_prepared(load_prepared(args.data), args.split)
    rows = sample_rows(len(data), args.max_users, args.sample_seed)
    progress = not args.no_progress
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    tuned, processor = load_model(model_path)
    models = (
        {} if args.no_untuned else {UNTUNED: untuned_twin(tuned.config, processor.tokenizer, args.baseline_backbone)}
    )
    models[args.name] = tuned
    scorers = [
        embedding_scorer(
            name,
            model.to(device),
            processor,
            data,
            rows=rows,
            progress=progress,
            batch_tokens=args.batch_tokens,
        )
        for name, model in models.items()
    ]
    evaluation = evaluate_systems(scorers, data, protocols, rows=rows, bootstrap=bootstrap, progress=progress)
    print(evaluation.table())
    folder = evaluation.save(output, overwrite=args.overwrite)
    print(f"wrote results.json, ranks.parquet and report.md to {folder}")
    return 0


def find_model(name: str) -> tuple[str, Path | None]:
    """The model to load, and the run folder if `name` is one.

    Raises:
        FileNotFoundError: a folder that holds no model.
    """
    folder = Path(name)
    if (folder / "model" / "config.json").is_file():
        return str(folder / "model"), folder
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{name}: holds neither config.json (a model) nor model/config.json (a run)")
    return name, None
