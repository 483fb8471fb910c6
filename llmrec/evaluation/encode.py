"""From a model to a scorer: encode the catalogue and the users of a split."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from llmrec.data.title_tokens import TitleTokens
from llmrec.evaluation.runner import EvaluationData
from llmrec.retrieval.encoding import encode_histories, encode_titles
from llmrec.retrieval.scorers import EmbeddingScorer

# What of a tuned model's configuration its untuned twin shares: how texts are laid out and vectors compared.
# Not the projection, which the untuned model does not have: a random one would make it worse than it is.
SHARED_FIELDS = (
    "encoder_only",
    "pooling",
    "normalize",
    "temperature",
    "item_separator",
    "max_title_tokens",
    "max_history_items",
    "max_history_tokens",
    "item_order",
    "prefix_tokens",
    "suffix_tokens",
)


def embedding_scorer(
    name: str,
    model: Any,
    processor: Any,
    data: EvaluationData,
    *,
    rows: np.ndarray | None = None,
    title_tokens: TitleTokens | None = None,
    item_embeds: torch.Tensor | None = None,
    progress: bool = True,
    **encoding: Any,
) -> EmbeddingScorer:
    """Encode the catalogue and the users, and score by dot products on the model's device.

    Args:
        name: name of the system in reports.
        model: an `LLMRecModel`, or a PEFT model around one.
        processor: its processor.
        data: the split.
        rows: int (R,), row numbers of the users to encode; all by default.
        title_tokens: the catalogue's titles, tokenised by this processor; done here otherwise.
        item_embeds: (N, D), the catalogue's vectors where they are known already, for instance because
            several processes shared the work.
        progress: show progress bars.
        encoding: `batch_tokens` and `autocast_dtype` of `encode_titles`.
    """
    if title_tokens is None:
        title_tokens = TitleTokens.from_titles(processor, data.catalogue.titles, progress=progress)
    if item_embeds is None:
        item_embeds = encode_titles(model, processor, title_tokens, progress=progress, **encoding)
    chosen = np.arange(len(data)) if rows is None else np.asarray(rows, dtype=np.int64)
    histories = [data.histories[int(row)] for row in chosen]
    user_embeds = encode_histories(model, processor, histories, title_tokens, progress=progress, **encoding)
    device = next(model.parameters()).device
    return EmbeddingScorer(name, user_embeds, item_embeds.to(device), rows=chosen)


def untuned_twin(config: Any, tokenizer: Any, backbone: str | None = None) -> Any:
    """The pre-trained backbone of a tuned model, before tuning, with the same text layout and pooling.

    Args:
        config: the tuned model's `LLMRecConfig`.
        tokenizer: the tuned model's tokenizer.
        backbone: folder or Hub id; `config.backbone_name_or_path` by default.

    Returns:
        An `LLMRecModel`; the tuned model's processor fits it.

    Raises:
        OSError: the backbone cannot be had.
        ValueError: the configuration names none.
    """
    from llmrec.backbones import resolve_backbone
    from modeling_llmrec import LLMRecModel

    name = backbone or config.backbone_name_or_path
    if not name:
        raise ValueError(
            "the model's configuration names no backbone, so there is no untuned system to compare with: "
            "give --baseline-backbone, or leave it out with --no-untuned"
        )
    fields = {field: getattr(config, field) for field in SHARED_FIELDS}
    revision = config.backbone_revision if backbone is None else None
    try:
        return LLMRecModel.from_backbone(resolve_backbone(name), revision=revision, tokenizer=tokenizer, **fields)
    except OSError as error:
        raise OSError(
            f"the untuned backbone {name!r} cannot be loaded ({error}). Give another place with "
            "--baseline-backbone, or leave it out with --no-untuned"
        ) from error
