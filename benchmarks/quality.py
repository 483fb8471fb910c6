"""Does fast training cost quality? The authors' recipe and ours after the same number of examples, several seeds.

    python benchmarks/quality.py --data prepared/food_kitchen --examples 1440 --seeds 1 2 3 --output quality.json

Recipes, all of them full fine-tuning of the same backbone on the same examples in batches of 96:

- `paper`: preset `paper` with the authors' optimiser: softmax over the target and 10 negatives of its own, drawn
  uniformly from the target's domain; raw dot products; one prefix at a time; float32.
- `fast`: what a user gets who asks for speed: preset `default` (cosines over a temperature), negatives shared by the
  batch within each domain, logQ correction, packed texts, precision `auto`.
- `fast-paper`: the text layout, vectors and optimiser of `paper` with the shared negatives of `fast`: the technique
  alone.

All three read packed texts. That changes the time of the paper's recipe and not its gradients, dropout's random
numbers aside (tests/modeling/test_packing.py); its own speed is measured by benchmarks/training.py, which pads.

Each run is a process of its own, and a finished run in --work is not run again. NDCG@10 of every test user is
averaged over the seeds, and the difference of two recipes has a paired bootstrap interval over users.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 96
PAPER = {
    "preset": "paper",
    "learning_rate": 5e-5,
    "adam_epsilon": 1e-4,
    "weight_decay": 1e-3,
    "warmup_steps": 0.001,
    "max_grad_norm": 1.0,
}
SHARED = {"contrastive_loss": "in_batch", "logq_correction": True, "shared_negatives": 32}
RECIPES: dict[str, dict[str, Any]] = {
    "paper": {**PAPER, "contrastive_loss": "sampled_softmax", "negatives_per_example": 10, "precision": "fp32"},
    "fast": {**SHARED, "learning_rate": 5e-5},
    "fast-paper": {**PAPER, **SHARED},
}
PROTOCOLS = ("sampled", "full")


def train_and_rank(settings: dict[str, Any]) -> None:
    """One run, in this process: writes ranks.npz and facts.json into its folder."""
    import torch
    from transformers import set_seed

    from llmrec.data.prepared import load_prepared
    from llmrec.data.title_tokens import TitleTokens
    from llmrec.evaluation.protocols import get_protocol
    from llmrec.evaluation.ranker import rank
    from llmrec.evaluation.runner import EvaluationData, sample_rows
    from llmrec.retrieval.scorers import EmbeddingScorer
    from llmrec.training.arguments import LLMRecTrainingArguments
    from llmrec.training.model import build_model
    from llmrec.training.model_arguments import ModelArguments
    from llmrec.training.run import build_trainer
    from llmrec.training.tuning import apply_tuning
    from llmrec.training.validation import embed

    torch.set_num_threads(settings["threads"])
    recipe = dict(RECIPES[settings["recipe"]])
    names = set(ModelArguments.__dataclass_fields__)
    model_arguments = ModelArguments(
        backbone=settings["backbone"],
        tuning="full",
        **{name: recipe.pop(name) for name in list(recipe) if name in names},
    )
    arguments = LLMRecTrainingArguments(
        run_dir=settings["folder"], seed=settings["seed"], max_train_examples=settings["examples"],
        per_device_train_batch_size=BATCH, eval_strategy="no", save_strategy="no", logging_steps=1, **recipe,
    )  # fmt: skip
    set_seed(arguments.seed)
    model, processor = build_model(model_arguments)
    arguments.resolve_defaults("full", model.config.contrastive_loss)
    data = load_prepared(settings["data"])
    title_tokens = TitleTokens.from_titles(processor, data.catalogue.titles)
    facts: dict[str, Any] = {"precision": arguments.resolved_precision}
    trainer = build_trainer(apply_tuning(model, model_arguments), processor, title_tokens, data, arguments)
    start = time.perf_counter()
    trainer.train()
    facts["seconds"] = time.perf_counter() - start
    facts["log"] = [entry for entry in trainer.state.log_history if "loss" in entry]
    split = EvaluationData.from_prepared(data, "test")
    # The same users for every seed, so that they can be averaged over.
    rows = sample_rows(len(split), settings["test_users"], 0)
    vectors = embed(model, processor, title_tokens, split.histories, rows, progress=True)
    scorer = EmbeddingScorer("model", vectors.users, vectors.items, rows=rows)
    ranks = {
        protocol: rank(
            scorer, histories=split.histories, targets=split.targets,
            domain_codes=np.asarray(data.catalogue.domain_codes), protocol=get_protocol(protocol), rows=rows,
            domain_names=data.catalogue.domain_names,
        ).ranks
        for protocol in PROTOCOLS
    }  # fmt: skip
    folder = Path(settings["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "ranks.npz", **ranks)
    (folder / "facts.json").write_text(json.dumps(facts))


def run_all(arguments: argparse.Namespace) -> dict[str, list[Path]]:
    """Every recipe with every seed, one after the other; returns the folders by recipe."""
    folders: dict[str, list[Path]] = {}
    jobs = [(recipe, seed) for seed in arguments.seeds for recipe in arguments.recipes]
    for recipe, seed in jobs:
        folder = Path(arguments.work) / f"{recipe}-{arguments.examples}-{arguments.test_users}-{seed}"
        folders.setdefault(recipe, []).append(folder)
        if (folder / "facts.json").exists():
            continue
        settings = {
            "recipe": recipe, "seed": seed, "folder": str(folder), "data": arguments.data,
            "backbone": arguments.backbone, "examples": arguments.examples, "test_users": arguments.test_users,
            "threads": arguments.threads,
        }  # fmt: skip
        print(f"{recipe}, seed {seed} ...", flush=True)
        environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
        subprocess.run(
            [sys.executable, __file__, "--one", json.dumps(settings)], check=True, env=environment, stdout=sys.stderr
        )
    return folders


def compare(folders: dict[str, list[Path]]) -> dict[str, Any]:
    """NDCG@10 by recipe, protocol and seed, and the paired differences to the paper's recipe."""
    from llmrec.evaluation.intervals import mean_interval
    from llmrec.evaluation.metrics import calc_metric

    values: dict[str, dict[str, np.ndarray]] = {}
    rows: list[dict[str, Any]] = []
    for recipe, each in folders.items():
        ranks = [np.load(folder / "ranks.npz") for folder in each]
        facts = [json.loads((folder / "facts.json").read_text()) for folder in each]
        values[recipe] = {}
        for protocol in PROTOCOLS:
            per_seed = np.stack([calc_metric("ndcg@10", one[protocol]) for one in ranks])
            values[recipe][protocol] = per_seed.mean(axis=0)
            rows.append(
                {
                    "recipe": recipe, "protocol": protocol, "ndcg@10": float(per_seed.mean()),
                    "by_seed": per_seed.mean(axis=1).tolist(),
                    "seconds": [one["seconds"] for one in facts],
                    "precision": facts[0]["precision"],
                }
            )  # fmt: skip
    differences = []
    for recipe in folders:
        if recipe == "paper" or "paper" not in folders:
            continue
        for protocol in PROTOCOLS:
            found = mean_interval(values[recipe][protocol] - values["paper"][protocol])
            differences.append(
                {"recipe": recipe, "minus": "paper", "protocol": protocol, "difference": found.value,
                 "low": found.low, "high": found.high}
            )  # fmt: skip
    return {"rows": rows, "differences": differences}


def print_tables(result: dict[str, Any]) -> None:
    """NDCG@10 in %, by recipe and protocol."""
    print(f"{'recipe':<12}{'protocol':<10}{'NDCG@10 %':>10}   by seed")
    for row in result["rows"]:
        seeds = "  ".join(f"{100 * value:.2f}" for value in row["by_seed"])
        print(f"{row['recipe']:<12}{row['protocol']:<10}{100 * row['ndcg@10']:>10.2f}   {seeds}")
    print("\ndifference to the paper's recipe, points of NDCG@10, 95 % paired interval over users")
    for row in result["differences"]:
        print(
            f"{row['recipe']:<12}{row['protocol']:<10}{100 * row['difference']:>+8.2f}   "
            f"({100 * row['low']:+.2f} to {100 * row['high']:+.2f})"
        )


def main() -> None:
    """Run, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="prepared data")
    parser.add_argument("--backbone", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--examples", type=int, default=1440)
    parser.add_argument("--test-users", type=int, default=1500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", default="runs/quality", help="folder of the single runs")
    parser.add_argument("--output", help="JSON file")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        train_and_rank(json.loads(arguments.one))
        return
    if not arguments.data:
        parser.error("--data is needed: a folder made by `llmrec prepare`")
    result = compare(run_all(arguments))
    print_tables(result)
    if arguments.output:
        from llmrec.evaluation.results import versions

        settings = {name: value for name, value in vars(arguments).items() if name not in ("one", "output", "work")}
        command = "python " + " ".join(sys.argv)
        content = {"command": command, "settings": settings, "batch": BATCH, "recipes": RECIPES, **result}
        content["versions"] = versions()
        Path(arguments.output).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
