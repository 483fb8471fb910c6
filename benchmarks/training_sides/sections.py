"""Which sides run on a backbone, in which turns, for how long."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import ours, paper, sentence_transformers, techniques
from .gate import Side, SideError
from .machine import has_bf16
from .shapes import Shape
from .summary import figures

PAPER, OURS, OURS_FP32, OURS_LORA = "(a) paper", "(c) ours", "(c) ours, fp32", "(c) ours, LoRA"
ST, ST_BF16 = "(b) sentence-transformers", "(b) sentence-transformers, bf16"
POOLING = {"opt": "last", "t5": "mean", "bert": "mean", "minilm": "mean"}
# Learning rate of full tuning for (b) and (c); (a) takes the authors'.
LEARNING_RATE = 5e-5

Wanted = dict[str, tuple[Callable[..., dict[str, Any]], dict[str, Any]]]
"""Name of a side to its function and settings."""


@dataclass(frozen=True)
class Plan:
    """How long the sides of a section run.

    Attributes:
        rounds: turns of each side, A, B, A, B, …
        steps: steps of a turn.
        paper_seconds: stop side (a) within its batch after these seconds of a turn; None for whole batches.
        heldout: validation users asked at the end; 0 for none. Only after whole batches: otherwise the sides have
            not seen equally many examples.
        batch_size, slice_size: examples of a batch, and of what (a) computes of it at a time.
        seed, threads, device: of all sides.
    """

    rounds: int
    steps: int
    paper_seconds: float | None
    heldout: int
    batch_size: int
    slice_size: int
    seed: int
    threads: int
    device: str


def backbone_sides(
    plan: Plan, shape: Shape, backbone: str, data_folder: Path, names: Sequence[str] | None = None
) -> dict:
    """Name to (function, settings) of the sides of a backbone; `names` keeps some only."""
    common = {
        "backbone": backbone,
        "data_folder": data_folder,
        "batch_size": plan.batch_size,
        "seed": plan.seed,
        "threads": plan.threads,
        "device": plan.device,
        "heldout": plan.heldout,
    }
    of_paper = {"learning_rate": shape.learning_rate, "slice_size": plan.slice_size}
    of_paper["sampled"] = plan.paper_seconds is not None
    of_st = {"learning_rate": LEARNING_RATE, "pooling": POOLING[shape.family]}
    of_ours = {"learning_rate": LEARNING_RATE}
    sides: Wanted = {
        PAPER: (paper.run, common | of_paper),
        ST: (sentence_transformers.run, common | of_st),
        OURS: (ours.run, common | of_ours),
        OURS_LORA: (ours.run, common | of_ours | {"tuning": "lora"}),
    }
    if has_bf16(plan.device):
        sides[ST_BF16] = (sentence_transformers.run, common | of_st | {"bf16": True})
        sides[OURS_FP32] = (ours.run, common | of_ours | {"precision": "fp32"})
    return {name: side for name, side in sides.items() if names is None or name in names}


def technique_sides(plan: Plan, shape: Shape, backbone: str, data_folder: Path) -> Wanted:
    """The same for one technique at a time."""
    common = {
        "backbone": backbone,
        "data_folder": data_folder,
        "batch_size": plan.batch_size,
        "seed": plan.seed,
        "threads": plan.threads,
        "device": plan.device,
    }
    of_paper = common | {
        "learning_rate": shape.learning_rate,
        "slice_size": plan.slice_size,
        "sampled": plan.paper_seconds is not None,
    }
    layout = {"preset": "paper", "contrastive_loss": "in_batch"}
    sides: Wanted = {
        PAPER: (paper.run, of_paper),
        "shared candidates": (
            ours.run,
            common
            | {"learning_rate": shape.learning_rate, "model_settings": layout, "settings": {"packing": "off"}}
            | {"precision": "fp32"},
        ),
        "packing": (techniques.run, of_paper | {"technique": "packing"}),
    }
    if shape.family == "opt":
        sides["prefix sharing"] = (techniques.run, of_paper | {"technique": "prefix_sharing"})
    if has_bf16(plan.device):
        sides["bf16"] = (paper.run, of_paper | {"bf16": True})
    sides["all together"] = (ours.run, common | {"learning_rate": LEARNING_RATE})
    return sides


class Section:
    """Sides that are compared with each other. They are got ready at once; then they wait for their turns.

    A side that fails is reported as such and left out.

    Args:
        wanted: name to (function, settings).
        plan: how long they run.
        stack: ends their processes.
        say: takes lines for the reader.
    """

    def __init__(
        self,
        wanted: Wanted,
        plan: Plan,
        stack: ExitStack,
        say: Callable[[str], None],
    ) -> None:
        self.plan = plan
        self.failed: dict[str, str] = {}
        self._say = say
        self.sides = []
        for name, (run, settings) in wanted.items():
            self.sides.append(Side(name, run, settings))
            stack.callback(self.sides[-1].close)

    def wait(self) -> None:
        """Until all are ready."""
        for side in self.sides:
            self._attempt(side, side.wait)

    def take_turns(self, rounds: int, steps: int, sampled_only: bool = False) -> None:
        """A, B, A, B, …"""
        for _ in range(rounds):
            for side in self.sides:
                if side.sampled or not sampled_only:
                    self._attempt(side, side.round, steps, self.plan.paper_seconds if side.sampled else None)

    def finish(self) -> list[dict[str, Any]]:
        """Stop them; returns the figures of each."""
        for side in self.sides:
            self._attempt(side, side.finish)
        return [
            {"side": side.name, "failed": self.failed[side.name]} if side.name in self.failed else figures(side)
            for side in self.sides
        ]

    def _attempt(self, side: Side, action: Callable[..., None], *arguments: Any) -> None:
        if side.name in self.failed:
            return
        try:
            action(*arguments)
        except SideError as error:
            self.failed[side.name] = str(error)
            self._say(f"  {error}")
