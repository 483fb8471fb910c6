"""Run by torchrun: one training step with each loss, whose gradients and evaluation each process writes down."""

import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file

from llmrec.data.prepared import load_prepared
from llmrec.data.title_tokens import TitleTokens
from llmrec.training.arguments import LLMRecTrainingArguments
from llmrec.training.model import build_model
from llmrec.training.model_arguments import ModelArguments
from llmrec.training.run import build_trainer
from llmrec.training.tuning import apply_tuning
from tests.training.test_trainer import Gradients, no_dropout


def one_step(job: dict, loss: str) -> None:
    out, settings = Path(job["out"]), dict(job["settings"])
    tuning = settings.pop("tuning")
    model_arguments = ModelArguments(backbone=job["backbone"], tuning=tuning, contrastive_loss=loss)
    arguments = LLMRecTrainingArguments(
        run_dir=str(out / loss), precision="fp32", use_cpu=True, disable_tqdm=True, save_strategy="no",
        learning_rate=3e-3, **settings,
    )  # fmt: skip
    assert arguments.world_size == 2
    torch.manual_seed(0)
    model, processor = build_model(model_arguments)
    arguments.resolve_defaults(tuning, loss)
    data = load_prepared(job["data"])
    model = apply_tuning(model, model_arguments)
    no_dropout(model)
    title_tokens = TitleTokens.from_titles(processor, data.catalogue.titles)
    trainer = build_trainer(model, processor, title_tokens, data, arguments)
    gradients = Gradients()
    trainer.add_callback(gradients)
    metrics = trainer.evaluate()
    trainer.train()
    save_file(gradients.found, out / f"{loss}-{arguments.process_index}.safetensors")
    (out / f"{loss}-{arguments.process_index}.json").write_text(json.dumps(metrics))


if __name__ == "__main__":
    description = json.loads(os.environ["LLMREC_JOB"])
    for name in description["losses"]:
        one_step(description, name)
