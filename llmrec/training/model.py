"""The model that a run starts from."""

from __future__ import annotations

from typing import Any

from llmrec.backbones import resolve_backbone
from llmrec.training.model_arguments import ModelArguments
from modeling_llmrec import LLMRecModel, LLMRecProcessor


def build_model(arguments: ModelArguments, **overrides: Any) -> tuple[Any, Any]:
    """The untrained model around a pre-trained backbone, and its processor."""
    source = resolve_backbone(arguments.backbone)
    fields = {**arguments.config_overrides, **overrides}
    if source != arguments.backbone and arguments.save_form == "full":
        # Full weights do not need it again, so the published name may stand there and not a path of this machine.
        fields["backbone_name_or_path"] = arguments.backbone
    model = LLMRecModel.from_backbone(
        source,
        revision=arguments.backbone_revision,
        preset=arguments.preset,
        attn_implementation=arguments.attn_implementation,
        **fields,
    )
    revision = {"revision": arguments.backbone_revision} if arguments.backbone_revision else {}
    return model, LLMRecProcessor.from_backbone(source, config=model.config, **revision)
