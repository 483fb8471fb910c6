"""Building the backbone of any family from its configuration, empty or pre-trained."""

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import AutoModel, AutoModelForTextEncoding, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING, MODEL_MAPPING
from transformers.utils import logging

from .fingerprint import DamagedFileError, refuse_damaged_files

HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder", "proxies")


@contextmanager
def naming_damaged_files(name_or_path: str | os.PathLike, kwargs: dict[str, Any]) -> Iterator[None]:
    """Where weights cannot be read because a file is cut short or overwritten, say which.

    Args:
        name_or_path: folder or Hub id of the weights.
        kwargs: arguments of `from_pretrained`, those of the Hub's client among them.

    Raises:
        DamagedFileError: from the error of transformers.
    """
    hub = {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name) is not None}
    try:
        yield
    except OSError:
        raise  # about a file that is not there, and says so
    except Exception as error:
        refuse_damaged_files(name_or_path, hub, error)
        raise


def refuse_other_tensors(name_or_path: str | os.PathLike, info: dict[str, Any], *problems: str) -> None:
    """Weights must be those of the configuration, no more and no fewer and of the same sizes.

    Args:
        name_or_path: folder or Hub id of the weights.
        info: what transformers says about the loading.
        *problems: the entries of it that are refused: `missing_keys`, `unexpected_keys`, `mismatched_keys`.

    Raises:
        ValueError: naming the first tensor.
    """
    for problem in problems:
        if not info[problem]:
            continue
        first = sorted(info[problem])[0]
        if problem == "mismatched_keys":
            name, stored, configured = first
            first = f"{name!r}, of the size {tuple(stored)} and not {tuple(configured)}"
        else:
            first = repr(first)
        raise ValueError(
            f"The weights in {str(name_or_path)!r} belong to another configuration: {len(info[problem])} "
            f"{problem.replace('_', ' ')}, among them {first}. Take config.json and weights of the same model."
        )


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
        OSError: where there are no safetensors weights, naming the place; or a weight file is damaged, naming it.
        ValueError: where the weights do not fill the architecture.
    """
    auto_class, take_encoder, arguments = _loader(text_config, encoder_only)
    try:
        with without_loading_report(), naming_damaged_files(name_or_path, kwargs):
            backbone, info = auto_class.from_pretrained(
                name_or_path, config=text_config, use_safetensors=True, output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
                **arguments, **kwargs,
            )  # fmt: skip
    except DamagedFileError:
        raise  # names the file
    except OSError as error:
        cause = str(error).replace("Please do not set `use_safetensors=True`.", "").strip()  # the last thing to do
        raise OSError(
            f"No pre-trained backbone could be read from {str(name_or_path)!r}. It must be a folder or a Hub "
            f"repository with config.json and safetensors weights (pickled weights are refused). Cause: {cause}"
        ) from error
    if take_encoder:
        backbone = backbone.get_encoder()
        info["missing_keys"] = [key for key in info["missing_keys"] if "encoder" in key]
    if info["missing_keys"]:
        raise ValueError(
            f"The weights in {str(name_or_path)!r} do not fill {type(backbone).__name__}: "
            f"{len(info['missing_keys'])} tensors are missing, among them {sorted(info['missing_keys'])[0]!r}."
        )
    refuse_other_tensors(name_or_path, info, "mismatched_keys")
    return backbone
