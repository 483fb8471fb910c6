"""Two processes that share the weights out (FSDP2 over gloo) train, evaluate and save what DDP and one process do."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llmrec.training import sharding
from llmrec.training.arguments import LLMRecTrainingArguments
from llmrec.training.sharding import (
    ShardingError,
    check_launcher,
    choose_layers,
    join_tied_embeddings,
    refuse_scalars,
)
from modeling_llmrec import LLMRecModel
from tests.modeling.families import backbone_folder
from tests.training.conftest import losses, weights
from tests.training.launching import launch
from tests.training.many_processes import without_dropout

Make = Callable[..., SimpleNamespace]

FULL = {
    "tuning": "full", "num_train_epochs": 2, "max_train_examples": 96, "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 2, "eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps",
    "save_steps": 3, "eval_users": 31, "max_grad_norm": 0.5,
}  # fmt: skip
LORA = {
    "tuning": "lora", "projection_dim": 16, "max_steps": 6, "per_device_train_batch_size": 8,
    "contrastive_loss": "sampled_softmax", "negatives_per_example": 4, "activation_checkpointing": True,
}  # fmt: skip
CHUNKS = {
    "tuning": "full", "max_steps": 3, "per_device_train_batch_size": 16, "contrastive_loss": "in_batch",
    "max_pass_tokens": 96,
}  # fmt: skip


@pytest.fixture(scope="module")
def found(
    tiny_backbone: Path, tiny_prepared: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], SimpleNamespace]:
    """Results of all jobs by name: one launch for all, because a launch costs more than they do."""
    out = tmp_path_factory.mktemp("sharded")
    jobs: list[dict[str, Any]] = [
        {"name": "full-ddp", "run": "a", "settings": FULL},
        {"name": "full", "run": "b", "settings": FULL, "sharded": True},
        {"name": "lora-ddp", "run": "c", "settings": LORA},
        {"name": "lora", "run": "d", "settings": LORA, "sharded": True},
        {"name": "chunks-ddp", "run": "e", "settings": CHUNKS},
        {"name": "chunks", "run": "f", "settings": CHUNKS, "sharded": True},
        {"name": "bf16", "run": "g", "settings": {**LORA, "precision": "bf16"}, "sharded": True},
        # Dropout on: a resumed run repeats the undisturbed one only if the random states are restored too.
        {"name": "undisturbed", "run": "h", "settings": FULL, "sharded": True, "dropout": True},
        {"name": "stopped", "run": "i", "settings": FULL, "sharded": True, "dropout": True, "stop": 5},
        {"name": "resumed", "run": "i", "settings": FULL, "sharded": True, "dropout": True, "resume": True},
        {"name": "finished", "run": "i", "settings": FULL, "sharded": True, "dropout": True, "resume": True},
        {"command": command(tiny_backbone, tiny_prepared, out / "run"), "sharded": True},
    ]
    launch("fsdp2", {"backbone": str(tiny_backbone), "data": str(tiny_prepared), "out": str(out), "jobs": jobs})

    def read(name: str) -> SimpleNamespace:
        return SimpleNamespace(
            weights=load_file(out / f"{name}.safetensors"), **json.loads((out / f"{name}.json").read_text())
        )

    read.out = out  # type: ignore[attr-defined]
    return read


def command(backbone: Path, data: Path, run: Path) -> list[str]:
    flags = {
        "run_dir": run, "backbone": backbone, "data": data, "tuning": "lora", "precision": "fp32", "max_steps": 6,
        "per_device_train_batch_size": 8, "eval_steps": 3, "save_steps": 3, "learning_rate": 3e-3, "use_cpu": True,
        "disable_tqdm": True, "eval_users": 31, "test_users": 31, "projection_dim": 16, "bootstrap_resamples": 20,
    }  # fmt: skip
    return [part for name, value in flags.items() for part in (f"--{name}", str(value))]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full", "lora", "chunks"])
def test_sharded_training_is_the_replicated_one(found: Callable[[str], Any], name: str) -> None:
    sharded, replicated = found(name), found(f"{name}-ddp")
    assert sharded.type.endswith("FSDP") and sharded.sharded and not replicated.sharded
    # Each process holds half of the weights, up to rounding.
    assert 0.49 * sharded.all < sharded.local < 0.51 * sharded.all and sharded.all == replicated.all
    assert_same_log(sharded.log, replicated.log, 1e-5)
    assert sharded.weights.keys() == replicated.weights.keys()
    changes = 0.0
    for tensor, value in sharded.weights.items():
        if "original_module" in tensor:
            continue  # PEFT's copy of the untrained head takes part in nothing, and each process drew its own
        assert float((value - replicated.weights[tensor]).abs().max()) <= 1e-5, tensor
        changes += float(value.abs().sum())
    assert changes > 0


@pytest.mark.slow
def test_one_process_trains_the_same_weights(found: Callable[[str], Any], make_trainer: Make) -> None:
    made = make_trainer(**{**FULL, "per_device_train_batch_size": 16, "logging_steps": 1})
    without_dropout(made.model)
    made.trainer.train()
    sharded, alone = found("full"), weights(made.model)
    assert _losses(sharded.log) == pytest.approx([loss for _, loss in losses(made.trainer)], abs=1e-5)
    assert alone.keys() == sharded.weights.keys()
    for name, value in alone.items():
        assert float((value - sharded.weights[name]).abs().max()) <= 1e-5, name


@pytest.mark.slow
def test_a_sharded_run_resumes_to_the_last_bit(found: Callable[[str], Any]) -> None:
    undisturbed, resumed = found("undisturbed"), found("resumed")
    assert_same_log(resumed.log, undisturbed.log, 0.0)
    again = found("finished")  # only loads its result; the best checkpoint is in shards too
    for name, value in undisturbed.weights.items():
        assert torch.equal(value, resumed.weights[name]), name
        assert torch.equal(value, again.weights[name]), name
    folder = found.out / "i" / "checkpoints" / "checkpoint-6"  # type: ignore[attr-defined]
    files = json.loads((folder / "complete.json").read_text())["files"]
    assert {"trainable/__0_0.distcp", "trainable/__1_0.distcp", "trainable/.metadata"} <= set(files)
    assert any(name.startswith("optimizer_0/") for name in files)


@pytest.mark.slow
def test_bf16_keeps_the_loss_and_the_master_weights_in_float32(found: Callable[[str], Any]) -> None:
    bf16, fp32 = found("bf16"), found("lora")
    assert {value.dtype for value in bf16.weights.values()} == {torch.float32}
    pairs = list(zip(_losses(bf16.log), _losses(fp32.log), strict=True))
    assert any(one != other for one, other in pairs)
    for one, other in pairs:
        assert one == pytest.approx(other, rel=0.02)
        assert torch.tensor(one).bfloat16().item() != one  # not rounded on its way out of the model


@pytest.mark.slow
def test_a_whole_run_under_fsdp_saves_a_whole_model(found: Callable[[str], Any]) -> None:
    folder = found.out / "run"  # type: ignore[attr-defined]
    results = json.loads((folder / "results.json").read_text())
    assert results["training"]["processes"] == 2
    model = LLMRecModel.from_pretrained(folder / "model")
    # LoRA is merged and the projection is there; run() itself has compared the reloaded model's scores.
    assert model.head.projection is not None and not any("lora" in name for name, _ in model.named_parameters())
    assert results["training"]["parameters"] > results["training"]["trained_parameters"] > 0


# -- the launcher's configuration --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"FSDP_VERSION": "1"}, "fsdp_version: 1"),
        ({"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, "fsdp_cpu_ram_efficient_loading: true leaves"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "other dropout masks"),
        ({"FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}, "say SHARDED_STATE_DICT"),
    ],
)
def test_what_would_train_wrongly_is_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    check_launcher()
    for name, value in {"FSDP_VERSION": "2", "ACCELERATE_USE_FSDP": "true", **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ShardingError, match=message):
        check_launcher()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "opt", "t5", "bart", "llama", "qwen3", "modernbert"])
def test_layers_are_found_in_every_family(family: str, minilm: str, shared_weights: Path, tmp_path: Path) -> None:
    model = LLMRecModel.from_backbone(backbone_folder(family, minilm, shared_weights, tmp_path))
    embeddings, names = model.get_input_embeddings(), [name for name, _ in model.named_parameters()]
    plugin = SimpleNamespace(transformer_cls_names_to_wrap=None)
    join_tied_embeddings(model)
    choose_layers(plugin, model)
    layers = [part for part in model.modules() if type(part).__name__ in plugin.transformer_cls_names_to_wrap]
    assert layers and not any(part is embeddings for layer in layers for part in layer.modules())
    # What no layer holds is little beside the embeddings: the head and a few norms.
    inside = {id(parameter) for layer in [*layers, embeddings] for parameter in layer.parameters()}
    outside = sum(one.numel() for one in model.parameters() if id(one) not in inside)
    assert outside < 0.2 * sum(one.numel() for one in model.parameters())
    assert [name for name, _ in model.named_parameters()] == names
    owners = [part for part in model.modules() if getattr(part, "weight", None) is embeddings.weight]
    assert owners == [embeddings]


def test_gradient_caching_under_deepspeed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_launcher(256)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    check_launcher(None)
    with pytest.raises(ShardingError, match=r"max_pass_tokens=256.*fsdp2\.yaml"):
        check_launcher(256)


def test_a_learned_temperature_is_refused_by_name(make_trainer: Make) -> None:
    made = make_trainer(learn_temperature=True)
    with pytest.raises(ShardingError, match=r"log_scale.* is a single number.*learn_temperature"):
        refuse_scalars(made.model)
    refuse_scalars(make_trainer("other").model)


@pytest.mark.parametrize("name", ["fsdp", "deepspeed"])
def test_the_one_way_to_shard_is_the_launchers(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{name}=.*accelerate launch --config_file configs/accelerate/\w+.yaml"):
        LLMRecTrainingArguments(run_dir=str(tmp_path), **{name: "ds.json" if name == "deepspeed" else "full_shard"})


def test_an_ordinary_model_is_left_alone(make_trainer: Make) -> None:
    made = make_trainer()
    with made.trainer.whole_model() as model:
        assert model is made.model
    assert made.trainer.unshard(lambda: pytest.fail("nothing to build")) is made.model
    assert not sharding.is_sharded(made.model)


def _losses(log: list[dict]) -> list[float]:
    return [entry["loss"] for entry in log if "loss" in entry]


def assert_same_log(one: list[dict], other: list[dict], tolerance: float) -> None:
    timeless = ("runtime", "per_second", "fill", "tokens")
    assert len(one) == len(other) and one
    for mine, yours in zip(one, other, strict=True):
        for name in mine:
            if not any(part in name for part in timeless):
                assert mine[name] == pytest.approx(yours[name], abs=tolerance, rel=tolerance), (name, mine, yours)
