"""Two processes under DeepSpeed's ZeRO-3, over gloo, train, evaluate, resume and save what DDP does.

DeepSpeed is no dependency of this project, so these run only where somebody has installed it.
"""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from modeling_llmrec import LLMRecModel
from tests.training.launching import REPOSITORY, launch
from tests.training.test_fsdp import FULL, LORA, assert_same_log, command

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(
    tiny_backbone: Path, tiny_prepared: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], SimpleNamespace]:
    """Results of all jobs by name."""
    patch = pytest.MonkeyPatch()
    patch.setenv("DS_ACCELERATOR", "cpu")
    out = tmp_path_factory.mktemp("zero3")
    jobs: list[dict[str, Any]] = [
        {"name": "full-ddp", "run": "a", "settings": FULL},
        {"name": "full", "run": "b", "settings": FULL, "sharded": True},
        {"name": "lora-ddp", "run": "c", "settings": LORA},
        {"name": "lora", "run": "d", "settings": LORA, "sharded": True},
        {"name": "stopped", "run": "i", "settings": FULL, "sharded": True, "stop": 5},
        {"name": "resumed", "run": "i", "settings": FULL, "sharded": True, "resume": True},
        {"name": "finished", "run": "i", "settings": FULL, "sharded": True, "resume": True},
        {"command": command(tiny_backbone, tiny_prepared, out / "run"), "sharded": True},
    ]
    shared = {"backbone": str(tiny_backbone), "data": str(tiny_prepared), "out": str(out), "jobs": jobs}
    launch(_every_parameter_in_parts(out), shared)
    patch.undo()

    def read(name: str) -> SimpleNamespace:
        return SimpleNamespace(
            weights=load_file(out / f"{name}.safetensors"), **json.loads((out / f"{name}.json").read_text())
        )

    read.out = out  # type: ignore[attr-defined]
    return read


def _every_parameter_in_parts(folder: Path) -> Path:
    """The project's configuration, but with parameters in parts that DeepSpeed keeps whole below 100,000 numbers."""
    config = yaml.safe_load((REPOSITORY / "configs" / "accelerate" / "deepspeed_zero3.yaml").read_text())
    engine = {
        "zero_optimization": {
            "stage": 3, "stage3_param_persistence_threshold": 0, "stage3_gather_16bit_weights_on_model_save": True,
        },
        "gradient_accumulation_steps": "auto", "gradient_clipping": "auto", "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
    }  # fmt: skip
    (folder / "engine.json").write_text(json.dumps(engine))
    init = config["deepspeed_config"]["zero3_init_flag"]
    config["deepspeed_config"] = {"deepspeed_config_file": str(folder / "engine.json"), "zero3_init_flag": init}
    del config["mixed_precision"]
    (folder / "launcher.yaml").write_text(yaml.safe_dump(config))
    return folder / "launcher.yaml"


@pytest.mark.parametrize("name", ["full", "lora"])
def test_zero3_training_is_the_replicated_one(found: Callable[[str], Any], name: str) -> None:
    sharded, replicated = found(name), found(f"{name}-ddp")
    assert sharded.type.endswith("DEEPSPEED") and sharded.sharded and not replicated.sharded
    assert_same_log(sharded.log, replicated.log, 1e-5)
    for tensor, value in sharded.weights.items():
        if "original_module" not in tensor:
            assert float((value - replicated.weights[tensor]).abs().max()) <= 1e-5, tensor


def test_a_zero3_run_resumes(found: Callable[[str], Any]) -> None:
    undisturbed, resumed, again = found("full"), found("resumed"), found("finished")
    assert_same_log(resumed.log, undisturbed.log, 0.0)
    for name, value in undisturbed.weights.items():
        assert torch.equal(value, resumed.weights[name]), name
        assert torch.equal(value, again.weights[name]), name


def test_a_whole_run_under_zero3_saves_a_whole_model(found: Callable[[str], Any]) -> None:
    folder = found.out / "run"  # type: ignore[attr-defined]
    results = json.loads((folder / "results.json").read_text())
    assert results["training"]["processes"] == 2
    assert LLMRecModel.from_pretrained(folder / "model").head.projection is not None
