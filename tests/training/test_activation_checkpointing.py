"""`gradient_checkpointing: true` in a recipe reaches the layers and leaves the losses as they are."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
from transformers.modeling_layers import GradientCheckpointingLayer

from tests.training.conftest import losses


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_the_losses_of_a_run_are_those_without_it(make_trainer: Callable[..., SimpleNamespace], tuning: str) -> None:
    settings = {"tuning": tuning, "max_steps": 4, "logging_steps": 1, "lora_dropout": 0.1}
    plain = make_trainer("plain", **settings)
    plain.trainer.train()
    checkpointed = make_trainer("checkpointed", gradient_checkpointing=True, **settings)
    checkpointed.trainer.train()
    layers = [m for m in checkpointed.model.modules() if isinstance(m, GradientCheckpointingLayer)]
    assert layers and all(layer.gradient_checkpointing for layer in layers)
    # Dropout included: what is computed anew draws the same random numbers.
    expected = dict(losses(plain.trainer))
    assert len(expected) == 4 and dict(losses(checkpointed.trainer)) == pytest.approx(expected, abs=1e-5)
