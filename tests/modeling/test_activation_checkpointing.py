"""Activation checkpointing computes the forward pass anew in the backward pass, and changes no gradient."""

from collections.abc import Callable

import pytest
import torch

from llmrec.training.layout import Texts, pack
from llmrec.training.model import build_model
from llmrec.training.model_arguments import ModelArguments
from llmrec.training.packing import choose_packing
from llmrec.training.tuning import apply_tuning

TOLERANCE = {"padded": 1e-6, "packed": 1e-5}
"""Relative to the largest gradient. Padded: the same operations on the same numbers. Packed: a decoder's last layer
computes only what is read where it is not checkpointed, in products of other shapes."""


def _gradients(model: torch.nn.Module, packing: str = "off") -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.randint(5, vocabulary, (4, 7), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    items = torch.randint(5, vocabulary, (3, 4), generator=generator)
    model.zero_grad()
    targets = torch.tensor([0, 1, 2, 0])
    if packing == "off":
        output = model(input_ids=ids, attention_mask=mask, item_input_ids=items, positive_index=targets)
    else:
        texts = pack(Texts.of([*ids.tolist(), *items.tolist()]), packing)
        rows = torch.arange(7)
        output = model(texts=texts, user_index=rows[:4], item_index=rows[4:], positive_index=targets)
    output.loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_gradients_are_those_without_it(backbone: Callable[[str], str], family: str, tuning: str, packed: bool) -> None:
    arguments = ModelArguments(backbone=backbone(family), tuning=tuning, lora_dropout=0.0, lora_r=4, projection_dim=8)
    model, processor = build_model(arguments)
    model = apply_tuning(model, arguments)
    packing = choose_packing(model, processor).how if packed else "off"
    assert (packing != "off") == packed
    if tuning == "lora":
        # B starts at zero, and with it the gradient of A: a wrong one could not be told from a right one.
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(2))
    # Layers checkpoint in training mode only. Dropout stands as a module in some families, as a number in others.
    model.train()
    for module in model.modules():
        for name in ("p", "dropout", "attention_dropout", "activation_dropout", "dropout_prob", "layerdrop"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    plain = _gradients(model, packing)
    assert plain and all(name in plain for name, p in model.named_parameters() if p.requires_grad)
    calls = _count_layer_calls(model)
    model.activation_checkpointing_enable(activation_checkpointing_kwargs=None)
    before = calls[0]
    checkpointed = _gradients(model, packing)
    model.activation_checkpointing_disable()
    forward_only = calls[0] - before
    before = calls[0]
    _gradients(model, packing)
    assert forward_only == 2 * (calls[0] - before), "every layer must run twice: in the forward and the backward pass"
    largest = max(float(gradient.abs().max()) for gradient in plain.values())
    tolerance = TOLERANCE["packed" if packed else "padded"] * max(1.0, largest)
    assert checkpointed.keys() == plain.keys()
    for name, gradient in plain.items():
        assert float((checkpointed[name] - gradient).abs().max()) <= tolerance, name


def _count_layer_calls(model: torch.nn.Module) -> list[int]:
    from transformers.modeling_layers import GradientCheckpointingLayer

    calls = [0]

    def count(*_: object) -> None:
        calls[0] += 1

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    assert layers, "this backbone cannot checkpoint its layers"
    for layer in layers:
        # The layer's own __call__ wraps it, so the pass in the backward is seen on its first child only.
        next(iter(layer.children())).register_forward_pre_hook(count)
    return calls
