"""Saving a trained model so that a stranger can load it."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from modeling_llmrec.checkpoint import code_files, save_adapters, write_code

FORMS = ("full", "merged", "adapter")


def save_model(
    model: Any,
    processor: Any,
    folder: str | Path,
    *,
    form: str = "full",
    adapter: str | None = None,
    overwrite: bool = False,
) -> Any:
    """Write a complete model folder: config, weights, code, tokenizer, processor.

    Args:
        model: an `LLMRecModel`, with adapters or without, or the `PeftModel` around one that LoRA training uses.
        processor: its `LLMRecProcessor`.
        folder: where to. It appears only once it is complete.
        form: `"full"` writes all weights, with LoRA merged in, where there is any, in place; `"merged"` does the same
            and refuses a model without adapters; `"adapter"` writes the adapters alone, over the backbone that
            `config.backbone_name_or_path` names.
        adapter: the adapter to merge (the active one by default), or the one that is active after loading.
        overwrite: whether to replace an existing folder.

    Returns:
        The `LLMRecModel` that was saved: for `"full"` and `"merged"`, with the adapter merged.

    Raises:
        FileExistsError: where the folder exists and `overwrite` is false.
        ValueError: for an unknown form, adapters asked of a model without any, or an adapter that it does not have.
    """
    if form not in FORMS:
        raise ValueError(f"form={form!r} is none of {', '.join(map(repr, FORMS))}.")
    folder = Path(folder)
    if folder.exists() and not overwrite:
        raise FileExistsError(f"{folder} exists already: choose another folder, or pass overwrite=True.")
    peft_configs = adapters_of(model)
    if form != "full" and not peft_configs:
        raise ValueError('The model has no adapters: save it with form="full".')
    if adapter is not None and adapter not in peft_configs:
        raise ValueError(f"adapter={adapter!r} is not among the adapters of the model: {list(peft_configs) or 'none'}.")
    if form != "adapter":
        model = merge_adapter(model, adapter) if peft_configs else model
    base = model.get_base_model() if _is_peft_model(model) else model

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as beside:
        draft = Path(beside) / folder.name
        if form == "adapter":
            save_adapters(base, draft, peft_configs, default=adapter)
            write_code(draft)
        else:
            base.save_pretrained(draft)
        processor.save_pretrained(draft)
        check_complete(draft)
        replace_folder(draft, folder)
    return base


def adapters_of(model: Any) -> dict[str, Any]:
    """Names of the adapters in a model, loaded or being trained, with their PEFT configurations."""
    return dict(getattr(model, "peft_config", None) or {})


def merge_adapter(model: Any, adapter: str | None = None) -> Any:
    """Add an adapter to the weights that it belongs to, in place, and take all adapters out.

    A backbone in half precision becomes float32 first: an adapter's small changes would round away.

    Args:
        model: an `LLMRecModel` that was loaded with adapters, or a `PeftModel` around one.
        adapter: which; the active one by default.

    Returns:
        The `LLMRecModel` without adapters. Others than the merged one are gone.

    Raises:
        ValueError: for a 4-bit backbone, several active adapters, or one that the model does not have.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    base = model.get_base_model() if _is_peft_model(model) else model
    if base.is_loaded_in_4bit:
        raise ValueError("Adapters cannot be merged into 4-bit weights: load the model without quantization_config.")
    if adapter is None:
        active = model.active_adapters() if callable(model.active_adapters) else model.active_adapters
        if len(active) != 1:
            raise ValueError(f"{len(active)} adapters are active ({', '.join(active)}): name the one to merge.")
        adapter = active[0]
    if adapter not in adapters_of(model):
        raise ValueError(f"adapter={adapter!r} is not among the adapters of the model: {list(adapters_of(model))}.")
    if not base.backbone.dtype.itemsize >= 4:
        base.float()
    model.set_adapter(adapter)
    replaced: list[str] = []
    for name, module in list(base.named_modules()):
        if any(name.startswith(f"{outer}.") for outer in replaced):
            continue
        if isinstance(module, AuxiliaryTrainingWrapper):
            plain = module.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=[adapter])
        elif isinstance(module, BaseTunerLayer):
            module.merge(safe_merge=True, adapter_names=[adapter])
            plain = module.get_base_layer()
        else:
            continue
        parent, _, child = name.rpartition(".")
        setattr(base.get_submodule(parent), child, plain)
        replaced.append(name)
    # These map checkpoint names to the names with adapters, which are gone: the reload would be random.
    for leftover in ("peft_config", "_weight_conversions"):
        if hasattr(base, leftover):
            delattr(base, leftover)
    base._hf_peft_config_loaded = False
    base.config.adapters = base.config.default_adapter = None
    return base


def _is_peft_model(model: Any) -> bool:
    # Only a PeftModel has this method; a model with adapters loaded by transformers has not.
    return hasattr(model, "get_base_model")


def replace_folder(draft: Path, folder: Path) -> None:
    """Put a complete folder in the place of another, or where there is none."""
    if folder.exists():
        shutil.rmtree(folder)
    draft.rename(folder)


def check_complete(folder: Path) -> None:
    """Refuse a folder that lacks a file of the code, or one that a class in config.json needs.

    Raises:
        RuntimeError: naming it.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    references = {**config["auto_map"], **{task: info["impl"] for task, info in config["custom_pipelines"].items()}}
    for user, reference in references.items():
        module = reference.split("--")[-1].split(".")[0]
        if not (folder / f"{module}.py").is_file():
            raise RuntimeError(f"{folder} lacks {module}.py, which {user} needs.")
    missing = [name for name in code_files() if not (folder / name).is_file()]
    if missing:
        raise RuntimeError(f"{folder} lacks {', '.join(missing)}, which the model's code imports.")
