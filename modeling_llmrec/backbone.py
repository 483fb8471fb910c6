"""Building the backbone of any family from its configuration, empty or pre-trained."""

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import AutoModel, AutoModelForTextEncoding, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING, MODEL_MAPPING
from transformers.utils import logging


@contextmanager
def without_loading_report() -> Iterator[None]:
    """Silence transformers' list of tensors that a checkpoint lacks or has too many (BERT's pooler, other heads,
    other adapters): it alarms, and what matters of it is checked and raised here."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _loader(text_config: PreTrainedConfig, encoder_only: bool) -> tuple[Any, bool, dict[str, Any]]:
    """The Auto class that builds it, whether to take `get_encoder()` of the result, extra arguments."""
    if encoder_only:
        if type(text_config) in MODEL_FOR_TEXT_ENCODING_MAPPING:
            return AutoModelForTextEncoding, False, {}
        return AutoModel, True, {}
    arguments = {}
    model_class = MODEL_MAPPING[type(text_config)] if type(text_config) in MODEL_MAPPING else None
    if model_class is not None and "add_pooling_layer" in inspect.signature(model_class.__init__).parameters:
        # BERT's own pooler is never used here, and an unused parameter stops distributed training.
        arguments["add_pooling_layer"] = False
    return AutoModel, False, arguments


def build_backbone(text_config: PreTrainedConfig, encoder_only: bool) -> PreTrainedModel:
    """An untrained backbone; weights are loaded into it by `from_pretrained`."""
    auto_class, take_encoder, arguments = _loader(text_config, encoder_only)
    backbone = auto_class.from_config(text_config, **arguments)
    return backbone.get_encoder() if take_encoder else backbone


def load_backbone(
    name_or_path: str | os.PathLike, text_config: PreTrainedConfig, encoder_only: bool, **kwargs: Any
) -> PreTrainedModel:
    """A pre-trained backbone from a local folder or the Hub, safetensors only.

    Raises:
        OSError: where there are no safetensors weights, naming the place.
        ValueError: where the weights do not fill the architecture.
    """
    auto_class, take_encoder, arguments = _loader(text_config, encoder_only)
    try:
        with without_loading_report():
            backbone, info = auto_class.from_pretrained(
                name_or_path, config=text_config, use_safetensors=True, output_loading_info=True, **arguments, **kwargs
            )
    except OSError as error:
        raise OSError(
            f"No pre-trained backbone could be read from {str(name_or_path)!r}. It must be a folder or a Hub "
            f"repository with config.json and safetensors weights (pickled weights are refused). Cause: {error}"
        ) from error
    if take_encoder:
        backbone, info = backbone.get_encoder(), {"missing_keys": [k for k in info["missing_keys"] if "encoder" in k]}
    if info["missing_keys"]:
        raise ValueError(
            f"The weights in {str(name_or_path)!r} do not fill {type(backbone).__name__}: "
            f"{len(info['missing_keys'])} tensors are missing, among them {sorted(info['missing_keys'])[0]!r}."
        )
    return backbone
