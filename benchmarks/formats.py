"""One repository, every way to run it: how far each is from the model itself.

    python benchmarks/formats.py --titles ../shared/data/food_kitchen/items.parquet --weights ../shared/weights
    python benchmarks/formats.py --titles items.parquet --model runs/food_kitchen/model

For each family an adapter repository is made (LoRA over all linear layers, random and small, a projection to 64) and
loaded by `pipeline`, by `SentenceTransformer` and, merged, by each format of `llmrec export`; with --model that one
repository is. MiniLM, BART and Llama have trained weights, the others random ones. Differences are those of
`llmrec/hub/formats/check.py`, on 1,000 titles and 200 histories of them. Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from training_sides.machine import hardware, versions

from llmrec.hub.export import save_model
from llmrec.hub.formats import FORMATS, ExportRefusedError, export_model
from llmrec.hub.formats.check import Reference, sample_texts, top_overlap
from llmrec.hub.loading import load_model
from modeling_llmrec import LLMRecModel, LLMRecProcessor
from modeling_llmrec.ranking import dot_products

ROOT = Path(__file__).resolve().parents[1]
RESULT = Path(__file__).parent / "results" / "formats.json"
LORA_SCALE = 0.02


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--titles", type=Path, required=True, help="Parquet file with a column `title`")
    parser.add_argument("--model", help="measure this saved model instead of one of each family")
    parser.add_argument("--weights", type=Path, help="folder with the small weights and tokenizers of the families")
    parser.add_argument("--families", help="comma-separated (default: all)")
    parser.add_argument("--formats", default=",".join(FORMATS), help="comma-separated (default: all)")
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))

    column = pl.read_parquet(args.titles)["title"].drop_nulls().to_list()
    titles = [title for title in column if title.strip()]
    source = f"{args.titles.parent.name}, {len(titles)} titles"
    facts = {"titles": source, "hardware": hardware("cpu", torch.get_num_threads()), "versions": versions()}
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, folder in repositories(args, Path(scratch)):
            results[name] = measure(folder, titles, source, args.formats.split(","), Path(scratch))
            for way, row in results[name].items():
                print(_line(name, way, row), flush=True)
            args.output.parent.mkdir(parents=True, exist_ok=True)
            args.output.write_text(json.dumps({**facts, "results": results}, indent=2) + "\n", encoding="utf-8")
    return 0


def repositories(args: argparse.Namespace, scratch: Path) -> Any:
    """Name and folder of each repository."""
    if args.model:
        yield Path(args.model).name, args.model
        return
    sys.path.insert(0, str(ROOT))
    from peft import LoraConfig, get_peft_model

    from llmrec.backbones import MINILM, resolve_backbone
    from tests.modeling.families import FAMILIES, backbone_folder

    for family in args.families.split(",") if args.families else FAMILIES:
        source = backbone_folder(family, resolve_backbone(MINILM), args.weights, scratch / f"backbone-{family}")
        torch.manual_seed(0)
        model = LLMRecModel.from_backbone(source, projection_dim=64)
        processor = LLMRecProcessor.from_backbone(source, config=model.config)
        config = LoraConfig(
            r=8, target_modules="all-linear", exclude_modules=["head.projection"], modules_to_save=["head"]
        )
        peft_model = get_peft_model(model, config)
        with torch.no_grad():
            for parameter in peft_model.parameters():
                if parameter.requires_grad:
                    parameter.add_(LORA_SCALE * torch.randn_like(parameter))
        save_model(peft_model, processor, scratch / family, form="adapter")
        yield family, str(scratch / family)


def measure(folder: str, titles: list[str], source: str, formats: list[str], scratch: Path) -> dict[str, Any]:
    """What each way gives, by its name."""
    model, processor = load_model(folder)
    reference = Reference(model, processor, sample_texts(processor.config, titles, source))
    rows = {
        "pipeline": _timed(lambda: _pipeline(folder, reference)),
        "SentenceTransformer": _timed(lambda: _sentence_transformer(folder, reference)),
    }
    for name in formats:
        rows[name] = _timed(
            lambda name=name: _export(folder, scratch / f"{Path(folder).name}-{name}", name, titles, source)  # type: ignore[misc]
        )
    return rows


def _pipeline(folder: str, reference: Reference) -> dict[str, Any]:
    from transformers import pipeline

    sample = reference.sample
    recommend = pipeline("recommendation", model=folder, trust_remote_code=True, device="cpu", candidates=sample.titles)
    answers = recommend(sample.histories, k=len(sample.titles), exclude_history=False)
    place = {title: column for column, title in enumerate(sample.titles)}
    theirs = torch.empty(len(answers), len(place))
    for row, answer in enumerate(answers):
        theirs[row, [place[item["title"]] for item in answer]] = torch.tensor([item["score"] for item in answer])
    ours = dot_products(reference.users, reference.items)
    return {
        "largest_difference": float((ours - theirs).abs().max()),
        "top_10_overlap": top_overlap(ours, theirs),
        "of": "scores",
    }


def _sentence_transformer(folder: str, reference: Reference) -> dict[str, Any]:
    from sentence_transformers import SentenceTransformer

    sentences = SentenceTransformer(folder, trust_remote_code=True, device="cpu")
    sample = reference.sample
    return asdict(
        reference.check(
            lambda _: np.asarray(sentences.encode(sample.titles)),
            lambda _: np.asarray(sentences.encode([{"text": history} for history in sample.histories])),
            shapes=False,
        )
    )


def _export(folder: str, output: Path, name: str, titles: list[str], source: str) -> dict[str, Any]:
    try:
        found = export_model(folder, output, name, titles=titles, source=source)
    except ExportRefusedError as error:
        return {"refused": str(error)}
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    return {**asdict(found), "megabytes": round(size / 1e6, 1)}


def _timed(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    start = time.perf_counter()
    return {**work(), "seconds": round(time.perf_counter() - start, 1)}


def _line(name: str, way: str, row: dict[str, Any]) -> str:
    if "refused" in row:
        return f"{name:<12}{way:<28}refused: {row['refused'][:90]}"
    others = row.get("other_ids")
    note = f"  {others['titles']} titles, {others['histories']} histories too long" if others else ""
    return f"{name:<12}{way:<28}{row['largest_difference']:.1e}  {row['top_10_overlap']:.4f}{note}"


if __name__ == "__main__":
    sys.exit(main())
