"""The main job behind `train.py`: data, model, training, evaluation, and a run folder that holds it all."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate import PartialState
from transformers import set_seed

from llmrec.data.prepared import CACHE_FOLDER, PreparedData, load_prepared
from llmrec.data.title_tokens import TitleTokens
from llmrec.evaluation.protocols import get_protocol
from llmrec.evaluation.report import write_report
from llmrec.evaluation.runner import EvaluationData, sample_rows
from llmrec.training.arguments import LLMRecTrainingArguments
from llmrec.training.checkpoints import (
    Batches,
    check_batches,
    check_resumable,
    last_complete,
    remove_incomplete,
    write_json,
)
from llmrec.training.collator import Collator, expected_counts
from llmrec.training.data import ensure_prepared
from llmrec.training.data_arguments import DataArguments
from llmrec.training.examples import PrefixExamples, split_histories
from llmrec.training.final import evaluate_and_save
from llmrec.training.memory import keep_freed_memory
from llmrec.training.model import build_model
from llmrec.training.model_arguments import ModelArguments
from llmrec.training.negatives import NegativeSampler
from llmrec.training.packing import choose_packing
from llmrec.training.parsing import parse_arguments
from llmrec.training.processes import check_world_size, on_main
from llmrec.training.run_folder import RunFolder, RunFolderError, resolved_config
from llmrec.training.sharding import deepspeed_is_asked_for, fsdp_is_asked_for
from llmrec.training.step_inputs import InputBuilder, gathers
from llmrec.training.titles import TitleClasses
from llmrec.training.trainer import LLMRecTrainer, batches_of, mean_logged
from llmrec.training.tuning import apply_tuning, check_adapters_learned, count_parameters
from llmrec.training.validation import RankingValidation

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the arguments and run; returns the exit status."""
    model_arguments, data_arguments, arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
    run(model_arguments, data_arguments, arguments)
    return 0


def run(model_arguments: ModelArguments, data_arguments: DataArguments, arguments: LLMRecTrainingArguments) -> Path:
    """Train, evaluate and save as the arguments say.

    Every process of a distributed run calls it; only the main one writes.

    Returns:
        The run folder.

    Raises:
        RunFolderError, DataError, CheckpointError, ValueError: as the parts say; nothing is trained then.
    """
    state = PartialState()
    _set_up_logging(state)
    check_world_size(state)
    set_seed(arguments.seed)
    model, processor = build_model(model_arguments)
    arguments.resolve_defaults(model_arguments.tuning, model.config.contrastive_loss)
    arguments.precision = arguments.resolved_precision
    folder = RunFolder(str(arguments.run_dir))
    config = resolved_config(model_arguments, data_arguments, arguments)
    resume = arguments.resume_path is not None
    if on_main(state, lambda: folder.check(config, resume=resume, overwrite=arguments.overwrite)) == "finished":
        logger.info("%s holds the finished run already: nothing to do", folder.path)
        if state.is_main_process and not folder.report.exists():
            write_report(folder.path)  # a kill came between the results and the report
        return folder.path
    # Nothing is written into the run folder before data and model have been found good.
    on_main(state, lambda: ensure_prepared(data_arguments))
    data = load_prepared(str(data_arguments.data))
    title_tokens = load_title_tokens(processor, data, state)
    model = apply_tuning(model, model_arguments)
    batches = batches_of(arguments, model.config.contrastive_loss)
    on_main(state, lambda: _begin(folder, config, data, arguments, batches))
    checkpoint = _find_checkpoint(folder, batches, arguments)
    logger.info("precision %s: %s", arguments.resolved_precision, arguments.precision_reason)
    if "tensorboard" in (arguments.report_to or ()):
        os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(folder.logs))
    trainer = build_trainer(model, processor, title_tokens, data, arguments)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    model = trainer.unshard(lambda: apply_tuning(build_model(model_arguments)[0], model_arguments))
    if model_arguments.tuning == "lora":
        check_adapters_learned(model)
    evaluate_and_save(
        model,
        processor,
        title_tokens,
        data,
        folder,
        model_arguments,
        arguments,
        training_facts(trainer, model_arguments),
    )
    return folder.path


def load_title_tokens(processor: Any, data: PreparedData, state: PartialState) -> TitleTokens:
    """Token ids of the catalogue's titles: tokenised by the main process, mapped into memory by all."""
    folder, titles = data.folder / CACHE_FOLDER, data.catalogue.titles
    if state.num_processes > 1:
        on_main(state, lambda: len(TitleTokens.cached(processor, titles, folder, progress=True)))
    return TitleTokens.cached(processor, titles, folder, progress=state.is_main_process)


def build_trainer(
    model: Any,
    processor: Any,
    title_tokens: TitleTokens,
    data: PreparedData,
    arguments: LLMRecTrainingArguments,
) -> LLMRecTrainer:
    """Examples, negatives, collator and validation around a model that is ready to train.

    Sets the backbone's attention to what the packing of the texts needs.
    """
    config, catalogue = model.config, data.catalogue
    domain_codes = np.asarray(catalogue.domain_codes)
    histories = split_histories(data.train)
    examples = PrefixExamples(histories, config.max_history_items, arguments.max_train_examples, arguments.seed)
    classes = TitleClasses(title_tokens, domain_codes)
    sampler = NegativeSampler(
        classes, domain_codes, catalogue.domain_names, int(arguments.negatives_per_example or 0),
        arguments.negative_domain, arguments.seed,
    )  # fmt: skip
    counts = None
    if arguments.logq_correction:
        counts = expected_counts(
            examples.targets(), classes, sampler, arguments.per_device_train_batch_size, arguments.shared_negatives,
            arguments.world_size if gathers(arguments, config.contrastive_loss) else 1,
        )  # fmt: skip
    if arguments.device.type == "cpu":
        keep_freed_memory()
    if not (fsdp_is_asked_for() or deepspeed_is_asked_for()):
        model.to(arguments.device)  # as the trainer would, but before the kernels of that device are tried
    packing = choose_packing(model, processor, arguments.packing, arguments.share_prefixes)
    # Only a user's examples that are in the same batch can share a text.
    examples.by_user = packing.share_prefixes
    collator = Collator(
        processor, title_tokens, histories, classes, domain_codes, sampler, config.contrastive_loss,
        arguments.negative_domain, counts, packing=packing.how, share_prefixes=packing.share_prefixes,
        row_tokens=arguments.row_tokens, max_pass_tokens=arguments.max_pass_tokens,
        shared_negatives=arguments.shared_negatives,
    )  # fmt: skip
    lengths = examples.history_tokens(title_tokens.lengths)
    _report_cuts(examples, lengths, config, processor)
    validation = None
    if arguments.eval_strategy != "no":
        split = EvaluationData.from_prepared(data, "validation")
        validation = RankingValidation(
            processor, title_tokens, split.histories, split.targets, domain_codes, catalogue.domain_names,
            get_protocol(arguments.eval_protocol), sample_rows(len(split), arguments.eval_users, arguments.seed),
            arguments.encode_batch_tokens, torch.bfloat16 if arguments.bf16 else None,
        )  # fmt: skip
    builder = InputBuilder.from_arguments(
        arguments, config.contrastive_loss, processor, title_tokens, classes, domain_codes, counts
    )
    return LLMRecTrainer(model, arguments, examples, collator, validation, lengths, input_builder=builder)


def training_facts(trainer: LLMRecTrainer, model_arguments: ModelArguments) -> dict[str, Any]:
    """What results.json says about the training, beside the configuration in config.yaml."""
    state, arguments = trainer.state, trainer.args
    examples: PrefixExamples = trainer.train_dataset
    seen = round((state.epoch or 0.0) * len(examples))
    seconds = trainer.seconds
    trained, total = count_parameters(trainer.model)
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    means = {
        name: round(mean_logged(state.log_history, name), 4) if losses else None
        for name in ("negatives", "fill_rate", "tokens_per_second")
    }
    return {
        "backbone": model_arguments.backbone,
        "tuning": model_arguments.tuning,
        "contrastive_loss": trainer.model.config.contrastive_loss,
        "trained_parameters": trained,
        "parameters": total,
        "examples_available": examples.available,
        "examples_used": len(examples),
        "examples_seen": seen,
        "epochs": round(state.epoch or 0.0, 4),
        "steps": state.global_step,
        "best_step": state.best_global_step or state.global_step,
        "best_metric": state.best_metric,
        "metric_for_best_model": arguments.metric_for_best_model,
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "negatives_counted": means["negatives"],
        "fill_rate": means["fill_rate"],
        "tokens_per_second": means["tokens_per_second"],
        "seconds": round(seconds, 1),
        "examples_per_second": round(seen / seconds, 2) if seconds else None,
        "precision": arguments.resolved_precision,
        "processes": arguments.world_size,
        "device": arguments.device.type,
        "threads": torch.get_num_threads(),
        "batch_size": arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size,
        "seed": arguments.seed,
    }


def _report_cuts(examples: PrefixExamples, lengths: np.ndarray, config: Any, processor: Any) -> None:
    """Say once how many histories are longer than the limits."""
    by_items = int((examples.prefix_lengths() > config.max_history_items).sum())
    room = config.max_history_tokens - len(processor.layout_item([]))
    by_tokens = int((lengths > room).sum())
    logger.info(
        "%s training examples of %s; histories cut to the newest %d items: %s, further cut to %d tokens: %s",
        f"{len(examples):,}",
        f"{examples.available:,}",
        config.max_history_items,
        f"{by_items:,}",
        config.max_history_tokens,
        f"{by_tokens:,}",
    )


def _begin(
    folder: RunFolder,
    config: dict[str, Any],
    data: PreparedData,
    arguments: LLMRecTrainingArguments,
    batches: Batches,
) -> None:
    """Make the run folder ready: an old run removed or found to fit, and what a kill has left taken away."""
    origin = folder.checkpoints / "data.json"
    if origin.exists() and not arguments.overwrite:
        then = json.loads(origin.read_text(encoding="utf-8"))
        if then["hash"] != data.hash:
            raise RunFolderError(
                f"{folder.path} was trained on data with hash {then['hash'][:16]}…, {data.folder} now has "
                f"{data.hash[:16]}…: bring the old data back, or start again with --overwrite"
            )
        check_batches(str(folder.path), then, batches)
    folder.begin(config, overwrite=arguments.overwrite)
    write_json(origin, {"hash": data.hash, **batches.describe()})
    remove_incomplete(folder.checkpoints)


def _find_checkpoint(folder: RunFolder, batches: Batches, arguments: LLMRecTrainingArguments) -> Path | None:
    """The checkpoint to resume from; None to start from scratch."""
    if arguments.resume_path is None:
        return None
    named = None if arguments.resume_path == "last" else Path(arguments.resume_path)
    checkpoint = named or last_complete(folder.checkpoints)
    if checkpoint is None:
        logger.info("no complete checkpoint in %s: starting from scratch", folder.checkpoints)
        return None
    processes = check_resumable(checkpoint, batches)
    logger.info("resuming from %s", checkpoint)
    if processes != batches.processes:
        logger.warning(
            "%s was written by %d processes, this run has %d: steps have the same examples as before (but for the last "
            "one of an epoch, which several processes fill up), while dropout falls otherwise, so losses agree with "
            "those of an undisturbed run in the mean and not to the last bit",
            checkpoint, processes, batches.processes,
        )  # fmt: skip
    return checkpoint


def _set_up_logging(state: PartialState) -> None:
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("llmrec").setLevel(logging.INFO if state.is_main_process else logging.WARNING)
    transformers.utils.logging.set_verbosity_warning()
