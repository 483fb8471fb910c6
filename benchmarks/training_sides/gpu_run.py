"""Large shapes with LoRA in bf16 on a CUDA GPU: tokens a second, utilisation, memory, and hours for the paper's data.

Utilisation counts model FLOPs only, and nothing twice that is computed twice:

    linear layers    forward 2·P·T; backward of frozen weights 2·P·T (the gradient of the activations alone)
    adapters         6·A·T (forward 2, gradient of activations 2, of weights 2)
    attention        forward 2·d·L·Σl² (two products of 2·d·l² a layer, half of it masked), backward twice that

with P parameters of the backbone's linear layers, A of the adapters, T tokens, d the width, L layers, and l the
lengths of the texts. It is divided by the best rate of a large bf16 matrix product, measured on the same device in the
same run.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from llmrec.data.prepared import PreparedData
from llmrec.data.title_tokens import TitleTokens
from llmrec.training.model_arguments import ModelArguments
from llmrec.training.tuning import apply_tuning, count_parameters
from modeling_llmrec import LLMRecConfig, LLMRecModel, LLMRecProcessor
from modeling_llmrec.presets import preset_fields

from .data import find_data, load_data
from .machine import hardware, peak_memory_gib, reset_peak_memory, synchronize, versions
from .ours import count, make_trainer, training_arguments
from .shapes import SHAPES, TINY_SHAPES, Shape, UnavailableError, config_and_tokenizer
from .turns import prepare

PAPER_EXAMPLES = 1_833_960
"""Training examples of an epoch of the paper's five domains."""

NAMES, TINY_NAMES = ("opt-1.3b", "opt-6.7b"), ("opt-tiny",)
WARM_UP_STEPS, STEPS = 3, 10
SMALLEST_BATCH = 8


class StopWatch:
    """Stands in for a `Gate` where one side runs alone: some steps to warm up, then steps that count."""

    def __init__(self, device: str, warm_up: int, steps: int) -> None:
        self.device, self.warm_up, self.steps = device, warm_up, steps
        self.facts: dict[str, Any] = {}
        self.counts: list[dict[str, float]] = []
        self.seconds = 0.0
        self._start = 0.0

    def begin(self, **facts: Any) -> bool:
        """The trainer is ready."""
        self.facts = facts
        return True

    def step(self, **counts: float) -> bool:
        """A step has been taken; False when it was the last."""
        if self.warm_up:
            self.warm_up -= 1
            if not self.warm_up:
                synchronize(self.device)
                self._start = time.perf_counter()
            return True
        self.counts.append(counts)
        if len(self.counts) < self.steps:
            return True
        # Steps are queued on a GPU: only their sum can be timed without holding it up.
        synchronize(self.device)
        self.seconds = time.perf_counter() - self._start
        return False


def run(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Run the shapes that the command line asks for; prints a table and returns what goes into the JSON file."""
    device = "cpu" if args.tiny else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "--gpu needs a CUDA GPU, and torch finds none here. `--gpu --tiny` runs the same code on the processor "
            "with a tiny shape."
        )
    torch.set_num_threads(args.threads)
    choice = find_data(args.data, args.shared, work)
    data = load_data(choice.folder)
    shapes, known = (TINY_SHAPES, TINY_NAMES) if args.tiny else (SHAPES, NAMES)
    names = args.only or known
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(f"--only {unknown[0]}: the shapes of this mode are {', '.join(known)}")
    peak = matrix_rate(device, 256 if args.tiny else 8192)
    facts = hardware(device, args.threads)
    print(f"LoRA in bf16, {choice.label}, {facts.get('gpu') or facts['processor']}")
    print(f"bf16 matrix products: {peak / 1e12:.4g} TFLOP/s at best")
    rows = {}
    for name in names:
        rows[name] = measure_shape(args, shapes[name], data, device, peak)
        print(_text(rows[name]), flush=True)
    return {
        "mode": "gpu",
        "tiny": args.tiny,
        "data": {"label": choice.label, "hash": data.hash},
        "hardware": facts,
        "versions": versions(),
        "matrix_flops_per_second": peak,
        "shapes": rows,
        "summary": {
            name: {key: row[key] for key in ("tokens_per_second", "utilisation", "hours_of_the_papers_epoch")}
            for name, row in rows.items()
        },
    }


def matrix_rate(device: str, size: int, repeats: int = 10, rounds: int = 5) -> float:
    """Best rate of square bf16 matrix products, FLOP/s: 2·size³ each."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = math.inf
    for _ in range(rounds):
        synchronize(device)
        start = time.perf_counter()
        for _ in range(repeats):
            left @ right
        synchronize(device)
        best = min(best, (time.perf_counter() - start) / repeats)
    return 2 * size**3 / best


def random_model(shape: Shape, shared: Path, titles: list[str], device: str) -> tuple[Any, Any, str]:
    """Model with random bf16 weights, made on the device itself, its processor, and which vocabulary it has."""
    vocabulary = shape.tokenizer
    try:
        config, tokenizer = config_and_tokenizer(shape, shared, titles)
    except UnavailableError as error:
        # The speed of a shape does not depend on which tokens it reads, only on how many: that is reported.
        print(f"{error}: a vocabulary of the titles' words stands in")
        words = Shape(shape.family, shape.label, "words", shape.config)
        config, tokenizer = config_and_tokenizer(words, shared, titles)
        vocabulary = "words"
    from transformers import AutoModel

    torch.manual_seed(0)
    with torch.device(device):
        backbone = AutoModel.from_config(config, dtype=torch.bfloat16)
    fields = preset_fields("default", config, tokenizer)
    model = LLMRecModel(LLMRecConfig(text_config=backbone.config, **fields), backbone=backbone)
    return model, LLMRecProcessor(tokenizer, config=model.config), vocabulary


def measure_shape(
    args: argparse.Namespace, shape: Shape, data: PreparedData, device: str, peak: float
) -> dict[str, Any]:
    """Train a shape for some steps; a batch that does not fit into memory is halved."""
    model, processor, vocabulary = random_model(shape, args.shared, data.catalogue.titles, device)
    linear = linear_parameters(model.backbone)
    arguments = ModelArguments(backbone=shape.label, tuning="lora", backbone_dtype="bfloat16")
    model = apply_tuning(model, arguments)
    trained, total = count_parameters(model)
    tokens = TitleTokens.from_titles(processor, data.catalogue.titles)
    batch_size = args.batch_size or (32 if args.tiny else 256)
    while True:
        reset_peak_memory(device)
        try:
            watch = _train(args, model, processor, tokens, data, device, batch_size)
            break
        except torch.OutOfMemoryError:
            model.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            if batch_size // 2 < SMALLEST_BATCH:
                raise
            print(f"{shape.label}: a batch of {batch_size} does not fit into memory, trying {batch_size // 2}")
            batch_size //= 2
    config = model.config.text_config
    total_counts = {key: sum(step[key] for step in watch.counts) for key in watch.counts[0]}
    flops = model_flops(
        linear, trained, total_counts["tokens"], total_counts["squares"], config.hidden_size, config.num_hidden_layers
    )
    examples_per_second = total_counts["examples"] / watch.seconds
    return {
        "backbone": shape.label,
        "vocabulary": vocabulary,
        "parameters": total,
        "linear_parameters": linear,
        "trained_parameters": trained,
        "batch_size": batch_size,
        "steps": len(watch.counts),
        "settings": {"max_pass_tokens": args.pass_tokens, "activation_checkpointing": args.checkpointing} | watch.facts,
        "examples_per_second": round(examples_per_second, 3),
        "tokens_per_second": round(total_counts["tokens"] / watch.seconds, 1),
        "tokens_per_example": round(total_counts["tokens"] / total_counts["examples"], 1),
        "fill_rate": round(total_counts["tokens"] / total_counts["slots"], 4),
        "negatives_mean": round(total_counts["negatives_sum"] / total_counts["examples"], 1),
        "negatives_min": min(step["negatives_min"] for step in watch.counts),
        "model_tflops_per_second": round(flops / watch.seconds / 1e12, 6),
        "utilisation": round(flops / watch.seconds / peak, 4),
        "peak_memory_gib": round(peak_memory_gib(device), 2),
        "hours_of_the_papers_epoch": round(PAPER_EXAMPLES / examples_per_second / 3600, 3),
    }


def _train(
    args: argparse.Namespace, model: Any, processor: Any, tokens: TitleTokens, data: PreparedData, device: str,
    batch_size: int,
) -> StopWatch:  # fmt: skip
    watch = StopWatch(device, 1 if args.tiny else WARM_UP_STEPS, 2 if args.tiny else STEPS)
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(
            folder, batch_size, args.seed, device, precision="bf16", max_pass_tokens=args.pass_tokens,
            **({"gradient_checkpointing": True} if args.checkpointing else {}),
        )  # fmt: skip
        trainer, facts = make_trainer(model, processor, tokens, data, arguments, "lora")
        facts |= {name: getattr(trainer.data_collator, name, None) for name in ("packing", "share_prefixes")}
        facts["precision"] = arguments.resolved_precision
        prepare(trainer, watch, count, facts)
        trainer.train()
    return watch


def linear_parameters(backbone: torch.nn.Module) -> int:
    """Weights of the backbone's linear layers: what a token is multiplied with."""
    return sum(module.weight.numel() for module in backbone.modules() if isinstance(module, torch.nn.Linear))


def model_flops(linear: int, adapters: int, tokens: float, squares: float, width: int, layers: int) -> float:
    """Model FLOPs of training adapters over frozen weights; the formula stands at the top of this file.

    Args:
        linear, adapters: parameters.
        tokens: tokens read.
        squares: sum of the squared lengths of the texts.
        width, layers: of the backbone.
    """
    return (4 * linear + 6 * adapters) * tokens + 3 * 2 * width * layers * squares


def _text(row: dict[str, Any]) -> str:
    return (
        f"{row['backbone']}: {row['tokens_per_second']:,.0f} tokens/s, {row['examples_per_second']:,.1f} examples/s "
        f"({row['tokens_per_example']:.0f} tokens an example, fill {row['fill_rate']:.2f}, batches of "
        f"{row['batch_size']}, packing {row['settings']['packing']}), {100 * row['utilisation']:.1f} % of the matrix "
        f"rate, peak {row['peak_memory_gib']:.1f} GiB, {row['hours_of_the_papers_epoch']:.2f} h for the "
        f"{PAPER_EXAMPLES:,} examples of the paper's epoch at these lengths"
    )
