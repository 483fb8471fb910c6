"""After training: test metrics beside the two baselines, the saved model, and proof that it loads."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from llmrec.data.prepared import PreparedData
from llmrec.data.title_tokens import TitleTokens
from llmrec.evaluation.intervals import Bootstrap
from llmrec.evaluation.ranker import RankResult
from llmrec.evaluation.runner import TUNED, UNTUNED, EvaluationData, evaluate_systems, sample_rows
from llmrec.hub.export import save_model
from llmrec.hub.loading import load_model
from llmrec.retrieval.encoding import encode_histories, encode_titles
from llmrec.retrieval.scorers import EmbeddingScorer
from llmrec.training.arguments import LLMRecTrainingArguments
from llmrec.training.model import build_model, quantization_config
from llmrec.training.model_arguments import ModelArguments
from llmrec.training.processes import share_of
from llmrec.training.run_folder import RunFolder
from llmrec.training.validation import Embeddings, embed

logger = logging.getLogger(__name__)

RELOAD_TOLERANCE = 1e-4
"""Largest difference of a score after saving and loading, relative to the largest score where that is above 1:
merging LoRA adds in another order."""
BF16_RELOAD_TOLERANCE = 5e-2
"""The same where the backbone computes in bf16: sums in another order then differ in the third digit, at each layer."""
CHECKED_USERS, CHECKED_ITEMS = 64, 256


class ReloadError(RuntimeError):
    """The saved model does not give the scores of the trained one."""


def evaluate_and_save(
    model: Any,
    processor: Any,
    title_tokens: TitleTokens,
    data: PreparedData,
    folder: RunFolder,
    model_arguments: ModelArguments,
    arguments: LLMRecTrainingArguments,
    facts: dict[str, Any],
) -> None:
    """Rank the test users with the tuned model, the untuned backbone and popularity; save; check the saved model.

    All processes call it; the main one writes. `results.json` comes last and declares the run finished.

    Args:
        model: the trained model, or the `PeftModel` around it; merged afterwards if that is how it is saved.
        processor, title_tokens, data: what it was trained with.
        folder: the run folder.
        model_arguments, arguments: of the run.
        facts: what `results.json` says about the training.

    Raises:
        ReloadError: the saved model, loaded again, scores differently.
    """
    state = PartialState()
    if model_arguments.save_form == "full" and model_arguments.backbone_dtype != "float32":
        # Merged in bf16, the adapters' small changes would round away. So the numbers of the run are those of the
        # float32 model that is saved.
        model_arguments = dataclasses.replace(model_arguments, backbone_dtype="float32")
        model.float()
    split = EvaluationData.from_prepared(data, "test")
    rows = sample_rows(len(split), arguments.test_users, arguments.seed)
    tuned = _embed(model, processor, title_tokens, split, rows, arguments)
    untuned = _embed_untuned(model_arguments, data, split, rows, arguments, state)
    evaluation = evaluate_systems(
        [
            EmbeddingScorer(UNTUNED, untuned.users, untuned.items, rows),
            EmbeddingScorer(TUNED, tuned.users, tuned.items, rows),
        ],
        split,
        arguments.test_protocols,
        rows=rows[share_of(len(rows), state)],
        # Only the main process's intervals are written.
        bootstrap=Bootstrap(resamples=arguments.bootstrap_resamples if state.is_main_process else 1),
        progress=state.is_main_process,
        merge=_merge if state.num_processes > 1 else None,
    )
    if state.is_main_process:
        save_model(model, processor, folder.model, form=model_arguments.save_form, overwrite=True)
        check_reload(folder.model, title_tokens, split, rows, tuned, quantization_config(model_arguments))
        evaluation.save(folder.path, overwrite=True, extra={"training": facts})
        print(evaluation.table())
        print(f"written to {folder.path}")
    state.wait_for_everyone()


def check_reload(
    folder: Path,
    title_tokens: TitleTokens,
    split: EvaluationData,
    rows: np.ndarray,
    trained: Embeddings,
    quantization: Any = None,
) -> float:
    """Load a saved model and compare its scores with those of the trained one, for some users and items.

    Args:
        folder, title_tokens: the saved model, and the titles as the trained one reads them.
        split, rows, trained: the users, and their vectors and the items' from the trained model.
        quantization: how the backbone was quantised; the adapters of such a run go over the same 4-bit weights.

    Returns:
        The largest difference.

    Raises:
        ReloadError: it is above `RELOAD_TOLERANCE`, or `BF16_RELOAD_TOLERANCE` where the backbone is in bf16.
    """
    model, processor = load_model(folder, **({} if quantization is None else {"quantization_config": quantization}))
    model.to(PartialState().device)
    users = rows[:CHECKED_USERS]
    items = np.unique(np.linspace(0, len(title_tokens) - 1, CHECKED_ITEMS).astype(np.int64))
    # Titles are tokenised again: a saved tokenizer that splits them differently must be found too.
    titles = TitleTokens.from_titles(processor, split.catalogue.titles)
    user_embeds = encode_histories(model, processor, [split.histories[row] for row in users], titles, progress=False)
    item_embeds = encode_titles(model, processor, titles, rows=items, progress=False)
    expected = trained.users[: len(users)] @ trained.items[items].T
    found = user_embeds @ item_embeds.T
    difference = float((found - expected).abs().max())
    tolerance = BF16_RELOAD_TOLERANCE if model.config.dtype == torch.bfloat16 else RELOAD_TOLERANCE
    allowed = tolerance * max(1.0, float(expected.abs().max()))
    if not difference <= allowed:
        raise ReloadError(
            f"the model saved in {folder} gives other scores than the trained one: they differ by up to "
            f"{difference:.2e}, allowed are {allowed:.0e}"
        )
    logger.info("the saved model gives the scores of the trained one (largest difference %.1e)", difference)
    return difference


def _embed(
    model: Any,
    processor: Any,
    title_tokens: TitleTokens,
    split: EvaluationData,
    rows: np.ndarray,
    arguments: LLMRecTrainingArguments,
) -> Embeddings:
    # In the type of the weights, whatever the training's precision: these are the published numbers.
    return embed(
        model, processor, title_tokens, split.histories, rows,
        batch_tokens=arguments.encode_batch_tokens, progress=True,
    )  # fmt: skip


def _embed_untuned(
    model_arguments: ModelArguments,
    data: PreparedData,
    split: EvaluationData,
    rows: np.ndarray,
    arguments: LLMRecTrainingArguments,
    state: PartialState,
) -> Embeddings:
    """Vectors of the backbone as it was downloaded: without the projection, which would be random."""
    model, processor = build_model(model_arguments, projection_dim=None)
    model.to(state.device)
    titles = TitleTokens.from_titles(processor, data.catalogue.titles)
    return _embed(model, processor, titles, split, rows, arguments)


def _merge(result: RankResult) -> RankResult:
    return RankResult.merge(gather_object([result]))
