"""Weights that are spread over the processes: FSDP2 and DeepSpeed ZeRO-3, both asked for by the launcher.

`accelerate launch --config_file configs/accelerate/fsdp2.yaml train.py …` sets environment variables; everything here
goes by them and by what the parameters are (`DTensor`s under FSDP2), so the rest of the code need not know.

FSDP2 holds a parameter as one shard a process and puts it together for the time of a layer's forward and backward: a
collective, which every process must enter equally often. Training steps do. Evaluations do not, for each process
encodes a share of its own, so they run inside `whole`, with all weights on every process.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType, PartialState
from torch import nn

_ENGINE = "_llmrec_engine"
_TRUE = ("1", "true", "yes", "on")


class ShardingError(ValueError):
    """A launcher configuration that would train wrongly, or not at all."""


def fsdp_is_asked_for() -> bool:
    """Whether the launcher's configuration says FSDP."""
    return _says("ACCELERATE_USE_FSDP")


def deepspeed_is_asked_for() -> bool:
    """Whether the launcher's configuration says DeepSpeed."""
    return _says("ACCELERATE_USE_DEEPSPEED")


def check_launcher(max_pass_tokens: int | None = None) -> None:
    """Refuse what the launcher may ask of FSDP or DeepSpeed and this project cannot do.

    Args:
        max_pass_tokens: of the training's arguments.

    Raises:
        ShardingError: naming the line of the launcher's configuration file, or the argument.
    """
    if deepspeed_is_asked_for() and max_pass_tokens is not None:
        raise ShardingError(
            f"max_pass_tokens={max_pass_tokens}: gradient caching goes backwards several times for one batch, which "
            "gives wrong gradients under DeepSpeed: start with configs/accelerate/fsdp2.yaml, or leave it out"
        )
    if not fsdp_is_asked_for():
        return
    hint = "; configs/accelerate/fsdp2.yaml has it right"
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise ShardingError(f"fsdp_version: {os.environ.get('FSDP_VERSION', '1')} is not supported, say 2{hint}")
    if _says("FSDP_CPU_RAM_EFFICIENT_LOADING"):
        raise ShardingError(
            "fsdp_cpu_ram_efficient_loading: true leaves all processes but the first with empty weights, and the "
            f"untuned baseline is encoded by all of them: say false{hint}"
        )
    if _says("FSDP_ACTIVATION_CHECKPOINTING"):
        raise ShardingError(
            "fsdp_activation_checkpointing: true recomputes layers with other dropout masks than the forward pass "
            f"had: say false there, and activation_checkpointing: true in the recipe{hint}"
        )
    if os.environ.get("FSDP_STATE_DICT_TYPE", "SHARDED_STATE_DICT") != "SHARDED_STATE_DICT":
        raise ShardingError(
            f"fsdp_state_dict_type: {os.environ['FSDP_STATE_DICT_TYPE']} is not supported, say SHARDED_STATE_DICT: "
            f"checkpoints are written by all processes, and the final model is whole anyway{hint}"
        )


def load_models_whole() -> None:
    """Keep transformers from cutting up models while it loads them, as it would once DeepSpeed has been configured.

    The engine shares the trained one out itself; others (the untuned baseline) are to stay whole.
    """
    if deepspeed_is_asked_for():
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()


@contextmanager
def on_processors(state: PartialState) -> Iterator[None]:
    """Let accelerate shard over processes without GPUs; its `Accelerator` is to be made inside.

    torch shards over gloo as it does over NCCL, but accelerate asks for FSDP only where the processes are of one of
    the accelerators' types, for DeepSpeed only where nobody has said CPU, and silently replicates the weights (DDP)
    otherwise. The device is chosen by then, and stays the processor.
    """
    if state.distributed_type != DistributedType.MULTI_CPU:
        yield
    elif fsdp_is_asked_for():
        # By this name accelerate goes the very way it goes on GPUs.
        state.distributed_type = DistributedType.MULTI_GPU
        yield
    elif deepspeed_is_asked_for():
        said = os.environ.pop("ACCELERATE_USE_CPU", None)
        try:
            yield
        finally:
            if said is not None:
                os.environ["ACCELERATE_USE_CPU"] = said
    else:
        yield


def set_precision(plugin: Any, bf16: bool) -> None:
    """Compute in bfloat16, but reduce gradients and hand on inputs and outputs as they are.

    accelerate's own policy also reduces gradients in bfloat16, and rounds the loss and float inputs (logQ, cached
    vectors) to it.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy

    plugin.mixed_precision_policy = (
        MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
        if bf16
        else None
    )


def choose_layers(plugin: Any, model: Any) -> None:
    """Make one unit of each layer of the backbone, by the classes that the model says must not be split.

    Those around the input embeddings (BERT names its embeddings) are left out: accelerate makes a unit of the
    embeddings as well, and stumbles over the second one. A choice of the launcher's is kept.
    """
    if plugin.transformer_cls_names_to_wrap is None:
        embeddings = model.get_input_embeddings()
        names = set(model._no_split_modules or ())
        layers = [module for module in model.modules() if type(module).__name__ in names]
        around = {type(layer).__name__ for layer in layers if any(part is embeddings for part in layer.modules())}
        plugin.transformer_cls_names_to_wrap = sorted({type(layer).__name__ for layer in layers} - around)


def join_tied_embeddings(model: Any) -> None:
    """Put one module where several hold the weights of the input embeddings (T5): FSDP2 takes a weight only once."""
    embeddings = model.get_input_embeddings()
    for name, module in list(model.named_modules()):
        if module is not embeddings and getattr(module, "weight", None) is embeddings.weight:
            model.set_submodule(name, embeddings)


def start_alike(model: nn.Module, device: torch.device) -> None:
    """Give the trained parameters of the first process to all: each of them shards what it has itself.

    Pre-trained weights are the same anyway; adapters and the head are drawn at random.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                found = parameter.detach().to(device).contiguous()
                torch.distributed.broadcast(found, 0)
                parameter.copy_(found)


def refuse_scalars(model: nn.Module) -> None:
    """FSDP2 cuts along the first dimension, which a learned temperature has not.

    Raises:
        ShardingError: naming the parameter.
    """
    for name, parameter in model.named_parameters():
        if parameter.dim() == 0:
            raise ShardingError(
                f"{name} is a single number, which FSDP2 cannot spread: leave out learn_temperature, or train with "
                "configs/accelerate/ddp.yaml"
            )


@contextmanager
def whole(model: nn.Module) -> Iterator[nn.Module]:
    """Inside, every process holds all weights of a sharded model, in the precision that it computes in.

    A forward pass inside is no collective, so processes may make as many as they like. All must enter and leave
    together. Other models are handed back as they are.

    Args:
        model: any model.
    """
    from torch.distributed.fsdp import FSDPModule

    engine = getattr(model, _ENGINE, lambda: None)()
    if engine is not None:
        with _whole_of_deepspeed(model, engine):
            yield model
        return
    modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in modules:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield model
    finally:
        for module in modules:
            module.reshard()
            # The root's own weights stay until the backward pass, as fully_shard has it by default.
            module.set_reshard_after_forward(_reshards() and module is not model, recurse=False)


def remember_engine(model: nn.Module, engine: Any) -> None:
    """Let `whole` find DeepSpeed's engine by the model inside it."""
    setattr(model, _ENGINE, weakref.ref(engine))


@contextmanager
def _whole_of_deepspeed(model: nn.Module, engine: Any) -> Iterator[None]:
    """Gather all parameters, and keep ZeRO-3's hooks from giving them back after each module's forward pass."""
    import deepspeed

    offload = getattr(engine.optimizer, "parameter_offload", None)
    if offload is None:  # stages 1 and 2 leave the weights whole
        yield
        return
    parameters = list(model.parameters())
    with deepspeed.zero.GatheredParameters(parameters, modifier_rank=None):
        for parameter in parameters:
            parameter.ds_active_sub_modules.clear()  # type: ignore[attr-defined]
        offload._remove_module_hooks()
        offload.forward_hooks, offload.backward_hooks = [], []
        try:
            yield
        finally:
            offload.setup_zero_stage3_hooks()


def is_sharded(model: nn.Module) -> bool:
    """Whether parameters of a model are spread over processes."""
    return any(_is_dtensor(parameter) or hasattr(parameter, "ds_id") for parameter in model.parameters())


def full_tensor(parameter: torch.Tensor) -> torch.Tensor:
    """A parameter put together on every process, all of which must call it for the same ones in the same order."""
    if _is_dtensor(parameter):
        return parameter.detach().full_tensor()  # type: ignore[attr-defined]
    if hasattr(parameter, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=None):
            return parameter.detach().clone()
    return parameter.detach()


def unsharded_model(trained: nn.Module, make: Callable[[], nn.Module], device: torch.device) -> nn.Module:
    """An ordinary model with the weights of a sharded one, on every process; an ordinary one is handed back as it is.

    All processes must call it. Each needs memory for the whole model, which it has no more than once: `trained` may be
    forgotten afterwards.

    Args:
        trained: the model of the trainer.
        make: builds the same model with its pre-trained weights; what is not trained stays as made.
        device: where to.
    """
    if not is_sharded(trained):
        return trained
    model = make()
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if parameter.requires_grad:
                own[name].copy_(full_tensor(parameter).to(own[name]))
    model.to(device)
    return model.eval()


def save_shards(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors, each process its shards, as a `torch.distributed.checkpoint`. All processes must call it."""
    import torch.distributed.checkpoint as distributed_checkpoint

    folder.mkdir(parents=True, exist_ok=True)
    distributed_checkpoint.save({name: tensor.detach() for name, tensor in tensors.items()}, checkpoint_id=folder)


def shapes_of_shards(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every whole tensor in a folder that `save_shards` wrote."""
    import torch.distributed.checkpoint as distributed_checkpoint

    metadata = distributed_checkpoint.FileSystemReader(folder).read_metadata().state_dict_metadata
    return {name: tuple(one.size) for name, one in metadata.items() if hasattr(one, "size")}


def load_shards(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Read into tensors of the same names, whatever number of processes wrote them. All processes must call it."""
    import torch.distributed.checkpoint as distributed_checkpoint

    with torch.no_grad():
        wanted = {name: tensor.detach() for name, tensor in tensors.items()}
        distributed_checkpoint.load(wanted, checkpoint_id=folder)
        for name, tensor in tensors.items():
            tensor.copy_(wanted[name])


def is_deepspeed_checkpoint(folder: Path) -> bool:
    """Whether DeepSpeed's engine has written a folder."""
    return (folder / "latest").is_file()


def load_deepspeed_weights(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Read the weights alone from DeepSpeed's shards into an ordinary model's tensors of the same names."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    saved = get_fp32_state_dict_from_zero_checkpoint(folder)
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(saved[name])


def _is_dtensor(tensor: torch.Tensor) -> bool:
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def _reshards() -> bool:
    return os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() in _TRUE


def _says(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in _TRUE
