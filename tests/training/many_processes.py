"""Run by a launcher with several processes: trains as the jobs say, and writes down losses, metrics and weights."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import TrainerCallback

from llmrec.data.prepared import load_prepared
from llmrec.data.title_tokens import TitleTokens
from llmrec.training.arguments import LLMRecTrainingArguments
from llmrec.training.checkpoints import check_resumable, last_complete
from llmrec.training.model import build_model
from llmrec.training.model_arguments import ModelArguments
from llmrec.training.run import build_trainer
from llmrec.training.run import main as train_main
from llmrec.training.sharding import full_tensor, is_sharded
from llmrec.training.tuning import apply_tuning

SHARDING = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")


class Stopped(Exception):
    """Ends a job where it says so."""


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise Stopped


def without_dropout(model: torch.nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def train(job: dict[str, Any], shared: dict[str, Any]) -> None:
    """One training; `job`: name, run (folder's name), settings, and optionally backbone, stop, resume, dropout."""
    names = set(ModelArguments.__dataclass_fields__)
    settings = dict(job["settings"])
    model_arguments = ModelArguments(
        backbone=job.get("backbone", shared["backbone"]),
        **{name: settings.pop(name) for name in list(settings) if name in names},
    )
    out = Path(shared["out"])
    defaults = {
        "run_dir": str(out / job["run"]), "precision": "fp32", "use_cpu": True, "disable_tqdm": True,
        "save_strategy": "no", "eval_strategy": "no", "learning_rate": 3e-3, "logging_steps": 1,
    }  # fmt: skip
    arguments = LLMRecTrainingArguments(**{**defaults, **settings})
    # Adapters and head differ from process to process, as they may where one has drawn more numbers than another.
    torch.manual_seed(arguments.process_index)
    model, processor = build_model(model_arguments)
    arguments.resolve_defaults(model_arguments.tuning, model.config.contrastive_loss)
    data = load_prepared(shared["data"])
    model = apply_tuning(model, model_arguments)
    if not job.get("dropout"):
        without_dropout(model)
    title_tokens = TitleTokens.from_titles(processor, data.catalogue.titles)
    trainer = build_trainer(model, processor, title_tokens, data, arguments)
    if "stop" in job:
        trainer.add_callback(StopAt(job["stop"]))
    checkpoint = None
    if job.get("resume"):
        checkpoint = last_complete(Path(arguments.output_dir))
        assert checkpoint is not None
        check_resumable(checkpoint, trainer.batches)
        torch.rand(7)
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except Stopped:
        return
    sharded = is_sharded(trainer.model)
    local = sum(getattr(p, "_local_tensor", p).numel() for p in trainer.model.parameters())
    weights = {
        name: full_tensor(parameter).clone().contiguous() for name, parameter in trainer.model.named_parameters()
    }
    log = [entry for entry in trainer.state.log_history if "loss" in entry or any(n.startswith("eval") for n in entry)]
    if arguments.process_index == 0:
        save_file(weights, out / f"{job['name']}.safetensors")
        found = {
            "log": log, "sharded": sharded, "local": local, "all": sum(w.numel() for w in weights.values()),
            "type": str(trainer.accelerator.distributed_type), "processes": arguments.world_size,
        }  # fmt: skip
        (out / f"{job['name']}.json").write_text(json.dumps(found))


def main() -> None:
    shared = json.loads(os.environ["LLMREC_JOBS"])
    launched = {name: os.environ.get(name) for name in SHARDING}
    for job in shared["jobs"]:
        for name, value in launched.items():
            os.environ.pop(name, None)
            if value is not None and job.get("sharded"):
                os.environ[name] = value
        if "command" in job:
            train_main(job["command"])
        else:
            train(job, shared)


if __name__ == "__main__":
    main()
