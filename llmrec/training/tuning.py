"""What of a model is trained: everything, low-rank adapters with the head, or the head alone."""

from __future__ import annotations

import logging
from typing import Any

import torch

from llmrec.training.model_arguments import ModelArguments

logger = logging.getLogger(__name__)


class NothingLearnedError(RuntimeError):
    """Training has left the adapters at their start."""


def apply_tuning(model: Any, arguments: ModelArguments) -> Any:
    """Choose what is trained.

    Args:
        model: an `LLMRecModel`.
        arguments: `tuning` and, for LoRA, its rank and so on.

    Returns:
        The model to train: the same one, or a `PeftModel` around it.

    Raises:
        ValueError: if nothing of the model would be trained.
    """
    if arguments.tuning == "lora":
        model = _with_adapters(model, arguments)
    elif arguments.tuning == "frozen":
        model.requires_grad_(False)
        for module in _own_modules(model).values():
            module.requires_grad_(True)
    else:
        model.requires_grad_(True)
    trained, total = count_parameters(model)
    if trained == 0:
        raise ValueError(
            f"tuning={arguments.tuning!r} leaves nothing to train: set projection_dim for a head that is trained"
        )
    logger.info("training %s of %s parameters (%.2f %%)", f"{trained:,}", f"{total:,}", 100 * trained / total)
    return model


def count_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """(trained, all) parameters; those packed into 4 bits count as the weights they stand for."""
    sizes = [(_weights_in(parameter), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)


def _weights_in(parameter: torch.nn.Parameter) -> int:
    # bitsandbytes' class, known by name: importing it takes seconds, and it may not be installed.
    packed = type(parameter).__name__ == "Params4bit"
    return parameter.numel() * (2 * parameter.element_size() if packed else 1)


def check_adapters_learned(model: Any) -> None:
    """Refuse adapters that training has not touched: saved, they would be the untuned backbone.

    LoRA's B starts at zero, so an adapter whose B is still zero adds nothing.

    Raises:
        NothingLearnedError: if every B is zero; a warning names those that are, if only some are.
    """
    norms = {name: float(p.detach().norm()) for name, p in model.named_parameters() if ".lora_B." in name}
    untouched = [name for name, norm in norms.items() if norm == 0]
    if norms and len(untouched) == len(norms):
        raise NothingLearnedError(
            f"all {len(norms)} adapters are as they were before training (lora_B is zero): no gradient reached them, "
            "or there were no steps with a learning rate above zero"
        )
    if untouched:
        logger.warning("%d of %d adapters got no gradient, among them %s", len(untouched), len(norms), untouched[0])


def _own_modules(model: Any) -> dict[str, torch.nn.Module]:
    """Modules of an `LLMRecModel` beside the backbone that hold parameters: the head, a learned temperature."""
    return {
        name: module
        for name, module in model.named_children()
        if name != "backbone" and any(True for _ in module.parameters())
    }


def _with_adapters(model: Any, arguments: ModelArguments) -> Any:
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if getattr(model, "is_loaded_in_4bit", False):
        # Freezes, and makes normalisation layers, embeddings and biases float32. Checkpointing has its own argument.
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    targets: str | list[str] = arguments.lora_target_modules
    if targets == ["all-linear"]:
        targets = "all-linear"
    own = list(_own_modules(model))
    config = LoraConfig(
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        target_modules=targets,
        # They are not pre-trained, so they are trained and saved whole; PEFT would freeze them otherwise.
        modules_to_save=own or None,
        exclude_modules=[
            f"{name}.{child}" for name in own for child, _ in getattr(model, name).named_modules() if child
        ]
        or None,
    )
    return get_peft_model(model, config)
