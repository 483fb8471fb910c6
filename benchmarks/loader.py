"""How many tokens a second the input side makes ready, without any model.

    python benchmarks/loader.py
    python benchmarks/loader.py --data runs/prepared --backbone sentence-transformers/all-MiniLM-L6-v2

Everything from the order of the epoch to the tensors of a batch: sampler, examples, negatives, candidate masks and
layout, in one process and through the DataLoader that training uses. Without --data on a made-up shop whose title and
history lengths are those of Amazon reviews; its tokenizer knows whole words, which matters for the first figure only
(titles are tokenised once). Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader
from training_sides.machine import hardware, versions
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llmrec.data.prepared import load_prepared
from llmrec.data.title_tokens import TitleTokens
from llmrec.evaluation.histories import Histories
from llmrec.training.collator import Collator, Loss
from llmrec.training.examples import PrefixExamples, split_histories
from llmrec.training.layout import fill_rate, tokens
from llmrec.training.negatives import NegativeSampler
from llmrec.training.sampling import EpochSampler
from llmrec.training.titles import TitleClasses
from modeling_llmrec import LLMRecConfig, LLMRecProcessor

RESULT = Path(__file__).parent / "results" / "loader.json"
WORDS = 5000
# Log-normal fits to 43k Amazon titles in MiniLM's tokens and to 17k users' histories.
TITLE_LOG_MEAN, TITLE_LOG_DEVIATION = 2.75, 0.40
HISTORY_LOG_MEAN, HISTORY_LOG_DEVIATION = 2.40, 0.70


@dataclass(frozen=True)
class Shop:
    """What batches are made of."""

    label: str
    titles: list[str]
    domain_codes: np.ndarray
    domain_names: list[str]
    histories: Histories
    tokenizer: Any


@dataclass(frozen=True)
class Variant:
    """One way to make batches."""

    name: str
    loss: Loss
    negatives: int
    causal: bool
    options: dict[str, Any]


VARIANTS = (
    Variant("padded, 10 own negatives (paper)", "sampled_softmax", 10, True, {"packing": "off"}),
    Variant("segments, 10 own negatives", "sampled_softmax", 10, False, {"packing": "segments"}),
    Variant("segments, 256 shared negatives", "in_batch", 0, False, {"packing": "segments", "shared_negatives": 256}),
    Variant("mask, 256 shared negatives", "in_batch", 0, False, {"packing": "mask", "shared_negatives": 256}),
    Variant("flash, 256 shared negatives", "in_batch", 0, False, {"packing": "flash", "shared_negatives": 256}),
    Variant(
        "segments, prefixes shared, 256 shared negatives", "in_batch", 0, True,
        {"packing": "segments", "share_prefixes": True, "shared_negatives": 256},
    ),
    Variant(
        "the same in passes of 4,096 tokens", "in_batch", 0, True,
        {"packing": "segments", "share_prefixes": True, "shared_negatives": 256, "max_pass_tokens": 4096},
    ),
)  # fmt: skip


def made_up_shop(users: int, items: int, seed: int) -> Shop:
    """Titles of random words and histories of random items, as long as real ones."""
    rng = np.random.default_rng(seed)
    words = np.array([f"w{number}" for number in range(WORDS)])
    lengths = np.clip(np.exp(rng.normal(TITLE_LOG_MEAN, TITLE_LOG_DEVIATION, items)).round().astype(int), 2, 60) - 1
    titles = [" ".join(words[rng.integers(0, WORDS, length)]) for length in lengths]
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", ";", *words])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    events = np.clip(np.exp(rng.normal(HISTORY_LOG_MEAN, HISTORY_LOG_DEVIATION, users)).round().astype(int), 3, 200)
    # Cubes of uniform numbers: a few popular items, a long tail of others.
    histories = Histories.of([(items * rng.random(length) ** 3).astype(np.int64) for length in events])
    codes = np.arange(items, dtype=np.int32) % 2
    return Shop(f"made up: {users:,} users, {items:,} titles", titles, codes, ["a", "b"], histories, tokenizer)


def prepared_shop(folder: Path, backbone: str) -> Shop:
    """Prepared data, and the tokenizer of a backbone."""
    data = load_prepared(folder)
    catalogue = data.catalogue
    return Shop(
        f"the prepared data in {folder.name}", catalogue.titles, np.asarray(catalogue.domain_codes),
        catalogue.domain_names, split_histories(data.train), AutoTokenizer.from_pretrained(backbone),
    )  # fmt: skip


def processor_of(shop: Shop, causal: bool) -> LLMRecProcessor:
    """The layout of a decoder (end token, read there) or of an encoder (start and end token, mean)."""
    tokenizer = shop.tokenizer
    # Not every tokenizer has all of these; any special token stands for the ones that a preset would choose.
    end = tokenizer.sep_token or tokenizer.eos_token
    start = tokenizer.cls_token or end
    config = LLMRecConfig(
        text_config={"model_type": "opt" if causal else "bert"}, pooling="last" if causal else "mean",
        prefix_tokens=[] if causal else [start], suffix_tokens=[end],
    )  # fmt: skip
    return LLMRecProcessor(tokenizer, config=config)


def make_loader(shop: Shop, title_tokens: TitleTokens, variant: Variant, batch_size: int, seed: int) -> DataLoader:
    """The training's loader of one variant."""
    processor = processor_of(shop, variant.causal)
    shared = bool(variant.options.get("share_prefixes"))
    examples = PrefixExamples(shop.histories, processor.config.max_history_items, by_user=shared)
    classes = TitleClasses(title_tokens, shop.domain_codes)
    sampler = NegativeSampler(classes, shop.domain_codes, shop.domain_names, variant.negatives, seed=seed)
    collator = Collator(
        processor, title_tokens, shop.histories, classes, shop.domain_codes, sampler, variant.loss, **variant.options
    )
    order = EpochSampler(examples, seed)
    return DataLoader(examples, batch_size, sampler=order, collate_fn=collator)


def count(batch: dict[str, Any]) -> tuple[int, int]:
    """Tokens of a batch, and slots that hold them."""
    if "texts" in batch:
        real = tokens(batch["texts"])
        return real, round(real / fill_rate(batch["texts"]))
    masks = batch["attention_mask"], batch["item_attention_mask"]
    return int(sum(mask.sum() for mask in masks)), sum(mask.numel() for mask in masks)


def measure(loader: DataLoader, batches: int) -> dict[str, Any]:
    """Seconds, examples and tokens of some batches of an epoch; counting is not part of the time."""
    real = slots = examples = candidates = texts = 0
    stream: Iterator[dict[str, Any]] = iter(loader)
    next(stream)  # what is made once, and caches that are still cold
    seconds = 0.0
    for _ in range(batches):
        start = time.perf_counter()
        batch = next(stream, None)
        seconds += time.perf_counter() - start
        if batch is None:
            break
        batch_tokens, batch_slots = count(batch)
        real, slots = real + batch_tokens, slots + batch_slots
        examples += len(batch["positive_index"])
        candidates += int(batch["candidate_mask"].sum())
        texts += batch["candidate_mask"].shape[1]
    return {
        "seconds": seconds,
        "tokens_per_second": round(real / seconds),
        "examples_per_second": round(examples / seconds),
        "tokens_per_example": round(real / examples, 1),
        "titles_per_example": round(texts / examples, 1),
        "negatives_per_example": round(candidates / examples - 1, 1),
        "fill_rate": round(real / slots, 4),
    }


def measure_titles(shop: Shop) -> tuple[TitleTokens, dict[str, Any]]:
    """Title tokens from an empty cache, and from a full one."""
    processor = processor_of(shop, False)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        made = TitleTokens.cached(processor, shop.titles, folder)
        middle = time.perf_counter()
        TitleTokens.cached(processor, shop.titles, folder)
        end = time.perf_counter()
        # Copies, because the mapped file goes away with its folder.
        kept = TitleTokens(made.flat.copy(), made.offsets.copy())
    figures = {
        "titles": len(kept),
        "tokens": len(kept.flat),
        "tokens_per_title": round(len(kept.flat) / len(kept), 2),
        "tokenise_and_write_seconds": round(middle - start, 3),
        "map_again_seconds": round(end - middle, 3),
    }
    return kept, figures


def table(rows: list[dict[str, Any]]) -> str:
    """The figures as text."""
    head = f"{'variant':50}{'tokens/s':>12}{'examples/s':>12}{'tokens/ex.':>12}{'negatives/ex.':>15}{'fill rate':>11}"
    lines = [
        f"{row['variant']:50}{row['tokens_per_second']:12,}{row['examples_per_second']:12,}"
        f"{row['tokens_per_example']:12,.1f}{row['negatives_per_example']:15,.1f}{row['fill_rate']:11.3f}"
        for row in rows
    ]
    return "\n".join([head, *lines])


def main() -> None:
    """Make or load the data, measure every variant in turn, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of prepared data (default: a made-up shop)")
    parser.add_argument("--backbone", help="whose tokenizer reads --data")
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--items", type=int, default=40_000)
    parser.add_argument("--batch_size", type=int, default=96)
    parser.add_argument("--batches", type=int, default=40, help="batches of each variant in each turn")
    parser.add_argument("--turns", type=int, default=3, help="the median of the turns counts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULT, help="JSON file for the result")
    args = parser.parse_args()
    if args.data is not None and args.backbone is None:
        parser.error("--data needs --backbone, whose tokenizer reads it")
    machine = hardware("cpu", torch.get_num_threads())
    if args.data is None:
        shop = made_up_shop(args.users, args.items, args.seed)
    else:
        shop = prepared_shop(args.data, args.backbone)
    title_tokens, titles = measure_titles(shop)
    loaders = [make_loader(shop, title_tokens, variant, args.batch_size, args.seed) for variant in VARIANTS]
    # In turn, so that a busy moment of the machine does not hit one variant alone.
    turns = [[measure(loader, args.batches) for loader in loaders] for _ in range(args.turns)]
    rows = []
    for number, variant in enumerate(VARIANTS):
        measured = sorted((turn[number] for turn in turns), key=lambda figures: figures["seconds"])
        median = measured[len(measured) // 2]
        rows.append({"variant": variant.name, **median, "seconds": round(median["seconds"], 3)})
    result = {
        "benchmark": "loader",
        "command": ["python", "benchmarks/loader.py", *sys.argv[1:]],
        "data": shop.label,
        "batch_size": args.batch_size,
        "batches": args.batches,
        "turns": args.turns,
        "machine": machine,
        "title_tokens": titles,
        "variants": rows,
        "versions": versions(),
    }
    print(f"{shop.label}; batches of {args.batch_size} examples\n")
    print(table(rows))
    print(
        f"\n{titles['titles']:,} titles tokenised and written in {titles['tokenise_and_write_seconds']} s, "
        f"mapped again in {titles['map_again_seconds']} s"
    )
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
