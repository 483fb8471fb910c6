"""A run folder without a training: made-up ranks, a recipe, plots, and the config of a model."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import yaml

from llmrec.evaluation import Bootstrap, EmbeddingScorer, EvaluationData, Histories, Protocol, evaluate_systems

HASH = "0123456789abcdef" * 4
TRAINING = {
    "backbone": "sentence-transformers/all-MiniLM-L6-v2", "tuning": "lora", "trained_parameters": 663552,
    "parameters": 23376000, "examples_available": 900, "examples_used": 800, "examples_seen": 800, "epochs": 1.0,
    "steps": 25, "best_step": 20, "best_metric": 0.0833, "metric_for_best_model": "eval_ndcg@10", "first_loss": 4.7,
    "last_loss": 4.1, "seconds": 812.3, "precision": "fp32", "processes": 1, "device": "cpu", "threads": 1,
    "batch_size": 64, "seed": 42,
}  # fmt: skip
RECIPE = {
    "backbone": "sentence-transformers/all-MiniLM-L6-v2", "preset": "default", "tuning": "lora", "lora_r": 16,
    "lora_alpha": 32, "lora_dropout": 0.05, "lora_target_modules": ["all-linear"], "contrastive_loss": "in_batch",
    "data": "prepared/nowhere", "num_train_epochs": 1.0, "max_steps": -1, "learning_rate": 0.001,
    "warmup_steps": 0.05, "weight_decay": 0.01, "seed": 42, "early_stopping_patience": None,
}  # fmt: skip
CONFIG = {
    "model_type": "llmrec", "backbone_name_or_path": "sentence-transformers/all-MiniLM-L6-v2",
    "backbone_revision": "0" * 40, "text_config": {"model_type": "bert", "hidden_size": 384}, "max_title_tokens": 32,
    "max_history_items": 5, "adapters": {"default": "adapters/default"}, "default_adapter": "default",
}  # fmt: skip


def make_run(
    folder: Path, *, domains: tuple[str, ...] = ("Food", "A|B <Kitchen>"), users: int = 120, plots: bool = True
) -> Path:
    """A finished run, whose ranks are those of random vectors."""
    rng, items = np.random.default_rng(0), 80
    generator = torch.Generator().manual_seed(0)
    catalogue = SimpleNamespace(
        item_ids=[f"i{n}" for n in range(items)],
        domain_names=sorted(domains),
        domain_codes=np.arange(items) % len(domains),
        train_count=rng.choice([0, 1, 3, 6, 20, 21, 100], size=items),
    )
    data = EvaluationData(
        split="test",
        user_ids=[f"u{n}" for n in range(users)],
        histories=Histories.of([rng.integers(0, items, rng.integers(1, 9)) for _ in range(users)]),
        targets=rng.integers(0, items, users),
        catalogue=catalogue,
        card={"name": "shop", "hash": HASH, "split": "leave-one-out", "order_policy": "time"},
    )
    scorers = [
        EmbeddingScorer(name, *(torch.randn(n, 8, generator=generator) for n in (users, items)))
        for name in ("untuned", "tuned")
    ]
    protocols = (Protocol("sampled", "sampled", n_negatives=30), "full")
    evaluation = evaluate_systems(scorers, data, protocols, bootstrap=Bootstrap(resamples=20), progress=False)
    command = ["train.py", "configs/shop.yaml", "--run_dir", "/somewhere/private/runs/shop", "--data=C:\\me\\shop"]
    evaluation.save(folder, command=command, report=plots, extra={"training": TRAINING})
    (folder / "config.yaml").write_text(yaml.safe_dump(RECIPE))
    make_model_folder(folder / "model")
    return folder


def make_model_folder(folder: Path, **changes: object) -> Path:
    """The config of a model, and a file of 2 kB in the place of its weights."""
    (folder / "adapters" / "default").mkdir(parents=True)
    (folder / "adapters" / "default" / "adapter_model.safetensors").write_bytes(bytes(2000))
    (folder / "modules.json").write_text("[]")
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    return folder
