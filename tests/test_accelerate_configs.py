"""The launcher's configuration files are what accelerate reads, and say what `llmrec.training.sharding` wants."""

import os
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from llmrec.training.sharding import check_launcher, deepspeed_is_asked_for, fsdp_is_asked_for

NAMES = ("cpu", "ddp", "deepspeed_zero3", "fsdp2")


def _file(repository: Path, name: str) -> str:
    return str(repository / "configs" / "accelerate" / f"{name}.yaml")


def _environment(repository: Path, name: str) -> dict[str, str]:
    """What `accelerate launch --config_file …` hands to the processes."""
    arguments = launch_command_parser().parse_args(["--config_file", _file(repository, name), "train.py", "demo.yaml"])
    arguments, _, _ = _validate_launch_command(arguments)
    if arguments.use_deepspeed:
        fields = load_config_from_file(_file(repository, name)).deepspeed_config
        arguments.deepspeed_fields_from_accelerate_config = ",".join(fields)  # as launch_command does
        return prepare_deepspeed_cmd_env(arguments)[1]
    return prepare_multi_gpu_env(arguments)


def test_every_file_has_a_test(repository: Path) -> None:
    assert sorted(path.stem for path in (repository / "configs" / "accelerate").glob("*.yaml")) == sorted(NAMES)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cpu", DistributedType.MULTI_GPU),
        ("ddp", DistributedType.MULTI_GPU),
        ("fsdp2", DistributedType.FSDP),
        ("deepspeed_zero3", DistributedType.DEEPSPEED),
    ],
)
def test_accelerate_reads_every_file(repository: Path, name: str, kind: DistributedType) -> None:
    config = load_config_from_file(_file(repository, name))  # raises for a key that it does not know
    assert isinstance(config, ClusterConfig)
    assert config.distributed_type == kind and config.num_machines == 1 and config.num_processes >= 2
    # Another word would overrule the recipe's `precision`.
    assert config.mixed_precision == "no"


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Any:
    def take(environment: dict[str, str]) -> None:
        for name in [name for name in os.environ if name.startswith(("FSDP_", "ACCELERATE_"))]:
            monkeypatch.delenv(name)
        for name, value in environment.items():
            if name.startswith(("FSDP_", "ACCELERATE_")):
                monkeypatch.setenv(name, value)

    return take


def test_fsdp2_is_what_training_wants(repository: Path, launched: Any) -> None:
    from accelerate.utils import FullyShardedDataParallelPlugin

    launched(_environment(repository, "fsdp2"))
    assert fsdp_is_asked_for() and not deepspeed_is_asked_for()
    check_launcher()
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert str(plugin.state_dict_type) == "StateDictType.SHARDED_STATE_DICT"
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    # None: the layers are chosen by the backbone (`choose_layers`).
    assert plugin.transformer_cls_names_to_wrap is None
    assert not plugin.activation_checkpointing and not plugin.cpu_ram_efficient_loading


def test_zero3_is_what_training_wants(repository: Path, launched: Any) -> None:
    environment = _environment(repository, "deepspeed_zero3")
    launched(environment)
    assert deepspeed_is_asked_for() and not fsdp_is_asked_for()
    check_launcher()
    assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "3"
    # Weights read whole by every process: the untuned baseline is loaded again after training.
    assert environment["ACCELERATE_DEEPSPEED_ZERO3_INIT"].lower() == "false"
    assert environment["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] == "auto"
    pytest.importorskip("deepspeed")
    from accelerate.utils import DeepSpeedPlugin

    config = DeepSpeedPlugin().deepspeed_config
    assert config["zero_optimization"]["stage"] == 3
    assert config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is True


@pytest.mark.parametrize("name", ["cpu", "ddp"])
def test_the_others_shard_nothing(repository: Path, launched: Any, name: str) -> None:
    launched(_environment(repository, name))
    assert not fsdp_is_asked_for() and not deepspeed_is_asked_for()
    check_launcher()
