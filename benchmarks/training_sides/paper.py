"""Side (a): what the authors run, written anew from the paper: every prefix by itself, every candidate by itself.

Preset `paper`: 11 candidates an example, the target and ten negatives drawn uniformly from its domain, each encoded
for each example; histories padded to the longest of the batch, and candidates likewise; softmax cross-entropy over
raw dot products; fp32; AdamW, eps 1e-4, weight decay 1e-3 but on biases and normalisation, clipped at 1, linear decay.

The loss of an example does not depend on the others of its batch, so a batch may be computed in slices with the same
gradients and less memory. Slices keep the padding of their batch. Where time is short only some of a batch's slices
are timed, and the step that follows counts as the share of one that they are.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmrec.data.title_tokens import TitleTokens
from llmrec.training.examples import Example
from llmrec.training.model import build_model
from llmrec.training.model_arguments import ModelArguments
from llmrec.training.titles import TitleClasses

from .data import LOOKED_AT, NEGATIVES, Batches, HeldOut, load_data, uniform_negatives
from .gate import Gate
from .heldout import ask
from .machine import peak_memory_gib, synchronize

ADAM_EPSILON, WEIGHT_DECAY, MAX_GRAD_NORM = 1e-4, 1e-3, 1.0
WARM_UP_EXAMPLES = 2


class PaperRecipe:
    """Model, optimizer, and the layout of batches.

    Args:
        backbone: folder or Hub id.
        data_folder: prepared data.
        batch_size: examples of a batch.
        seed: of the order, the negatives and dropout.
        learning_rate: the authors': 5e-5, for T5 3e-4.
        device: `cpu` or `cuda`.
        bf16: compute under bf16 autocast (not the authors'; for the figure of bf16 alone).
    """

    def __init__(
        self, backbone: str, data_folder: Path, batch_size: int, seed: int, learning_rate: float, device: str = "cpu",
        bf16: bool = False,
    ) -> None:  # fmt: skip
        torch.manual_seed(seed)
        self.device, self.bf16 = device, bf16
        self.data = load_data(data_folder)
        self.model, self.processor = build_model(ModelArguments(backbone=backbone, preset="paper", tuning="full"))
        self.model.to(device).train()
        self.tokens = TitleTokens.from_titles(self.processor, self.data.catalogue.titles)
        self.classes = TitleClasses(self.tokens, self.data.catalogue.domain_codes)
        self.sampler = uniform_negatives(self.data, self.classes, seed)
        self.batches = Batches(self.data, batch_size, seed, self.model.config.max_history_items)
        decays = [parameter for parameter in self.model.parameters() if parameter.ndim > 1]
        rest = [parameter for parameter in self.model.parameters() if parameter.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decays, "weight_decay": WEIGHT_DECAY}, {"params": rest, "weight_decay": 0.0}],
            lr=learning_rate,
            eps=ADAM_EPSILON,
        )
        steps = max(1, len(self.batches.examples) // batch_size)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: max(0.0, 1 - step / steps))

    def candidates(self, example: Example) -> list[int]:
        """Item indices of the target and its ten negatives."""
        history = self.batches.histories[example["user"]]
        drawn = self.sampler.draw(example["epoch"], example["example"], example["target"], history)
        return [example["target"], *drawn.tolist()]

    def lay_out(self, examples: Sequence[Example]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Histories (B rows) and candidates (11 B rows, an example's one after the other), each padded on the right."""
        histories = [self._history(example) for example in examples]
        candidates = [self.candidates(example) for example in examples]
        short = [len(each) for each in candidates if len(each) != len(candidates[0])]
        if short:
            raise ValueError(f"a domain has too few titles for ten negatives: {short[0]} candidates instead of 11")
        items = [self.processor.layout_item(self.tokens[item]) for each in candidates for item in each]
        return self.processor.pad(histories), self.processor.pad(items)

    def mean_slots_per_example(self) -> float:
        """Padded tokens an example, over the first batches; nothing is computed."""
        lengths = self.tokens.lengths
        special = len(self.processor.layout_item([]))
        slots = []
        for number in range(LOOKED_AT):
            batch = self.batches[number]
            histories = max(len(self._history(example)) for example in batch)
            items = max(int(lengths[self.candidates(example)].max()) for example in batch) + special
            slots.append(histories + (1 + NEGATIVES) * items)
        return round(sum(slots) / len(slots), 2)

    def _history(self, example: Example) -> list[int]:
        return self.processor.layout_history([self.tokens[int(item)] for item in example["history"]])

    def loss(self, histories: dict[str, Tensor], items: dict[str, Tensor]) -> Tensor:
        """Sum of the examples' losses, a scalar.

        Args:
            histories: `input_ids` and `attention_mask`, (b, L).
            items: the same of the candidates, (11 b, L'), the target first of each eleven.
        """
        users = self.model.get_user_embeddings(**_to(histories, self.device))
        vectors = self.model.get_item_embeddings(**_to(items, self.device)).view(len(users), -1, users.shape[1])
        scores = torch.einsum("ud,ucd->uc", users, vectors)
        first = torch.zeros(len(users), dtype=torch.long, device=scores.device)
        return torch.nn.functional.cross_entropy(scores, first, reduction="sum")

    def backward(self, histories: dict[str, Tensor], items: dict[str, Tensor], examples: int) -> float:
        """Add the gradients of one slice of a batch of `examples`; returns the sum of its losses."""
        device_type = torch.device(self.device).type
        with torch.autocast(device_type, torch.bfloat16) if self.bf16 else nullcontext():
            loss = self.loss(histories, items)
        (loss / examples).backward()
        return float(loss.detach())

    def update(self) -> None:
        """One step of the optimizer."""
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()

    def timed_update(self, share: float) -> dict[str, float]:
        """`update`, of which only a share belongs to the examples that were read; returns the time of the rest."""
        synchronize(self.device)
        start, cpu_start = time.perf_counter(), time.process_time()
        self.update()
        synchronize(self.device)
        return {
            "excess_seconds": (1 - share) * (time.perf_counter() - start),
            "excess_cpu_seconds": (1 - share) * (time.process_time() - cpu_start),
        }


def _to(batch: dict[str, Tensor], device: str) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in batch.items()}


def rows(batch: dict[str, Tensor], start: int, end: int) -> dict[str, Tensor]:
    """Some rows of a padded batch, with its padding."""
    return {name: tensor[start:end] for name, tensor in batch.items()}


def run(
    gate: Gate,
    *,
    backbone: str,
    data_folder: Path,
    batch_size: int,
    seed: int,
    learning_rate: float,
    slice_size: int,
    sampled: bool = False,
    heldout: int = 0,
    bf16: bool = False,
    device: str = "cpu",
    threads: int = 1,
) -> dict[str, Any]:
    """The side, for `Side`.

    Args:
        slice_size: examples computed at a time.
        sampled: stop within a batch when the turn's time is up, and count the optimizer's step for the share done.
        heldout: validation users to ask at the end; 0 for none.
        backbone, data_folder, batch_size, seed, learning_rate, bf16, device: as in `PaperRecipe`.
    """
    recipe = PaperRecipe(backbone, data_folder, batch_size, seed, learning_rate, device, bf16)
    first = recipe.lay_out(recipe.batches[0][:WARM_UP_EXAMPLES])
    recipe.backward(*first, WARM_UP_EXAMPLES)
    recipe.optimizer.zero_grad()
    losses: list[float] = []
    number = 0
    facts = {"slice_size": slice_size, "precision": "bf16" if bf16 else "fp32", "learning_rate": learning_rate}
    facts |= {"negatives_mean": NEGATIVES, "negatives_min": NEGATIVES}
    going = gate.begin(mean_slots_per_example=recipe.mean_slots_per_example(), **facts)
    while going:
        counts = _step(recipe, number, slice_size, gate if sampled else None, losses)
        number += 1
        going = gate.step(**counts)
    peak = peak_memory_gib(device)
    result: dict[str, Any] = {"peak_memory_gib": round(peak, 2), "last_train_loss": round(losses[-1], 4)}
    if heldout:
        result |= ask(recipe.model, recipe.processor, recipe.tokens, HeldOut.draw(recipe.data, heldout, seed))
    return result


def _step(
    recipe: PaperRecipe, number: int, slice_size: int, gate: Gate | None, losses: list[float]
) -> dict[str, float]:
    """One batch, or as much of it as there is time for; returns what was read."""
    batch = recipe.batches[number]
    histories, items = recipe.lay_out(batch)
    candidates = len(items["input_ids"]) // len(batch)
    done = tokens = slots = 0
    total = 0.0
    for start in range(0, len(batch), slice_size):
        end = min(start + slice_size, len(batch))
        parts = rows(histories, start, end), rows(items, start * candidates, end * candidates)
        total += recipe.backward(*parts, len(batch))
        tokens += sum(int(part["attention_mask"].sum()) for part in parts)
        slots += sum(part["input_ids"].numel() for part in parts)
        done = end
        if gate is not None and gate.overdue:
            break
    losses.append(total / done)
    return {"examples": done, "tokens": tokens, "slots": slots} | recipe.timed_update(done / len(batch))
