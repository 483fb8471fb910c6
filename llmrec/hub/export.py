"""Saving a trained model so that a stranger can load it."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from modeling_llmrec.checkpoint import save_adapters, write_code

FORMS = ("full", "adapter")


def save_model(model: Any, processor: Any, folder: str | Path, *, form: str = "full", overwrite: bool = False) -> Any:
    """Write a complete model folder: config, weights, code, tokenizer, processor.

    Args:
        model: an `LLMRecModel`, or the `PeftModel` around one that LoRA training uses.
        processor: its `LLMRecProcessor`.
        folder: where to. It appears only once it is complete.
        form: `"full"` merges LoRA into the weights, in place; `"adapter"` writes the adapters alone,
            over the backbone that `config.backbone_name_or_path` names.
        overwrite: whether to replace an existing folder.

    Returns:
        The `LLMRecModel` that was saved: for `"full"`, with the adapters merged.

    Raises:
        FileExistsError: where the folder exists and `overwrite` is false.
        ValueError: for an unknown form, or adapters asked of a model without any.
    """
    if form not in FORMS:
        raise ValueError(f"form={form!r} is none of {', '.join(map(repr, FORMS))}.")
    folder = Path(folder)
    if folder.exists() and not overwrite:
        raise FileExistsError(f"{folder} exists already: choose another folder, or pass overwrite=True.")
    peft_configs = getattr(model, "peft_config", None) or {}
    if form == "adapter" and not peft_configs:
        raise ValueError('The model has no adapters: save it with form="full".')
    # Only a PeftModel has this method; a model with adapters loaded by transformers has not.
    is_peft_model = hasattr(model, "get_base_model")
    if form == "full" and peft_configs:
        if not is_peft_model:
            raise ValueError('Only a PeftModel can be merged: save this model with form="adapter".')
        model = model.merge_and_unload()
        # These map checkpoint names to the names with adapters, which are gone: the reload would be random.
        if hasattr(model, "_weight_conversions"):
            del model._weight_conversions
    base = model.get_base_model() if form == "adapter" and is_peft_model else model

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as beside:
        draft = Path(beside) / folder.name
        if form == "adapter":
            save_adapters(base, draft, peft_configs)
            write_code(draft)
        else:
            base.save_pretrained(draft)
        processor.save_pretrained(draft)
        _check_complete(draft)
        if folder.exists():
            shutil.rmtree(folder)
        draft.rename(folder)
    return base


def _check_complete(folder: Path) -> None:
    """Every class that config.json names must stand in a file beside it."""
    for auto_class, reference in json.loads((folder / "config.json").read_text())["auto_map"].items():
        module = reference.split("--")[-1].split(".")[0]
        if not (folder / f"{module}.py").is_file():
            raise RuntimeError(f"{folder} lacks {module}.py, which {auto_class} needs.")
