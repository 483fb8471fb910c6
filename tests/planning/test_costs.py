"""Plans against measured steps: parameters and tokens exactly, FLOPs and memory within a stated tolerance."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from llmrec.planning.flops import StepSettings, epoch_flops, least_flops
from llmrec.planning.memory import MemorySettings, step_memory
from llmrec.planning.model import expected_packing, planned_model
from llmrec.planning.tokens import TokenCounts, count_batch, count_epoch, separate_history_tokens
from llmrec.planning.trace import trace
from llmrec.training.gradient_cache import backward_by_chunks
from llmrec.training.model import build_model
from llmrec.training.model_arguments import ModelArguments
from llmrec.training.step_inputs import IDS
from llmrec.training.tuning import apply_tuning, count_parameters
from modeling_llmrec.packing import block_mask

FLOPS_TOLERANCE = 0.02
"""Relative. Matrix products are all counted; what is missing are element-wise operations, which FlopCounterMode leaves
out too."""
ACTIVATIONS_TOLERANCE = 0.2
"""Relative: masks, indices, and padding inside attention are kept too, and are not planned."""

CASES = {
    "bert-full": ("bert", {"tuning": "full"}),
    "bert-lora": ("bert", {"tuning": "lora", "projection_dim": 8}),
    "bert-frozen": ("bert", {"tuning": "frozen", "projection_dim": 8}),
    "bert-padded": ("bert", {"tuning": "full", "packing": "off", "contrastive_loss": "sampled_softmax"}),
    "bert-checkpointing": ("bert", {"tuning": "lora", "gradient_checkpointing": True}),
    "bert-cached": ("bert", {"tuning": "full", "max_pass_tokens": 100}),
    "opt-shared-prefixes": ("opt", {"tuning": "lora", "shared_negatives": 4}),
    "opt-full": ("opt", {"tuning": "full", "share_prefixes": False}),
    "t5": ("t5", {"tuning": "full"}),
    "llama": ("llama", {"tuning": "lora", "lora_target_modules": ["q_proj", "v_proj"]}),
}


@pytest.fixture
def folder_of(backbone: Callable[[str], str], tiny_backbone: Path) -> Callable[[str], str]:
    # The tiny BERT keeps these tests short; the real one is in the test of parameters.
    return lambda name: str(tiny_backbone) if name == "bert" else backbone(name)


# -- parameters ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tuning", ["full", "lora", "frozen"])
def test_parameters_are_those_of_the_real_model(backbone: Callable[[str], str], family: str, tuning: str) -> None:
    arguments = ModelArguments(backbone=backbone(family), tuning=tuning, projection_dim=8, learn_temperature=True)
    planned, _ = planned_model(arguments)
    assert all(parameter.device.type == "meta" for parameter in planned.parameters())
    real = apply_tuning(build_model(arguments)[0], arguments)
    assert count_parameters(planned) == count_parameters(real)
    shapes = {name: (tuple(p.shape), p.dtype, p.requires_grad) for name, p in planned.named_parameters()}
    assert shapes == {name: (tuple(p.shape), p.dtype, p.requires_grad) for name, p in real.named_parameters()}


def test_the_packing_that_is_expected_is_the_one_that_training_takes(
    backbone: Callable[[str], str], family: str
) -> None:
    from llmrec.training.packing import choose_packing

    arguments = ModelArguments(backbone=backbone(family))
    model, processor = build_model(arguments)
    expected = expected_packing(planned_model(arguments)[0], "auto", None, None, on_gpu=False)
    assert expected == choose_packing(model, processor)


# -- tokens ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_tokens_are_those_of_the_real_batches(
    prepare_plan: Callable[..., SimpleNamespace], folder_of: Callable[[str], str], case: str
) -> None:
    family, settings = CASES[case]
    made = prepare_plan(folder_of(family), **settings)
    planned = made.planned
    total, slots, tokens, titles, needed = TokenCounts(), 0, 0, 0, 0
    for number in range(planned.batches):
        examples = planned.batch(number)
        batch = planned.collator(examples)
        counted = count_batch(planned, examples)
        total += counted
        assert counted.scores == batch["candidate_mask"].numel()
        titles += batch["candidate_mask"].shape[1]
        for packed in batch.get("texts", []):
            slots += packed.input_ids.numel()
            tokens += int((packed.segment_ids > 0).sum())
            real = packed.segment_ids > 0
            needed += int((block_mask(packed, planned.causal)[:, 0] & real[:, None, :] & real[:, :, None]).sum())
        for prefix in ("", "item_") if "texts" not in batch else ():
            mask = batch[f"{prefix}attention_mask"]
            slots, tokens = slots + mask.numel(), tokens + int(mask.sum())
            needed += int((mask.sum(dim=1) ** 2).sum())
    assert (total.slots, total.tokens, total.titles) == (slots, tokens, titles)
    assert total.needed_pairs == needed
    epoch = count_epoch(planned)
    assert epoch.examples == len(planned.examples) == total.examples
    assert epoch.slots == pytest.approx(slots) and epoch.batches == planned.batches
    one_by_one = [
        len(made.processor.layout_history([planned.collator.title_tokens[int(item)] for item in example["history"]]))
        for example in (planned.examples[row] for row in range(len(planned.examples)))
    ]
    assert separate_history_tokens(planned).tolist() == one_by_one
    assert epoch.separate_history_tokens == sum(one_by_one)
    if made.packing.share_prefixes:
        assert epoch.history_tokens < 0.7 * epoch.separate_history_tokens
    else:
        # One user's history may stand for several examples of a batch only when it is the same text.
        assert epoch.history_tokens == pytest.approx(epoch.separate_history_tokens, rel=0.01)


def test_extrapolation_comes_close(prepare_plan: Callable[..., SimpleNamespace], tiny_backbone: Path) -> None:
    planned = prepare_plan(tiny_backbone, per_device_train_batch_size=8).planned
    whole, part = count_epoch(planned), count_epoch(planned, max_batches=planned.batches // 3)
    assert part.examples == pytest.approx(whole.examples) and part.batches == whole.batches
    assert part.slots == pytest.approx(whole.slots, rel=0.05)
    assert part.pass_slots <= whole.pass_slots


def test_pairs_of_queries_are_counted_one_by_one() -> None:
    from llmrec.planning.tokens import _causal_pairs

    # Two texts; the second has a query of two tokens and one of one token, as suffixes of one or two tokens give them.
    queries = np.array([0, 0, 1, 0, 0, 1, 1, 0, 2, 0])
    text = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 1])
    pairs = sum(
        text[t] == text[s] and s <= t and queries[s] in (0, queries[t]) for t in range(len(text)) for s in range(t + 1)
    )
    assert _causal_pairs(text, np.array([4, 6]), queries) == pairs


# -- FLOPs -----------------------------------------------------------------------------------------


def _step(made: SimpleNamespace, batch: dict[str, Any]) -> None:
    inputs = {name: value for name, value in batch.items() if name not in IDS}
    texts = inputs.get("texts")
    if texts is not None and len(texts) > 1:
        del inputs["texts"]
        backward_by_chunks(made.model, texts, inputs)
    else:
        made.model(**inputs).loss.backward()


@pytest.mark.parametrize("case", CASES)
def test_flops_are_those_of_a_real_step(
    prepare_plan: Callable[..., SimpleNamespace], folder_of: Callable[[str], str], case: str
) -> None:
    family, settings = CASES[case]
    made = prepare_plan(folder_of(family), follow=True, **settings)
    made.model.train()
    if settings.get("gradient_checkpointing"):
        made.model.activation_checkpointing_enable()
    examples = made.planned.batch(0)
    tokens = count_batch(made.planned, examples)
    # Plain matrix products: fused kernels of processors are not counted by FlopCounterMode.
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        _step(made, made.planned.collator(examples))
    planned = epoch_flops(made.costs, tokens, _settings(made))
    assert sum(planned.values()) == pytest.approx(counter.get_total_flops(), rel=FLOPS_TOLERANCE)
    assert (planned["gradient_caching"] > 0) == ("max_pass_tokens" in settings)
    assert (planned["recompute"] > 0) == ("gradient_checkpointing" in settings)
    assert least_flops(made.costs, tokens, _settings(made)) <= sum(planned.values())


def _settings(made: SimpleNamespace) -> StepSettings:
    config = made.model.config
    head = config.text_config.hidden_size * config.projection_dim if config.projection_dim else 0
    return StepSettings(
        config.embedding_dim, head, trained=0, steps=0, fused_attention=False,
        checkpointing=bool(made.arguments.gradient_checkpointing),
    )  # fmt: skip


# -- memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("optim", ["adamw_torch_fused", "sgd", "adafactor"])
def test_weights_gradients_and_states_take_what_they_really_take(
    prepare_plan: Callable[..., SimpleNamespace], tiny_backbone: Path, tuning: str, optim: str
) -> None:
    from transformers import Trainer

    made = prepare_plan(tiny_backbone, follow=True, tuning=tuning, optim=optim)
    tokens = count_batch(made.planned, made.planned.batch(0))
    memory = step_memory(made.shape, made.costs, tokens, _memory_settings(made, optim))
    assert memory["weights"] == sum(p.numel() * p.element_size() for p in made.model.parameters())
    _step(made, made.planned.collator(made.planned.batch(0)))
    assert memory["gradients"] == sum(p.grad.nbytes for p in made.model.parameters() if p.grad is not None)
    kind, options = Trainer.get_optimizer_cls_and_kwargs(made.arguments, made.model)
    optimizer = kind([p for p in made.model.parameters() if p.requires_grad], **options)
    optimizer.step()
    values = [value for state in optimizer.state.values() for value in state.values()]
    states = [value.nbytes for value in values if isinstance(value, torch.Tensor)]
    # Beside the moments AdamW keeps a step number for each tensor.
    assert memory["optimizer"] == pytest.approx(sum(states), rel=0.02, abs=4)


def _memory_settings(made: SimpleNamespace, optim: str = "adamw_torch") -> MemorySettings:
    return MemorySettings(
        optim, bool(made.arguments.gradient_checkpointing), False, made.model.config.embedding_dim, 0, 0, 16
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{"tuning": "full"}, {"tuning": "lora"}, {"tuning": "lora", "checkpoint": True}, {"tuning": "lora", "bf16": True}],
)
@pytest.mark.parametrize("name", ["bert", "opt", "qwen3"])
def test_activations_take_about_what_autograd_keeps(
    prepare_plan: Callable[..., SimpleNamespace], folder_of: Callable[[str], str], name: str, settings: dict
) -> None:
    checkpoint, bf16 = settings.get("checkpoint", False), settings.get("bf16", False)
    made = prepare_plan(
        folder_of(name), tuning=settings["tuning"], gradient_checkpointing=checkpoint, per_device_train_batch_size=64,
        lora_dropout=0.0, backbone_dtype="bfloat16" if bf16 else "float32",
    )  # fmt: skip
    # Without dropout the processor takes its fused kernel, which keeps no attention weights.
    shape, _ = planned_model(made.model_arguments)
    for model in (made.model, shape):
        _switch_dropout_off(model)
    costs = trace(shape, bf16=bf16, checkpointing=checkpoint)
    made.model.train()
    if checkpoint:
        made.model.activation_checkpointing_enable()
    batch = made.planned.collator(made.planned.batch(0))
    inputs = {key: value for key, value in batch.items() if key not in IDS}
    parameters = {p.untyped_storage().data_ptr() for p in made.model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in parameters and tensor.is_floating_point():
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    autocast = torch.autocast("cpu", torch.bfloat16, enabled=bf16)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
        loss = made.model(**inputs).loss
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    tokens = count_batch(made.planned, made.planned.batch(0))
    memory = step_memory(made.shape, costs, tokens, _memory_settings(made))
    planned = memory["activations"] + memory["weight_copies"]
    if checkpoint:
        # What one layer keeps at a time comes in the backward pass.
        planned -= tokens.pass_slots * (costs.saved_per_token - costs.saved_outside) / costs.blocks
    assert loss.requires_grad
    assert planned == pytest.approx(measured, rel=ACTIVATIONS_TOLERANCE)


def _switch_dropout_off(model: torch.nn.Module) -> None:
    for module in model.modules():
        for field in ("p", "dropout", "dropout_prob", "attention_dropout"):
            if isinstance(getattr(module, field, None), float):
                setattr(module, field, 0.0)
