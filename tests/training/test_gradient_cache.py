"""Gradients of a batch in chunks are those of the batch at once, dropout included, in less memory."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llmrec.training import trainer as trainer_module
from llmrec.training.gradient_cache import RandomState, backward_by_chunks
from llmrec.training.step_inputs import IDS
from tests.training.conftest import losses
from tests.training.test_trainer import Gradients, no_dropout, wake_adapters

Make = Callable[..., SimpleNamespace]

CASES = {
    "bert": {"tuning": "full", "learn_temperature": True},
    "bert, softmax, head alone": {"tuning": "frozen", "projection_dim": 8, "contrastive_loss": "sampled_softmax"},
    "bert, lora, projection": {"tuning": "lora", "projection_dim": 8, "learn_temperature": True},
    "opt, shared prefixes": {"tuning": "full", "learn_temperature": True},
    "opt, shared prefixes, lora": {"tuning": "lora", "lora_dropout": 0.2, "learn_temperature": True},
    "opt, block masks": {"tuning": "full", "packing": "mask", "row_tokens": 64},
}  # fmt: skip


@pytest.fixture
def make(make_trainer: Make, tiny_decoder: Path) -> Make:
    """Trainers whose batches come in several chunks, with the settings of a case."""

    def made(case: str, run: str = "run", **settings: Any) -> SimpleNamespace:
        backbone = {"backbone": str(tiny_decoder)} if case.startswith("opt") else {}
        result = make_trainer(run, **{**CASES[case], **backbone, "max_pass_tokens": 70, **settings})
        wake_adapters(result.model)
        result.model.train()
        return result

    return made


def batch_of(made: SimpleNamespace) -> tuple[list, dict[str, Any]]:
    """Chunks and other arguments of the first batch."""
    examples = made.trainer.train_dataset
    batch = made.trainer.data_collator([examples[i] for i in range(24)])
    return batch.pop("texts"), {name: value for name, value in batch.items() if name not in IDS}


def gradients_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def both_ways(made: SimpleNamespace, context: Callable[[], Any] = nullcontext, **options: Any) -> tuple[dict, dict]:
    """Gradients of one batch, all chunks in one graph and chunk by chunk, from the same random state."""
    texts, inputs = batch_of(made)
    assert len(texts) >= 3
    torch.manual_seed(5)
    with context():
        loss = made.model(texts=texts, **inputs).loss * 0.5
    loss.backward()
    expected = gradients_of(made.model)
    after = torch.get_rng_state()
    torch.manual_seed(5)
    with context():
        cached = backward_by_chunks(made.model, texts, inputs, scale=0.5, **options)
    assert not cached.requires_grad
    assert float(cached) == pytest.approx(float(loss.detach()), rel=1e-6)
    assert torch.equal(torch.get_rng_state(), after)
    return expected, gradients_of(made.model)


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Relative to the largest gradient."""
    assert one.keys() == other.keys() and one
    scale = max(float(value.abs().max()) for value in one.values())
    assert scale > 1e-3
    return max(float((value - other[name]).abs().max()) for name, value in one.items()) / scale


@pytest.mark.parametrize("case", CASES)
def test_cached_gradients_are_the_uncached_ones(make: Make, case: str) -> None:
    made = make(case)
    expected, found = both_ways(made)
    trained = {name for name, p in made.model.named_parameters() if p.requires_grad}
    assert set(found) == trained
    # The same float32 products, summed up in another order.
    assert largest_difference(expected, found) < 1e-6


def test_other_dropout_masks_in_the_second_pass_would_be_noticed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RandomState, "again", lambda self: nullcontext())
    with pytest.raises(AssertionError):  # the random state goes further than it should
        both_ways(make("bert"))
    texts, inputs = batch_of(made := make("bert"))
    torch.manual_seed(5)
    made.model(texts=texts, **inputs).loss.backward()
    expected = gradients_of(made.model)
    torch.manual_seed(5)
    backward_by_chunks(made.model, texts, inputs)
    assert largest_difference(expected, gradients_of(made.model)) > 1e-2


@pytest.mark.parametrize("case", ["bert", "opt, shared prefixes, lora"])
def test_with_activation_checkpointing(make: Make, case: str) -> None:
    made = make(case)
    made.model.activation_checkpointing_enable()
    assert any(getattr(module, "gradient_checkpointing", False) for module in made.model.modules())
    assert largest_difference(*both_ways(made)) < 1e-6
    # Without it the last layer may be computed in part, with fewer random numbers.
    no_dropout(made.model)
    with_it = both_ways(made)[1]
    made.model.activation_checkpointing_disable()
    assert largest_difference(with_it, both_ways(made)[0]) < 1e-5


def test_under_autocast(make: Make) -> None:
    made = make("opt, shared prefixes, lora")
    expected, found = both_ways(made, lambda: torch.autocast("cpu", torch.bfloat16))
    # Weights cast once for all chunks or once for each: gradients of the adapters are added up in bf16 or in float32.
    assert largest_difference(expected, found) < 2e-2


def test_a_temperature_alone_is_trained_too(make: Make) -> None:
    made = make("bert", tuning="frozen", learn_temperature=True)
    expected, found = both_ways(made)
    assert len(found) == 1
    assert largest_difference(expected, found) < 1e-6


def test_passes_too_many_add_nothing(make: Make) -> None:
    made = make("bert")
    no_dropout(made.model)
    texts, inputs = batch_of(made)
    found = []
    for passes in (None, len(texts) + 3):
        backward_by_chunks(made.model, texts, inputs, passes=passes)
        found.append(gradients_of(made.model))
    assert largest_difference(*found) < 1e-6


def test_gradients_stay_here_until_the_last_chunk(make: Make) -> None:
    made = make("bert")
    texts, inputs = batch_of(made)
    inside, seen = [False], []

    class Local:
        def __enter__(self) -> None:
            inside[0] = True

        def __exit__(self, *error: Any) -> None:
            inside[0] = False

    def backward(loss: torch.Tensor) -> None:
        seen.append(inside[0])
        loss.backward()

    parameters = made.trainer.loss_parameters
    assert [p.shape for p in parameters] == [torch.Size([])]
    before = parameters[0].grad
    backward_by_chunks(made.model, texts, inputs, backward=backward, no_sync=Local, loss_parameters=parameters)
    # The loss, then every chunk.
    assert seen == [True] * len(texts) + [False]
    assert before is None and parameters[0].grad is not None


def test_one_chunk_is_held_at_a_time(make: Make) -> None:
    made = make("bert")
    texts, inputs = batch_of(made)
    uncached = peak_of_saved_tensors(lambda: made.model(texts=texts, **inputs).loss.backward())
    cached = peak_of_saved_tensors(lambda: backward_by_chunks(made.model, texts, inputs))
    assert cached < 1.5 * uncached / len(texts)


def peak_of_saved_tensors(step: Callable[[], Any]) -> int:
    """Largest number of elements that graphs hold for their backward passes at any time."""
    held = peak = 0

    class Holder:
        def __init__(self, tensor: torch.Tensor) -> None:
            nonlocal held, peak
            self.tensor = tensor
            # A view of a parameter costs nothing.
            self.size = 0 if (tensor._base if tensor._is_view() else tensor).is_leaf else tensor.numel()
            held += self.size
            peak = max(peak, held)

        def __del__(self) -> None:
            nonlocal held
            held -= self.size

    with torch.autograd.graph.saved_tensors_hooks(Holder, lambda holder: holder.tensor):
        step()
    return peak


@pytest.mark.parametrize("case", ["bert", "opt, shared prefixes, lora"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_trainer_gives_the_same_gradients_with_and_without(
    make: Make, monkeypatch: pytest.MonkeyPatch, case: str, accumulate: int
) -> None:
    found, chunks = [], []
    original = trainer_module.backward_by_chunks

    def counting(model: Any, texts: list, *args: Any, **options: Any) -> torch.Tensor:
        chunks.append(len(texts))
        return original(model, texts, *args, **options)

    monkeypatch.setattr(trainer_module, "backward_by_chunks", counting)
    for max_pass_tokens in (None, 70):
        made = make(
            case, f"run-{max_pass_tokens}", max_pass_tokens=max_pass_tokens, max_steps=1, max_grad_norm=0,
            per_device_train_batch_size=16, gradient_accumulation_steps=accumulate, lora_dropout=0.0,
        )  # fmt: skip
        no_dropout(made.model)
        gradients = Gradients()
        made.trainer.add_callback(gradients)
        made.trainer.train()
        found.append((gradients.found, losses(made.trainer), made.trainer.state.log_history[0]))
    assert len(chunks) == accumulate and min(chunks) >= 3
    # Texts stand in other company, so float32 sums run in another order.
    assert largest_difference(found[0][0], found[1][0]) < 1e-5
    assert found[0][1][0][1] == pytest.approx(found[1][1][0][1], rel=1e-5)
    assert found[0][2]["negatives"] == found[1][2]["negatives"]
