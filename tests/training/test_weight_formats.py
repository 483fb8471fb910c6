"""Backbones in bf16 and in 4 bits: what has which type, what is trained, and that saved adapters load as before."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import OPTConfig, OPTModel, PreTrainedTokenizerFast

from llmrec.hub.export import save_model
from llmrec.training.model import build_model
from llmrec.training.model_arguments import ModelArguments
from llmrec.training.optimizers import check_optimizer, library_of
from llmrec.training.parsing import ArgumentsError, parse_arguments
from llmrec.training.tuning import apply_tuning, count_parameters
from modeling_llmrec import LLMRecModel

NEEDED = ["--data", "prepared/shop", "--run_dir", "runs/x"]
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed (extra qlora)"
)
without_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed"
)


def _bf16(**settings: Any) -> dict[str, Any]:
    return {"backbone_dtype": "bfloat16", "projection_dim": 8, "learn_temperature": True, **settings}


def _batch(rows: int = 3) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 30, (rows, 6), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "item_input_ids": ids[:, :3], "positive_index": torch.arange(rows)}


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--backbone_dtype", "bfloat16", "--tuning", "full"], "small steps would round to nothing; train adapters"),
        (["--quantization", "nf4", "--tuning", "full"], "quantization='nf4' needs tuning='lora', not 'full'"),
        (["--quantization", "nf4"], "quantization='nf4' needs save_form='adapter'"),
    ],
)
def test_combinations_that_lose_something_are_refused(flags: list[str], message: str) -> None:
    with pytest.raises(ArgumentsError, match=message):
        parse_arguments([*NEEDED, *flags])


def test_a_missing_library_is_named_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    missing = ("bitsandbytes", "torchao")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in missing else real(name, *a))
    with pytest.raises(ModuleNotFoundError, match="`pip install bitsandbytes`.*made for GPUs"):
        build_model(ModelArguments(backbone="nowhere", quantization="nf4", save_form="adapter"))
    for optim, library in (("adamw_bnb_8bit", "bitsandbytes"), ("adamw_torch_8bit", "torchao")):
        with pytest.raises(ArgumentsError, match=f"optim='{optim}' needs {library}: `pip install {library}`"):
            parse_arguments([*NEEDED, "--optim", optim])
    parse_arguments([*NEEDED, "--optim", "adafactor"])


def test_every_optimizer_of_transformers_that_needs_bitsandbytes_is_known() -> None:
    from transformers.trainer_optimizer import _BITSANDBYTES_OPTIMIZERS
    from transformers.training_args import OptimizerNames

    needing = {str(name.value) for name in OptimizerNames if library_of(str(name.value)) == "bitsandbytes"}
    assert needing == {str(OptimizerNames(name).value) for name in _BITSANDBYTES_OPTIMIZERS}
    check_optimizer("adamw_torch_fused")


def test_the_default_optimizer_is_fused(make_trainer: Callable[..., SimpleNamespace]) -> None:
    trainer = make_trainer(tuning="frozen", projection_dim=4).trainer
    assert trainer.args.optim == "adamw_torch_fused"
    assert trainer.create_optimizer().defaults["fused"] is True


# -- bf16 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tuning", ["lora", "frozen"])
@pytest.mark.parametrize("autocast", [False, True])
def test_what_is_trained_is_float32(tiny_backbone: Path, tuning: str, autocast: bool) -> None:
    arguments = ModelArguments(backbone=str(tiny_backbone), **_bf16(tuning=tuning))
    model, _ = build_model(arguments)
    model = apply_tuning(model, arguments)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert any("projection" in name for name in trained) and any("log_scale" in name for name in trained)
    frozen_backbone = [
        p for name, p in model.named_parameters() if not p.requires_grad and "backbone" in name and "lora" not in name
    ]
    assert {p.dtype for p in frozen_backbone} == {torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = model(**_batch())
    assert output.user_embeds.dtype == output.loss.dtype == torch.float32
    output.loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in trained.values())
    exact = LLMRecModel.from_backbone(tiny_backbone, projection_dim=8)
    exact.head.load_state_dict({"projection.weight": next(p for n, p in trained.items() if "projection" in n)})
    expected = exact(**_batch()).user_embeds
    # Cosines of vectors that bf16 rounds to 8 bits at every layer; dropout is off in a model that was just built.
    model.eval()
    assert float((model(**_batch()).user_embeds * expected).sum(-1).min()) > 0.995


def _learn_something(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.05, generator=generator)


def test_adapters_over_bf16_are_saved_and_loaded_unrounded(tiny_backbone: Path, tmp_path: Path) -> None:
    arguments = ModelArguments(backbone=str(tiny_backbone), save_form="adapter", **_bf16())
    model, processor = build_model(arguments)
    model = apply_tuning(model, arguments).eval()
    _learn_something(model)
    expected = model(**_batch()).scores
    save_model(model, processor, tmp_path / "model", form="adapter")
    loaded = LLMRecModel.from_pretrained(tmp_path / "model")
    assert loaded.backbone.dtype == loaded.config.dtype == torch.bfloat16
    saved = {name.replace(".default", ""): p for name, p in model.get_base_model().named_parameters() if "lora" in name}
    found = {name.replace(".default", ""): p for name, p in loaded.named_parameters() if "lora" in name}
    assert saved.keys() == found.keys() and found
    for name, parameter in saved.items():
        assert found[name].dtype == torch.float32 and torch.equal(found[name], parameter), name
    assert torch.equal(loaded(**_batch()).scores, expected)
    # In float32 the same adapters go over the same weights: nearly the same scores.
    wide = LLMRecModel.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert wide.backbone.dtype == torch.float32
    assert float((wide(**_batch()).scores - expected).abs().max()) < 0.05


@pytest.mark.parametrize("form", ["full", "adapter"])
@pytest.mark.slow
def test_a_whole_run_with_a_bf16_backbone(tiny_backbone: Path, tiny_prepared: Path, tmp_path: Path, form: str) -> None:
    from safetensors.torch import load_file

    from llmrec.training.run import main

    folder = tmp_path / "run"
    main(
        [
            "--backbone", str(tiny_backbone), "--data", str(tiny_prepared), "--run_dir", str(folder), "--use_cpu",
            "--backbone_dtype", "bfloat16", "--save_form", form, "--max_steps", "4", "--precision", "fp32",
            "--per_device_train_batch_size", "8", "--eval_users", "10", "--test_users", "10", "--disable_tqdm", "true",
            "--test_protocols", "full", "--bootstrap_resamples", "10", "--eval_steps", "2", "--save_steps", "2",
            "--learning_rate", "0.01",
        ]
    )  # fmt: skip
    assert (folder / "results.json").is_file()
    model = LLMRecModel.from_pretrained(folder / "model")
    # Merged weights are float32: in bf16 the adapters' small changes would round away.
    assert model.backbone.dtype == (torch.float32 if form == "full" else torch.bfloat16)
    if form == "full":
        stored = load_file(folder / "model" / "model.safetensors")
        changed = [t for name, t in stored.items() if name.endswith("query.weight")]
        assert changed and all(not torch.equal(t, t.bfloat16().float()) for t in changed)


_LOAD = """
import re, sys, threading, time
from pathlib import Path
import torch
from modeling_llmrec import LLMRecModel

def held():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1)) / 1024

before, peak, done = held(), [0.0], []

def watch():
    while not done:
        peak[0] = max(peak[0], held())
        time.sleep(0.001)

thread = threading.Thread(target=watch)
thread.start()
model = LLMRecModel.from_backbone(sys.argv[1], dtype=torch.bfloat16)
done.append(True)
thread.join()
size = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
print(max(peak[0], held()) - before, size, len({p.dtype for p in model.parameters()}), held() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_loading_in_bf16_holds_the_weights_once(tiny_backbone: Path, tmp_path: Path, stored: str) -> None:
    """A float32 checkpoint in shards becomes a bf16 model without a float32 copy of the whole in between."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_backbone)
    tokenizer.eos_token = "[SEP]"
    config = OPTConfig(
        vocab_size=len(tokenizer), hidden_size=1024, num_hidden_layers=8, num_attention_heads=8, ffn_dim=4096,
        word_embed_proj_dim=1024, max_position_embeddings=512,
    )  # fmt: skip
    OPTModel(config).to(getattr(torch, stored)).save_pretrained(tmp_path, max_shard_size="50MB")
    tokenizer.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    result = subprocess.run([sys.executable, "-c", _LOAD, str(tmp_path)], capture_output=True, text=True, check=True)
    peak, size, types, _ = (float(word) for word in result.stdout.split())
    assert types == 1 and size > 150
    # Memory of the process's own; what is mapped from the file can be dropped at any time. Stored in bf16, the file
    # itself is the weights, and nothing is copied.
    assert peak < (1.3 * size if stored == "float32" else 0.5 * size) + 40, result.stdout


# -- 4 bits ----------------------------------------------------------------------------------------


@without_bitsandbytes
def test_without_bitsandbytes_the_error_says_what_to_install(tiny_backbone: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match="pip install bitsandbytes"):
        build_model(ModelArguments(backbone=str(tiny_backbone), quantization="nf4", save_form="adapter"))


@needs_bitsandbytes
def test_adapters_learn_over_4_bits(tiny_backbone: Path, tmp_path: Path) -> None:
    arguments = ModelArguments(
        backbone=str(tiny_backbone), quantization="nf4", save_form="adapter", projection_dim=8, lora_dropout=0.0
    )
    model, processor = build_model(arguments)
    model = apply_tuning(model, arguments)
    plain = apply_tuning(
        LLMRecModel.from_backbone(tiny_backbone, projection_dim=8), ModelArguments(tuning="lora", projection_dim=8)
    )
    assert count_parameters(model) == count_parameters(plain)
    weight = model.get_base_model().backbone.encoder.layer[0].attention.self.query.base_layer.weight
    assert type(weight).__name__ == "Params4bit" and weight.quant_state.nested and weight.quant_type == "nf4"
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    optimizer = torch.optim.AdamW(trained, lr=0.01)
    before = float(model(**_batch()).loss)
    for _ in range(5):
        loss = model(**_batch()).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(model(**_batch()).loss) < before
    model.eval()
    expected = model(**_batch()).scores
    save_model(model, processor, tmp_path / "model", form="adapter")
    from llmrec.training.model import quantization_config

    again = LLMRecModel.from_pretrained(tmp_path / "model", quantization_config=quantization_config(arguments))
    assert float((again(**_batch()).scores - expected).abs().max()) < 0.05
    # Without it, the adapters go over the backbone's own weights, in bf16.
    stranger = LLMRecModel.from_pretrained(tmp_path / "model")
    assert stranger.backbone.dtype == torch.bfloat16
    assert type(stranger.backbone.encoder.layer[0].attention.self.query.base_layer.weight) is torch.nn.Parameter
    assert float((stranger(**_batch()).scores - expected).abs().max()) < 0.5


@needs_bitsandbytes
@pytest.mark.slow
def test_a_whole_run_over_4_bits(tiny_backbone: Path, tiny_prepared: Path, tmp_path: Path) -> None:
    from llmrec.training.run import main

    main(
        [
            "--backbone", str(tiny_backbone), "--data", str(tiny_prepared), "--run_dir", str(tmp_path / "run"),
            "--use_cpu", "--quantization", "nf4", "--save_form", "adapter", "--max_steps", "4", "--precision", "fp32",
            "--per_device_train_batch_size", "8", "--eval_users", "10", "--test_users", "10", "--disable_tqdm", "true",
            "--test_protocols", "full", "--bootstrap_resamples", "10", "--eval_steps", "2", "--save_steps", "2",
            "--optim", "adamw_bnb_8bit", "--gradient_checkpointing", "--learning_rate", "0.01",
        ]
    )  # fmt: skip
    assert (tmp_path / "run" / "results.json").is_file()


@needs_bitsandbytes
def test_8_bit_optimizer_states(make_trainer: Callable[..., SimpleNamespace]) -> None:
    made = make_trainer(tuning="lora", optim="adamw_bnb_8bit", max_steps=2)
    made.trainer.train()
    assert "bitsandbytes" in type(made.trainer.optimizer.optimizer).__module__
