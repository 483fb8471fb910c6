"""Loading a saved model at home, where a backbone may lie in an installed package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmrec.backbones import resolve_backbone
from modeling_llmrec import LLMRecConfig, LLMRecModel, LLMRecProcessor
from modeling_llmrec.backbone import HUB_ARGUMENTS
from modeling_llmrec.tokenizer_files import read_tokenizer


def load_model(name_or_path: str | Path, **kwargs: Any) -> tuple[Any, Any]:
    """A saved model and its processor, from a folder or the Hub.

    As `LLMRecModel.from_pretrained`, but adapters over MiniLM find it in the package of the extra `demo` where the Hub
    is out of reach.

    Args:
        name_or_path: folder or Hub id.
        **kwargs: arguments of `LLMRecModel.from_pretrained` (`revision`, `dtype`, `default_adapter`, `backbone`,
            `check_backbone`, `device_map`, …).

    Returns:
        The `LLMRecModel`, in eval mode, and the `LLMRecProcessor`.

    Raises:
        BackboneNotFoundError: the adapters are over MiniLM, and it is nowhere to be had.
        OSError: a file is missing or damaged, here or in the backbone's repository.
        ValueError: it is not a model of ours, or its parts do not fit together.
    """
    # They say where the processor is read from too.
    hub = {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name) is not None}
    if kwargs.get("backbone") is None:
        found = backbone_beside(name_or_path, **hub)
        if found is not None:
            kwargs["backbone"] = found
    model = LLMRecModel.from_pretrained(name_or_path, **kwargs)
    # The processor reads the layout that the model was loaded with, fields changed by an argument included.
    return model, LLMRecProcessor(read_tokenizer(name_or_path, model.config, **hub), config=model.config)


def backbone_beside(name_or_path: str | Path, **hub: Any) -> str | None:
    """Where on this machine the backbone of an adapter checkpoint lies, if that is not the place its config names.

    Args:
        name_or_path: folder or Hub id of a saved model.
        **hub: arguments of the Hub's client.
    """
    settings, _ = LLMRecConfig.get_config_dict(name_or_path, **hub)
    # What is wrong with a config.json is for `from_pretrained` to say.
    named = settings.get("backbone_name_or_path") if isinstance(settings, dict) else None
    if not named or not settings.get("adapters"):
        return None
    source = resolve_backbone(named)
    return None if source == named else source
