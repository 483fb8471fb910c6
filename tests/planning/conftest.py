"""The small shop and backbones of the other tests, and plans of them."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llmrec.data.prepared import load_prepared
from llmrec.data.title_tokens import TitleTokens
from llmrec.planning.model import planned_model
from llmrec.planning.tokens import PlannedData
from llmrec.planning.trace import trace
from llmrec.training.arguments import LLMRecTrainingArguments
from llmrec.training.model import build_model
from llmrec.training.model_arguments import ModelArguments
from llmrec.training.packing import choose_packing
from llmrec.training.tuning import apply_tuning
from modeling_llmrec.presets import is_causal
from tests.modeling.conftest import backbone, family  # noqa: F401
from tests.training.conftest import tiny_backbone, tiny_prepared, tiny_raw  # noqa: F401


@pytest.fixture
def prepare_plan(tiny_prepared: Path, tmp_path: Path) -> Callable[..., SimpleNamespace]:  # noqa: F811
    """Builds the real model, and beside it what a plan is made of; keywords go to the arguments of the same name.

    With `follow`, the costs of a pass are there too.
    """

    def make(folder: str | Path, follow: bool = False, **settings: Any) -> SimpleNamespace:
        names = set(ModelArguments.__dataclass_fields__)
        model_arguments = ModelArguments(
            backbone=str(folder), **{name: value for name, value in settings.items() if name in names}
        )
        defaults: dict[str, Any] = {"run_dir": str(tmp_path / "run"), "use_cpu": True, "precision": "fp32"}
        defaults["per_device_train_batch_size"] = 16
        given = {name: value for name, value in settings.items() if name not in names}
        arguments = LLMRecTrainingArguments(**{**defaults, **given})
        torch.manual_seed(0)
        model, processor = build_model(model_arguments)
        arguments.resolve_defaults(model_arguments.tuning, model.config.contrastive_loss)
        model = apply_tuning(model, model_arguments)
        packing = choose_packing(model, processor, arguments.packing, arguments.share_prefixes)
        data = load_prepared(tiny_prepared)
        tokens = TitleTokens.from_titles(processor, data.catalogue.titles)
        shape, _ = planned_model(model_arguments)
        checkpointing = bool(arguments.gradient_checkpointing)
        costs = None
        if follow:
            costs = trace(shape, bf16=False, packed=packing.how != "off", checkpointing=checkpointing)
        causal = is_causal(model.config.text_config) and not model.config.encoder_only
        planned = PlannedData.of(processor, tokens, data, arguments, packing, causal)
        return SimpleNamespace(
            model=model, processor=processor, packing=packing, planned=planned, costs=costs, shape=shape,
            arguments=arguments, model_arguments=model_arguments,
        )  # fmt: skip

    return make
