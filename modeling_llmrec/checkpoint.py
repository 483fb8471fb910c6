"""What a checkpoint folder holds besides full weights: adapters over a foreign backbone, and its own code."""

import copy
import inspect
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import cached_file

from .backbone import load_backbone
from .configuration_llmrec import LLMRecConfig

ADAPTER_FOLDER = "adapters"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
# PEFT's own, so that PeftModel.from_pretrained reads the same file.
PEFT_PREFIX = "base_model.model."
ENTRY_MODULES = ("configuration_llmrec", "modeling_llmrec", "processing_llmrec")


def code_files() -> dict[str, Path]:
    """Every file that must travel, by its name in a checkpoint: the entry modules and what they import.

    A published folder is flat, so the real configuration stands where the package has its stand-in.
    """
    here, waiting, found = Path(__file__).parent, list(ENTRY_MODULES), {}
    while waiting:
        module = waiting.pop()
        name = f"{module}.py"
        if name in found:
            continue
        path = Path(inspect.getfile(LLMRecConfig)) if module == "configuration_llmrec" else here / name
        if not path.is_file():
            raise FileNotFoundError(f"The code of this model is incomplete: {path} is imported but missing.")
        found[name] = path
        waiting += re.findall(r"^from \.(\w+) import", path.read_text(encoding="utf-8"), re.MULTILINE)
    return found


def write_code(folder: str | os.PathLike) -> None:
    """Put the code of the model beside its weights."""
    for name, source in code_files().items():
        target = Path(folder) / name
        if not (target.exists() and target.samefile(source)):
            shutil.copyfile(source, target)


def load_with_adapters(
    model_class: type[PreTrainedModel],
    name_or_path: str | os.PathLike,
    config: Any,
    *,
    load_adapters: bool,
    hub: dict[str, Any],
    dtype: torch.dtype | str | None = None,
    attn_implementation: str | None = None,
    device_map: Any = None,
    quantization_config: Any = None,
    **kwargs: Any,
) -> Any:
    """Load the backbone from its own repository, then every adapter over it, and switch on the default one.

    Args:
        model_class: `LLMRecModel`.
        name_or_path: folder or Hub id of the adapter checkpoint.
        config: its `LLMRecConfig`, with `adapters` set.
        load_adapters: whether to load the adapters at all.
        hub: arguments of the Hub's client (`revision`, `token`, …).
        quantization_config: 4-bit quantisation of the backbone, as in transformers.

    Raises:
        ValueError: where no backbone is named, or an adapter does not fit it.
        OSError: where the backbone or an adapter's safetensors file is missing.
    """
    dtype = dtype if dtype is not None else kwargs.get("torch_dtype")  # its name in older releases
    if device_map is not None:
        raise ValueError("An adapter checkpoint does not take device_map: load it, then call model.to(device).")
    if not config.backbone_name_or_path:
        raise ValueError(f"config.json of {str(name_or_path)!r} has adapters but no backbone_name_or_path.")
    stored = config.dtype if config.dtype is not None else torch.float32
    backbone_hub = {name: value for name, value in hub.items() if name not in ("revision", "subfolder")}
    if config.backbone_revision:
        backbone_hub["revision"] = config.backbone_revision
    if quantization_config is not None:
        backbone_hub["quantization_config"] = quantization_config
    backbone = load_backbone(
        config.backbone_name_or_path,
        # The stored text_config is the architecture the adapter was trained on; the loader may change its copy.
        copy.deepcopy(config.text_config),
        config.encoder_only,
        dtype=stored if dtype in (None, "auto") else dtype,
        attn_implementation=attn_implementation,
        **backbone_hub,
    )
    config.text_config = backbone.config
    model = model_class(config, backbone=backbone)
    model.name_or_path = str(name_or_path)
    if load_adapters:
        for adapter, subfolder in config.adapters.items():
            _load_one(model, name_or_path, adapter, {**hub, "subfolder": subfolder})
        model.set_adapter(config.default_adapter or next(iter(config.adapters)))
        model.requires_grad_(False)
    return model.eval()


def _load_one(model: Any, name_or_path: str | os.PathLike, adapter: str, hub: dict[str, Any]) -> None:
    """Put one adapter over the backbone, from safetensors only (`load_adapter` would fall back to a pickled file)."""
    from peft import PeftConfig, inject_adapter_in_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    weights = cached_file(name_or_path, ADAPTER_WEIGHTS, **hub)
    peft_config = PeftConfig.from_pretrained(Path(cached_file(name_or_path, ADAPTER_CONFIG, **hub)).parent)
    inject_adapter_in_model(peft_config, model, adapter)
    for name, parameter in model.named_parameters():
        # Trained and saved in float32; over a backbone in half precision they would start, and be rounded, in its type.
        if f".{adapter}." in name and parameter.is_floating_point():
            parameter.data = parameter.data.float()
    state = {key.removeprefix(PEFT_PREFIX): value for key, value in load_file(weights).items()}
    try:
        result = set_peft_model_state_dict(model, state, adapter_name=adapter)
        # Everything else is missing too: the backbone, and adapters that were loaded before.
        problems = [key for key in result.missing_keys if f".{adapter}." in key] + list(result.unexpected_keys)
    except RuntimeError as error:  # tensors of other sizes
        problems = [str(error)]
    if problems:
        raise ValueError(
            f"Adapter {adapter!r} of {str(name_or_path)!r} does not fit the backbone "
            f"{model.config.backbone_name_or_path!r}: {len(problems)} differences, the first {min(problems)!r}."
        )
    # What transformers' own adapter methods (set_adapter, disable_adapters, save_pretrained) go by.
    model._hf_peft_config_loaded = True


def save_adapters(model: Any, folder: str | os.PathLike, peft_configs: dict[str, Any] | None = None) -> None:
    """Save config.json and `adapters/<name>/`, but no backbone.

    Args:
        model: an `LLMRecModel` with adapters in it.
        folder: where to.
        peft_configs: adapter name to PEFT configuration; those of the model by default.

    Raises:
        ValueError: where the config does not say where the backbone comes from.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    if not model.config.backbone_name_or_path:
        raise ValueError("An adapter checkpoint needs config.backbone_name_or_path; save full weights instead.")
    folder = Path(folder)
    peft_configs = peft_configs if peft_configs is not None else model.peft_config
    config = copy.deepcopy(model.config)
    config.adapters = {name: f"{ADAPTER_FOLDER}/{name}" for name in peft_configs}
    if config.default_adapter not in config.adapters:
        config.default_adapter = next(iter(config.adapters))
    # Over a 4-bit backbone only what is not quantised has a floating type; its products are in bfloat16.
    config.dtype = torch.bfloat16 if model.is_loaded_in_4bit else model.backbone.dtype
    config.architectures = [type(model).__name__]
    for name, subfolder in config.adapters.items():
        target = folder / subfolder
        target.mkdir(parents=True, exist_ok=True)
        peft_config = copy.copy(peft_configs[name])
        peft_config.base_model_name_or_path = config.backbone_name_or_path
        peft_config.inference_mode = True
        peft_config.save_pretrained(target)
        state = get_peft_model_state_dict(model, adapter_name=name)
        state = {f"{PEFT_PREFIX}{key}": value.detach().cpu().contiguous() for key, value in state.items()}
        save_file(state, target / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config.save_pretrained(folder)
