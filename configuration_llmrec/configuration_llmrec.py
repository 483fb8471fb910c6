"""Configuration of an LLM-Rec model: a backbone, and everything that changes a vector.

This file travels to the Hub beside the weights. It imports nothing but transformers.
"""

import copy
import re
from pathlib import PurePosixPath
from typing import Any, ClassVar, Literal

from transformers import AutoConfig, PreTrainedConfig

AUTO_MAP = {
    "AutoConfig": "configuration_llmrec.LLMRecConfig",
    "AutoModel": "modeling_llmrec.LLMRecModel",
    "AutoProcessor": "processing_llmrec.LLMRecProcessor",
}
# What `pipeline("recommendation", model=…, trust_remote_code=True)` looks for.
CUSTOM_PIPELINES = {
    "recommendation": {
        "impl": "pipeline_llmrec.RecommendationPipeline",
        "pt": ["AutoModel"],
        "type": "text",
        "default": {},
    }
}
# PEFT puts the name of an adapter into names of modules and folders.
ADAPTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class LLMRecConfig(PreTrainedConfig):
    r"""
    Configuration of an [`LLMRecModel`].

    Whatever changes the vector of a history or of an item is a field here, so that a checkpoint
    needs no flags. [`LLMRecModel.from_backbone`] fills the fields that depend on the backbone.

    Args:
        text_config (`PreTrainedConfig` or `dict`):
            Configuration of the backbone; a BERT by default.
        backbone_name_or_path (`str`, *optional*):
            Where the pre-trained backbone came from. Adapter-only checkpoints load it from there.
        backbone_revision (`str`, *optional*):
            Revision of that repository, pinned to a commit where the backbone came from the Hub.
        backbone_fingerprint (`str`, *optional*):
            Print of the backbone's weight files ([`fingerprint`]). Adapters are refused over a backbone with another.
        encoder_only (`bool`, *optional*):
            Whether only the encoder of an encoder-decoder is used. Defaults to
            `text_config.is_encoder_decoder`. It is stored because building a T5 encoder clears that flag.
        pooling (`"cls"`, `"last"` or `"mean"`):
            Which hidden states become the vector: the first token's, the last real token's, or the
            mean over all real tokens.
        projection_dim (`int`, *optional*):
            Size of a linear projection after pooling; `None` for no projection.
        normalize (`bool`): Whether vectors are scaled to length 1, which makes scores cosines.
        temperature (`float`): Divisor of the scores inside the loss. Does not change rankings.
        learn_temperature (`bool`): Whether the temperature is a trained parameter.
        contrastive_loss (`"in_batch"`, `"sampled_softmax"` or `"bce"`): The loss of `forward`.
        item_separator (`str`): Text put after each title before it is tokenised.
        max_title_tokens (`int`): Tokens kept of each title, the separator's included.
        max_history_items (`int`): Newest items of a history that are read.
        max_history_tokens (`int`, *optional*):
            Tokens of a whole history, special tokens included. Oldest items are dropped whole.
            Defaults to what `max_history_items` titles can need, at most what the backbone can place.
        item_order (`"oldest_first"` or `"newest_first"`): Order of the titles in the text.
        prefix_tokens, suffix_tokens (`list[str]`):
            Special tokens around a history and around an item.
        adapters (`dict[str, str]`, *optional*):
            Adapter name to folder inside the repository. Present in adapter-only checkpoints. Names are of letters,
            digits, `_` and `-`.
        default_adapter (`str`, *optional*): The adapter that is active after loading.
    """

    model_type = "llmrec"
    sub_configs: ClassVar[dict[str, Any]] = {"text_config": AutoConfig}

    text_config: Any = None
    backbone_name_or_path: str | None = None
    backbone_revision: str | None = None
    backbone_fingerprint: str | None = None
    encoder_only: bool | None = None
    pooling: Literal["cls", "last", "mean"] = "mean"
    projection_dim: int | None = None
    normalize: bool = True
    temperature: float = 0.05
    learn_temperature: bool = False
    contrastive_loss: Literal["in_batch", "sampled_softmax", "bce"] = "in_batch"
    item_separator: str = "; "
    max_title_tokens: int = 40
    max_history_items: int = 10
    max_history_tokens: int | None = None
    item_order: Literal["oldest_first", "newest_first"] = "oldest_first"
    prefix_tokens: list[str] | None = None
    suffix_tokens: list[str] | None = None
    adapters: dict[str, str] | None = None
    default_adapter: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.text_config is None:
            self.text_config = {}
        if isinstance(self.text_config, dict):
            self.text_config = AutoConfig.for_model(**{"model_type": "bert", **self.text_config})
        super().__post_init__(**kwargs)
        if self.encoder_only is None:
            self.encoder_only = bool(self.text_config.is_encoder_decoder)
        self.prefix_tokens = list(self.prefix_tokens or [])
        self.suffix_tokens = list(self.suffix_tokens or [])
        self.auto_map = dict(AUTO_MAP)
        self.custom_pipelines = copy.deepcopy(CUSTOM_PIPELINES)
        self._check_values()
        if self.max_history_tokens is None:
            self.max_history_tokens = self._default_history_tokens()
        if self.max_history_tokens < self.max_title_tokens + self._special_tokens:
            raise ValueError(
                f"max_history_tokens={self.max_history_tokens} cannot hold one title of "
                f"max_title_tokens={self.max_title_tokens} and {self._special_tokens} special tokens: "
                "raise the former or lower the latter."
            )
        limit = self.position_limit
        if limit is not None and self.max_history_tokens > limit:
            raise ValueError(
                f"max_history_tokens={self.max_history_tokens} is more than the {limit} positions of the "
                f"backbone ({self.text_config.model_type})."
            )

    def _check_values(self) -> None:
        choices = {
            "pooling": ("cls", "last", "mean"),
            "contrastive_loss": ("in_batch", "sampled_softmax", "bce"),
            "item_order": ("oldest_first", "newest_first"),
        }
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field}={getattr(self, field)!r} is none of {', '.join(map(repr, allowed))}.")
        for field in ("max_title_tokens", "max_history_items", "projection_dim", "max_history_tokens"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"{field}={value} must be at least 1.")
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature} must be above 0.")
        for name, folder in (self.adapters or {}).items():
            path = PurePosixPath(str(folder))
            if not ADAPTER_NAME.fullmatch(name):
                raise ValueError(f"The adapter name {name!r} in config.json may hold letters, digits, _ and - only.")
            if not path.parts or path.is_absolute() or ".." in path.parts or not re.fullmatch(r"[\w./-]+", str(folder)):
                raise ValueError(
                    f"config.json puts adapter {name!r} into {folder!r}: it must be a folder inside the repository, "
                    f"such as 'adapters/{name}'."
                )
        if self.default_adapter is not None and self.default_adapter not in (self.adapters or {}):
            raise ValueError(
                f"default_adapter={self.default_adapter!r} is not among the adapters {list(self.adapters or {})}."
            )

    @property
    def _special_tokens(self) -> int:
        return len(self.prefix_tokens or []) + len(self.suffix_tokens or [])

    @property
    def position_limit(self) -> int | None:
        """Longest input the backbone has positions for; `None` where positions are relative (T5)."""
        limit = getattr(self.text_config, "max_position_embeddings", None)
        return int(limit) if limit else None

    def _default_history_tokens(self) -> int:
        needed = self.max_history_items * self.max_title_tokens + self._special_tokens
        return needed if self.position_limit is None else min(needed, self.position_limit)

    @property
    def embedding_dim(self) -> int:
        """Size of the vectors of users and items."""
        return self.projection_dim or self.text_config.hidden_size

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        # The backbone's own name is a field of ours; its path on this machine is nobody's business.
        if isinstance(output.get("text_config"), dict):
            output["text_config"].pop("_name_or_path", None)
            # How a backbone was quantised while it was loaded; read back, it would promise weights stored in 4 bits.
            output["text_config"].pop("quantization_config", None)
        # `pipeline` puts classes where the names were, and Auto classes write into both.
        output["auto_map"] = dict(AUTO_MAP)
        output["custom_pipelines"] = copy.deepcopy(CUSTOM_PIPELINES)
        return output


__all__ = ["LLMRecConfig"]
