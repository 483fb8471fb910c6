"""`llmrec plan` on the command line."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from llmrec import cli
from llmrec.planning.hardware import GPUS, find_gpu, measure_rate
from llmrec.planning.memory import NF4_BYTES, weight_bytes
from llmrec.planning.model import planned_model
from llmrec.training.model_arguments import ModelArguments


@pytest.fixture
def recipe(tiny_backbone: Path, tiny_prepared: Path, tmp_path: Path) -> str:
    file = tmp_path / "recipe.yaml"
    content = {
        "run_dir": str(tmp_path / "run"), "data": str(tiny_prepared), "backbone": str(tiny_backbone), "use_cpu": True,
        "per_device_train_batch_size": 16, "num_train_epochs": 3, "shared_negatives": 2,
    }  # fmt: skip
    file.write_text(yaml.safe_dump(content))
    return str(file)


def _plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert cli.main(["plan", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_text_names_every_part(recipe: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["plan", recipe, "--gpu", "H100", "--max_pass_tokens", "100"]) == 0
    text = capsys.readouterr().out
    for words in (
        "trained", "examples an epoch", "histories", "titles of targets", "titles drawn for a batch",
        "if every example read its own", "forward, linear layers", "backward, gradients of activations",
        "gradient caching: forward again", "optimizer", "activations of the largest pass", "an epoch on 1 × H100",
        "floor by FLOPs", "floor by bytes", "at 40 % of 989.00 TFLOP/s", "the whole run, epochs: 3",
    ):  # fmt: skip
        assert words in text, words
    assert "WARNING" not in text and not (tmp_path / "run").exists()


def test_json_adds_up_and_flags_override(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    plan = _plan(capsys, recipe, "--gpu", "a100-80g", "--utilisation", "0.5")
    assert plan["precision"] == "bf16" and plan["device"]["name"] == "A100-80G"
    flops = sum(plan["flops"].values())
    assert plan["totals"]["flops"] == pytest.approx(flops) and plan["least_flops"] <= flops
    compute = flops / (312e12 * 0.5) / 3600
    assert plan["hours"]["epoch"] == pytest.approx(max(compute, plan["hours"]["floor_bandwidth"]))
    assert plan["hours"]["run"] == pytest.approx(3 * plan["hours"]["epoch"])
    tokens = plan["tokens"]
    assert tokens["slots"] == pytest.approx(tokens["tokens"] + tokens["padding"])
    assert plan["steps"] == math.ceil(tokens["examples"] / 16) and plan["epochs"] == 3
    doubled = _plan(
        capsys, recipe, "--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "2", "--max_steps", "2"
    )
    assert doubled["batch_size"] == 16 and doubled["hours"]["epoch"] is None and doubled["device"] is None
    assert doubled["epochs"] == pytest.approx(2 / doubled["steps"])
    several = _plan(capsys, "--gpus", "2", recipe, "--gpu", "H200")
    assert several["devices"] == 2 and several["batch_size"] == 32
    assert several["tokens"]["scores"] == pytest.approx(2 * tokens["scores"], rel=0.05)
    full = _plan(capsys, recipe, "--tuning", "full", "--gpu", "H200", "--precision", "fp32")
    assert full["precision"] == "fp32" and full["trained_parameters"] == full["parameters"]
    assert full["memory"]["optimizer"] == 2 * full["memory"]["weights"] == 2 * full["memory"]["gradients"]


def test_techniques_show_in_the_plan(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    plain = _plan(capsys, recipe, "--tuning", "full")
    padded = _plan(capsys, recipe, "--tuning", "full", "--packing", "off")
    assert plain["tokens"]["padding"] == 0 < padded["tokens"]["padding"]
    assert padded["totals"]["flops"] > plain["totals"]["flops"]
    anew = _plan(capsys, recipe, "--tuning", "full", "--gradient_checkpointing")
    assert anew["memory"]["activations"] < plain["memory"]["activations"]
    assert anew["flops"]["recompute"] == plain["flops"]["forward_linear"] + plain["flops"]["forward_attention"]
    cached = _plan(capsys, recipe, "--tuning", "full", "--max_pass_tokens", "100")
    assert cached["memory"]["activations"] < 0.5 * plain["memory"]["activations"]
    forward = cached["flops"]["forward_linear"] + cached["flops"]["forward_attention"]
    assert cached["flops"]["gradient_caching"] == pytest.approx(forward)
    bank = _plan(capsys, recipe, "--catalogue_negatives", "-1")
    assert bank["memory"]["catalogue_bank"] > 0 and bank["flops"]["catalogue_bank"] > 0


def test_too_little_memory_is_a_warning_with_ways_out(
    recipe: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(GPUS, "A10", GPUS["A10"]._replace(memory=1e5))
    assert cli.main(["plan", recipe, "--gpu", "A10"]) == 0
    text = capsys.readouterr().out
    assert "WARNING: a step needs" in text and "max_pass_tokens" in text


def test_this_processor_is_measured(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    plan = _plan(capsys, recipe, "--gpu", "none", "--measure")
    assert plan["device"]["name"].startswith("this processor") and plan["hours"]["epoch"] > 0
    assert plan["hours"]["floor_bandwidth"] is None
    assert 1e8 < measure_rate(torch.float32, 0.2) < 1e14


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "TPU"], "--gpu TPU: unknown; known are B200, H200, H100,"),
        (["--utilisation", "2"], "--utilisation 2.0 must be above 0"),
        (["--gpus", "0"], "--gpus must be at least 1"),
        (["--gpu", "H100", "--measure"], "--measure measures this machine's processor"),
        (["--data", "no/such/folder"], r"no/such/folder: no prepared data .* Make it with `llmrec prepare`."),
        (["--data", "none", "--interactions", "x.csv"], "or start train.py with the same arguments"),
        (["--learn_rate", "1"], "unknown argument '--learn_rate'; did you mean --learning_rate"),
        (["--share_prefixes", "true"], "share_prefixes=true needs a causal backbone"),
    ],
)
def test_what_is_wrong_is_one_line(
    recipe: str, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    import re

    assert cli.main(["plan", recipe, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("llmrec: error: ") and error.count("\n") == 1 and re.search(message, error), error


def test_a_recipe_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan"]) == 2
    assert "name the YAML file of a run" in capsys.readouterr().err


def test_names_of_gpus_in_any_spelling() -> None:
    assert find_gpu("a100 80g") is GPUS["A100-80G"] and find_gpu("None") is None
    for gpu in GPUS.values():
        # Peaks in bf16 beat float32, and a card with less memory than bandwidth in a second is none.
        assert gpu.bf16 > gpu.fp32 > 1e13 and 2e10 < gpu.memory < gpu.bandwidth


def test_a_large_model_is_planned_without_its_weights(tiny_backbone: Path, tmp_path: Path) -> None:
    import resource

    config = json.loads((tiny_backbone / "config.json").read_text())
    config |= {"hidden_size": 4096, "intermediate_size": 16384, "num_hidden_layers": 32, "num_attention_heads": 32}
    for file in tiny_backbone.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    arguments = ModelArguments(backbone=str(tmp_path), quantization="nf4", save_form="adapter")
    model, _ = planned_model(arguments)
    assert sum(parameter.numel() for parameter in model.parameters()) > 6e9
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kilobytes; the weights have 13 GB
    # QLoRA, section 3: 4 bits and 0.127 for constants with double quantisation.
    assert 8 * NF4_BYTES == pytest.approx(4.127, abs=1e-3)
    linear = 32 * (4 * 4096**2 + 2 * 4096 * 16384)
    assert weight_bytes(model, nf4=True) == pytest.approx(linear * NF4_BYTES, rel=0.1)
