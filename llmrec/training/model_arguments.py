"""Arguments of the model: its backbone, and what is trained of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class ModelArguments:
    """The backbone, what is trained of it, and everything that changes a vector."""

    backbone: str = field(
        default="sentence-transformers/all-MiniLM-L6-v2",
        metadata={"help": "Hub id or folder of the pre-trained language model."},
    )
    backbone_revision: str | None = field(
        default=None, metadata={"help": "Revision of the backbone's repository on the Hub."}
    )
    preset: Literal["default", "paper"] = field(
        default="default", metadata={"help": "Text layout, pooling and loss by the kind of backbone."}
    )
    tuning: Literal["full", "lora", "frozen"] = field(
        default="lora",
        metadata={"help": "Train all weights, low-rank adapters and the head, or the head alone."},
    )
    pooling: Literal["cls", "last", "mean"] | None = field(
        default=None,
        metadata={"help": "Hidden states that become the vector; the preset's choice if not given."},
    )
    projection_dim: int | None = field(default=None, metadata={"help": "Size of a linear projection after pooling."})
    normalize: bool | None = field(
        default=None, metadata={"help": "Scale vectors to length 1; the preset's choice if not given."}
    )
    temperature: float | None = field(
        default=None,
        metadata={"help": "Divisor of the scores in the loss; the preset's choice if not given."},
    )
    learn_temperature: bool = field(default=False, metadata={"help": "Train the temperature."})
    max_history_items: int | None = field(default=None, metadata={"help": "Newest items of a history that are read."})
    max_title_tokens: int | None = field(
        default=None, metadata={"help": "Tokens kept of each title, separator included."}
    )
    max_history_tokens: int | None = field(
        default=None, metadata={"help": "Tokens of a whole history, special tokens included."}
    )
    item_order: Literal["oldest_first", "newest_first"] | None = field(
        default=None, metadata={"help": "Order of the titles of a history."}
    )
    item_separator: str | None = field(default=None, metadata={"help": "Text after each title."})
    contrastive_loss: Literal["sampled_softmax", "in_batch", "bce"] | None = field(
        default=None, metadata={"help": "The loss; the preset's choice if not given."}
    )
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapters."})
    lora_alpha: int = field(default=32, metadata={"help": "Scale of the adapters, divided by their rank."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout before the adapters."})
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["all-linear"],
        metadata={"help": "Modules that get adapters: all-linear, or names of linear layers."},
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={"help": "Attention kernel of the backbone (sdpa, eager, flash_attention_2, …)."},
    )
    backbone_dtype: Literal["float32", "bfloat16"] = field(
        default="float32",
        metadata={"help": "Type of the backbone's weights; bfloat16 halves their memory (tuning lora or frozen)."},
    )
    quantization: Literal["nf4"] | None = field(
        default=None,
        metadata={"help": "Load the backbone in 4 bits and train adapters over it (QLoRA; needs bitsandbytes)."},
    )
    save_form: Literal["full", "adapter"] = field(
        default="full",
        metadata={"help": "What model/ holds: all weights (LoRA merged), or the adapter alone."},
    )

    def __post_init__(self) -> None:
        if self.save_form == "adapter" and self.tuning != "lora":
            raise ValueError(f"save_form='adapter' needs tuning='lora', not {self.tuning!r}")
        if self.tuning == "frozen" and self.projection_dim is None and not self.learn_temperature:
            raise ValueError(
                "tuning='frozen' leaves nothing to train without a head: set projection_dim (for example 128)"
            )
        if self.tuning == "lora" and self.lora_r < 1:
            raise ValueError(f"lora_r={self.lora_r} must be at least 1")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout={self.lora_dropout} must be in [0, 1)")
        self._check_weight_format()

    def _check_weight_format(self) -> None:
        if self.backbone_dtype == "bfloat16" and self.tuning == "full":
            raise ValueError(
                "backbone_dtype='bfloat16' with tuning='full': a weight in bf16 keeps 8 significant bits, so most of "
                "AdamW's small steps would round to nothing; train adapters (tuning='lora'), or say precision='bf16', "
                "which computes in bf16 and keeps float32 weights"
            )
        if self.quantization is None:
            return
        if self.tuning != "lora":
            raise ValueError(
                f"quantization={self.quantization!r} needs tuning='lora', not {self.tuning!r}: 4-bit weights stay as "
                "they are, and adapters learn over them"
            )
        if self.save_form != "adapter":
            raise ValueError(
                f"quantization={self.quantization!r} needs save_form='adapter': adapters cannot be merged into 4-bit "
                "weights without a loss"
            )

    @property
    def config_overrides(self) -> dict[str, object]:
        """Fields of `LLMRecConfig` that were asked for; the preset chooses the others."""
        fields = (
            "pooling",
            "projection_dim",
            "normalize",
            "temperature",
            "max_history_items",
            "max_title_tokens",
            "max_history_tokens",
            "item_order",
            "item_separator",
            "contrastive_loss",
        )
        asked = {name: getattr(self, name) for name in fields if getattr(self, name) is not None}
        return asked | ({"learn_temperature": True} if self.learn_temperature else {})
