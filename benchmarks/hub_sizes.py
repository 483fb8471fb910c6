"""How large is what goes to the Hub? One model over MiniLM in every form, staged as `push_to_hub.py` stages it.

    python benchmarks/hub_sizes.py --output benchmarks/results/hub_sizes.json
    python benchmarks/hub_sizes.py --run runs/food_kitchen --output sizes.json

Without --run the adapters are those of the default recipe (LoRA of rank 16 over every linear layer) with made-up
numbers: sizes do not depend on them. With --run the run's own adapters, card and plots are counted.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from llmrec.backbones import MINILM
from llmrec.hub.export import save_model
from llmrec.hub.publish import PublishReport, publish, size_text
from llmrec.training.model import build_model
from llmrec.training.model_arguments import ModelArguments
from llmrec.training.tuning import apply_tuning

GROUPS = {
    "weights": ("weights", "weights index", "adapter", "adapter configuration"),
    "tokenizer": ("tokenizer",),
    "code": ("code",),
    "card": ("card", "plot", "results"),
}


def made_up_adapter(folder: Path, seed: int) -> Path:
    """A model folder as the default recipe writes it, whose adapters are random."""
    torch.manual_seed(seed)
    arguments = ModelArguments(backbone=MINILM, tuning="lora")
    model, processor = build_model(arguments)
    model = apply_tuning(model, arguments)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01 * torch.randn_like(parameter))
    save_model(model, processor, folder, form="adapter")
    return folder


def measure(name: str, report: PublishReport) -> dict[str, Any]:
    """Bytes of a form, by what they are for."""
    row: dict[str, Any] = {"form": name, "files": len(report.entries), "bytes": report.total_bytes}
    for group, kinds in GROUPS.items():
        row[group] = sum(entry.size for entry in report.entries if entry.kind in kinds)
    row["rest"] = row["bytes"] - sum(row[group] for group in GROUPS)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="a run with adapters over MiniLM, instead of made-up ones")
    parser.add_argument("--output", help="write the table as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        first = Path(arguments.run) if arguments.run else made_up_adapter(Path(scratch) / "first", 0)
        # The same adapter twice is as large as two.
        second = first if arguments.run else made_up_adapter(Path(scratch) / "second", 1)
        options: dict[str, dict[str, Any]] = {
            "one adapter": {"form": "adapter"},
            "two adapters": {"form": "adapter", "name": "groceries", "also": {"books": second}},
            "merged": {"form": "merged"},
        }
        rows = [
            measure(name, publish(first, "org/sizes", dry_run=True, quiet=True, **chosen))
            for name, chosen in options.items()
        ]
        full = Path(scratch) / "full"
        save_model(*build_model(ModelArguments(backbone=MINILM, tuning="full")), full)
        rows.append(measure("full", publish(full, "org/sizes", dry_run=True, quiet=True)))
    columns = ["form", "files", *GROUPS, "rest", "bytes"]
    print("  ".join(f"{column if column != 'bytes' else 'in all':>12}" for column in columns))
    for row in rows:
        cells = [row["form"], str(row["files"]), *(size_text(row[column]) for column in columns[2:])]
        print("  ".join(f"{cell:>12}" for cell in cells))
    if arguments.output:
        from llmrec.evaluation.results import versions

        content = {"benchmark": "hub_sizes", "command": ["python", *sys.argv], "backbone": MINILM, "rows": rows,
                   "versions": versions()}  # fmt: skip
        Path(arguments.output).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
