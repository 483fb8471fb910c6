"""Run by torchrun: one optimizer step of each variant, whose gradients and counts each process writes down."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file

from llmrec.data.prepared import load_prepared
from llmrec.data.title_tokens import TitleTokens
from llmrec.training.arguments import LLMRecTrainingArguments
from llmrec.training.model import build_model
from llmrec.training.model_arguments import ModelArguments
from llmrec.training.run import build_trainer
from llmrec.training.tuning import apply_tuning
from tests.training.test_trainer import Gradients, no_dropout, wake_adapters


def one_step(job: dict[str, Any], name: str) -> None:
    """One optimizer step; `<name>-<process>.safetensors` and `.json` are written."""
    made = make(job, name)
    no_dropout(made.model)
    wake_adapters(made.model)
    watch = Watch(made.trainer)
    made.trainer.train()
    process = made.trainer.args.process_index
    save_file(watch.gradients.found, Path(job["out"]) / f"{name}-{process}.safetensors")
    found = {
        "log": made.trainer.state.log_history[0], "items": watch.items, "chunks": watch.chunks,
        "unsynchronised": watch.unsynchronised,
    }  # fmt: skip
    (Path(job["out"]) / f"{name}-{process}.json").write_text(json.dumps(found))


def make(job: dict[str, Any], name: str) -> SimpleNamespace:
    """Model and trainer of a variant."""
    settings = {**job["common"], **job["variants"][name]}
    of_model = {key: settings.pop(key) for key in list(settings) if key in ModelArguments.__dataclass_fields__}
    model_arguments = ModelArguments(**of_model)
    arguments = LLMRecTrainingArguments(run_dir=str(Path(job["out"]) / name), **settings)
    assert arguments.world_size == 2
    torch.manual_seed(0)
    model, processor = build_model(model_arguments)
    arguments.resolve_defaults(model_arguments.tuning, model.config.contrastive_loss)
    data = load_prepared(job["data"])
    model = apply_tuning(model, model_arguments)
    title_tokens = TitleTokens.from_titles(processor, data.catalogue.titles)
    return SimpleNamespace(model=model, trainer=build_trainer(model, processor, title_tokens, data, arguments))


class Watch:
    """Gradients of the first step, and what its forward passes were made of."""

    def __init__(self, trainer: Any) -> None:
        self.gradients = Gradients()
        self.items: list[int] = []
        self.chunks: list[int] = []
        self.unsynchronised = 0
        trainer.add_callback(self.gradients)
        build, count = trainer.input_builder, trainer.accelerator.no_sync

        def watching(batch: dict[str, Any], step: int) -> Any:
            self.items.append(batch["candidate_mask"].shape[1])
            self.chunks.append(len(batch.get("texts", [None])))
            return build(batch, step)

        watching.bank = build.bank  # type: ignore[attr-defined]
        trainer.input_builder = watching

        def no_sync(*args: Any, **kwargs: Any) -> Any:
            self.unsynchronised += 1
            return count(*args, **kwargs)

        trainer.accelerator.no_sync = no_sync


if __name__ == "__main__":
    description = json.loads(os.environ["LLMREC_JOB"])
    for variant in description["variants"]:
        one_step(description, variant)
