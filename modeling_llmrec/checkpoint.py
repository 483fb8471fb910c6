"""What a checkpoint folder holds besides full weights: adapters over a foreign backbone, and its own code."""

import copy
import inspect
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import cached_file

from .backbone import load_backbone
from .configuration_llmrec import LLMRecConfig
from .fingerprint import DamagedFileError, check_fingerprint, commit_of, read_header

ADAPTER_FOLDER = "adapters"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
# PEFT's own, so that PeftModel.from_pretrained reads the same file.
PEFT_PREFIX = "base_model.model."
ENTRY_MODULES = ("configuration_llmrec", "modeling_llmrec", "processing_llmrec", "pipeline_llmrec")


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
        # Imports inside functions too, as transformers finds them.
        waiting += re.findall(r"^\s*from \.(\w+) import", path.read_text(encoding="utf-8"), re.MULTILINE)
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
    backbone: str | os.PathLike | None = None,
    check_backbone: bool = True,
    dtype: torch.dtype | str | None = None,
    torch_dtype: torch.dtype | str | None = None,
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
        backbone: folder or Hub id to take the backbone from, instead of the place (and revision) in the config.
        check_backbone: whether to refuse a backbone with another fingerprint than the config's, or only to warn.
        dtype: type of the backbone's weights; the one that the adapters were trained over by default. `torch_dtype` is
            its name in older releases.
        attn_implementation: attention of the backbone, as in transformers.
        device_map: one device to put the model on.
        quantization_config: 4-bit quantisation of the backbone, as in transformers.
        **kwargs: arguments of transformers that change nothing here.

    Raises:
        TypeError: for an argument that is not known, or would change something.
        ValueError: where no backbone is named, it is not the one that the adapters were trained over, or an adapter
            does not fit it.
        OSError: where the backbone or an adapter's safetensors file is missing or damaged.
    """
    refuse_unknown(kwargs)
    device = single_device(device_map)
    if not config.backbone_name_or_path:
        raise ValueError(f"config.json of {str(name_or_path)!r} has adapters but no backbone_name_or_path.")
    default = config.default_adapter or next(iter(config.adapters))
    if default not in config.adapters:
        raise ValueError(
            f"default_adapter={default!r} is not among the adapters of {str(name_or_path)!r}: {list(config.adapters)}."
        )
    dtype = dtype if dtype is not None else torch_dtype
    stored = config.dtype if config.dtype is not None else torch.float32
    options = {
        "dtype": stored if dtype in (None, "auto") else dtype,
        "attn_implementation": attn_implementation,
    }
    if quantization_config is not None:
        options["quantization_config"] = quantization_config
        if device is not None:
            options["device_map"] = {"": device}  # 4-bit weights are made on their device
    loaded = _load_backbone_of(name_or_path, config, backbone, check_backbone, hub, options)
    config.text_config = loaded.config
    model = model_class(config, backbone=loaded)
    model.name_or_path = str(name_or_path)
    if load_adapters:
        for adapter, subfolder in config.adapters.items():
            place = "/".join(part for part in (hub.get("subfolder"), subfolder) if part)
            _load_one(model, name_or_path, adapter, {**hub, "subfolder": place})
        model.set_adapter(default)
        model.requires_grad_(False)
    return (model if device is None else model.to(device)).eval()


def _load_backbone_of(
    name_or_path: str | os.PathLike,
    config: Any,
    backbone: str | os.PathLike | None,
    check: bool,
    hub: dict[str, Any],
    options: dict[str, Any],
) -> PreTrainedModel:
    """The backbone of an adapter checkpoint, from the place that its config names or from `backbone`."""
    source = str(config.backbone_name_or_path if backbone is None else backbone)
    hub = {name: value for name, value in hub.items() if name not in ("revision", "subfolder")}
    if config.backbone_revision and backbone is None:
        hub["revision"] = config.backbone_revision
    try:
        if not os.path.isdir(source) and (os.path.isabs(source) or source.startswith(".")):
            raise FileNotFoundError(f"there is no folder {source}")
        commit_of(source, **hub)  # says what is wrong with a repository, a revision or the network
        if config.backbone_fingerprint:
            check_fingerprint(config.backbone_fingerprint, source, hub, refuse=check)
        # The stored text_config is the architecture the adapter was trained on; the loader may change its copy.
        return load_backbone(source, copy.deepcopy(config.text_config), config.encoder_only, **options, **hub)
    except DamagedFileError:
        raise  # names the file
    except OSError as error:
        at = f" at revision {hub['revision']!r}" if "revision" in hub else ""
        raise OSError(
            f"{str(name_or_path)!r} holds adapters over the backbone {source!r}{at}, and that cannot be had. If this "
            "machine cannot reach it, or it has moved, pass backbone='a folder or another Hub id' with the same "
            f"weights. Cause: {error}"
        ) from error


# Arguments of transformers' from_pretrained that mean nothing for an adapter checkpoint, whatever their value.
_HARMLESS = (
    "trust_remote_code", "code_revision", "adapter_kwargs", "low_cpu_mem_usage", "weights_only", "tqdm_class",
    "_from_auto", "_from_pipeline", "_commit_hash", "_fast_init", "disable_mmap",
)  # fmt: skip


def refuse_unknown(kwargs: dict[str, Any]) -> None:
    """Arguments that would be dropped without a word are errors.

    Raises:
        TypeError: naming them.
    """
    unknown = []
    for name, value in sorted(kwargs.items()):
        usual = value in (None, True) if name == "use_safetensors" else value in (None, False)
        if not usual and name not in _HARMLESS:
            unknown.append(f"{name}={value!r}")
    if unknown:
        raise TypeError(f"An adapter checkpoint does not take {', '.join(unknown)}.")


def single_device(device_map: Any) -> torch.device | None:
    """The device that a `device_map` puts everything on; None for none.

    Raises:
        ValueError: for a map over several devices.
    """
    if isinstance(device_map, dict) and list(device_map) == [""]:
        device_map = device_map[""]
    if device_map is None:
        return None
    if isinstance(device_map, dict) or device_map in ("auto", "balanced", "balanced_low_0", "sequential", "disk"):
        raise ValueError(
            f"device_map={device_map!r} would spread the model over devices, and adapters are put into a backbone that "
            "is in one place: name one device (device_map='cuda:0'), or merge the adapters into full weights first."
        )
    return torch.device(device_map)


def _adapter_file(name_or_path: str | os.PathLike, adapter: str, name: str, hub: dict[str, Any]) -> Path:
    try:
        return Path(cached_file(name_or_path, name, **hub))
    except OSError as error:
        local = os.path.isdir(name_or_path)
        raise OSError(
            f"Adapter {adapter!r} of {str(name_or_path)!r} has no {hub['subfolder']}/{name}, or it cannot be reached. "
            "Adapters are read from safetensors only, pickled ones are refused: fetch or save the adapter again."
            + ("" if local else f" Cause: {error}")
        ) from error


def _adapter_config(file: Path) -> Any:
    """The PEFT configuration in a file.

    Raises:
        ValueError: it is not JSON, or not one that PEFT knows.
    """
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftConfig

    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        known = settings["peft_type"] in PEFT_TYPE_TO_CONFIG_MAPPING
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no configuration of an adapter ({error!r}): fetch or save it again.") from error
    if not known:
        raise ValueError(
            f"{file} is of the type {settings['peft_type']!r}, which this release of peft does not know: fetch it "
            "again, or upgrade peft."
        )
    if settings.get("megatron_config"):
        raise ValueError(f"{file} has a megatron_config, which would import a module by its name: refused.")
    try:
        return PeftConfig.from_pretrained(file.parent)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} cannot be read by this release of peft: {error}") from error


def _load_one(model: Any, name_or_path: str | os.PathLike, adapter: str, hub: dict[str, Any]) -> None:
    """Put one adapter over the backbone, from safetensors only (`load_adapter` would fall back to a pickled file)."""
    from peft import inject_adapter_in_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    weights = _adapter_file(name_or_path, adapter, ADAPTER_WEIGHTS, hub)
    read_header(weights)
    peft_config = _adapter_config(_adapter_file(name_or_path, adapter, ADAPTER_CONFIG, hub))
    frozen = {id(parameter) for parameter in model.parameters()}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several adapters are meant
            inject_adapter_in_model(peft_config, model, adapter)
    except (ValueError, TypeError) as error:  # modules that this backbone does not have, or nonsense
        raise _does_not_fit(model, name_or_path, adapter, [str(error)]) from error
    refuse_ambiguous_names(model, [adapter])
    for parameter in model.parameters():
        # Trained and saved in float32; over a backbone in half precision they would start, and be rounded, in its type.
        if id(parameter) not in frozen and parameter.is_floating_point():
            parameter.data = parameter.data.float()
    state = {key.removeprefix(PEFT_PREFIX): value for key, value in load_file(weights).items()}
    problems = sorted(state.keys() ^ _adapter_state(model, adapter).keys())
    if not problems:
        try:
            set_peft_model_state_dict(model, state, adapter_name=adapter)
        except RuntimeError as error:  # tensors of other sizes
            problems = str(error).splitlines()[1:] or [str(error)]
    if problems:
        raise _does_not_fit(model, name_or_path, adapter, problems)
    refuse_missing_head(model, adapter, state)
    # What transformers' own adapter methods (set_adapter, disable_adapters, save_pretrained) go by.
    model._hf_peft_config_loaded = True


def refuse_missing_head(model: Any, adapter: str, state: Mapping[str, Any]) -> None:
    """Refuse an adapter without the projection of the head: it belongs to no backbone, so it would be random.

    Args:
        model: an `LLMRecModel`.
        adapter: its name.
        state: what the adapter holds, by name of module.

    Raises:
        ValueError: saying how to train one that has it.
    """
    if model.config.projection_dim and not any(name.startswith("head.") for name in state):
        raise ValueError(
            f"Adapter {adapter!r} lacks the weights of the head, which projection_dim={model.config.projection_dim} "
            "promises: its vectors would be random. Train it with modules_to_save=['head'] in its LoraConfig."
        )


def _does_not_fit(model: Any, name_or_path: str | os.PathLike, adapter: str, problems: list[str]) -> ValueError:
    return ValueError(
        f"Adapter {adapter!r} of {str(name_or_path)!r} does not fit the backbone "
        f"{model.config.backbone_name_or_path!r}: {len(problems)} differences, the first {problems[0].strip()!r}. It "
        "was trained over another backbone, or with another head (projection_dim in config.json)."
    )


def refuse_ambiguous_names(model: Any, adapters: Iterable[str]) -> None:
    """PEFT finds the tensors of an adapter by its name anywhere in theirs. One that is called as a module of the
    backbone (`layer` in BERT) would take the others' tensors with it, without a word.

    Args:
        model: an `LLMRecModel` with the adapters in it.
        adapters: their names.

    Raises:
        ValueError: naming the adapter and the module.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    containers = set()
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            containers |= {f"{name}.{part}" for part in (*module.adapter_layer_names, *module.other_param_names)}
        elif isinstance(module, AuxiliaryTrainingWrapper):
            containers.add(f"{name}.modules_to_save")
    names = set(adapters)
    for key in model.state_dict():
        parts = key.split(".")
        for place, part in enumerate(parts):
            if part in names and ".".join(parts[:place]) not in containers:
                raise ValueError(
                    f"An adapter cannot be called {part!r}: the backbone has a module of that name ({key}), and peft "
                    "could not tell them apart. Give it another name."
                )


def _adapter_state(model: Any, adapter: str) -> dict[str, torch.Tensor]:
    """Tensors of one adapter, its name left out of theirs."""
    from peft import get_peft_model_state_dict

    # Never with the backbone's embeddings, whose vocabulary PEFT would look up on the Hub.
    return get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)


def save_adapters(
    model: Any,
    folder: str | os.PathLike,
    peft_configs: dict[str, Any] | None = None,
    *,
    default: str | None = None,
) -> None:
    """Save config.json and `adapters/<name>/`, but no backbone.

    Args:
        model: an `LLMRecModel` with adapters in it.
        folder: where to.
        peft_configs: adapter name to PEFT configuration; those of the model by default.
        default: the adapter that is active after loading; the config's, or the first, by default.

    Raises:
        ValueError: where the config does not say where the backbone comes from.
    """
    from safetensors.torch import save_file

    if not model.config.backbone_name_or_path:
        raise ValueError("An adapter checkpoint needs config.backbone_name_or_path; save full weights instead.")
    folder = Path(folder)
    peft_configs = peft_configs if peft_configs is not None else model.peft_config
    refuse_ambiguous_names(model, peft_configs)
    config = copy.deepcopy(model.config)
    config.adapters = {name: f"{ADAPTER_FOLDER}/{name}" for name in peft_configs}
    if default is not None:
        config.default_adapter = default
    elif config.default_adapter not in config.adapters:
        config.default_adapter = next(iter(config.adapters))
    # Over a 4-bit backbone only what is not quantised has a floating type; its products are in bfloat16.
    config.dtype = torch.bfloat16 if model.is_loaded_in_4bit else model.backbone.dtype
    config.architectures = [type(model).__name__]
    for name, subfolder in config.adapters.items():
        target = folder / subfolder
        target.mkdir(parents=True, exist_ok=True)
        peft_config = copy.copy(peft_configs[name])
        peft_config.base_model_name_or_path = config.backbone_name_or_path
        peft_config.revision = config.backbone_revision
        peft_config.inference_mode = True
        peft_config.save_pretrained(target)
        _sort_names(target / ADAPTER_CONFIG)
        state = _adapter_state(model, name)
        refuse_missing_head(model, name, state)
        state = {f"{PEFT_PREFIX}{key}": value.detach().cpu().contiguous() for key, value in state.items()}
        save_file(state, target / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config.save_pretrained(folder)


def _sort_names(adapter_config: Path) -> None:
    """PEFT keeps names of modules in sets: written in their chance order, the file would change at every save."""
    settings = json.loads(adapter_config.read_text(encoding="utf-8"))
    for name in ("target_modules", "exclude_modules", "modules_to_save"):
        if isinstance(settings.get(name), list):
            settings[name] = sorted(settings[name])
    adapter_config.write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")
