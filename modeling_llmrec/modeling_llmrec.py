"""LLMRecModel: one language model turns histories and titles into vectors; dot products rank.

This file and its siblings travel to the Hub and run on machines without the package: they import
torch and transformers only.
"""

import copy
import os
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .backbone import HUB_ARGUMENTS, build_backbone, load_backbone, naming_damaged_files, refuse_other_tensors
from .checkpoint import load_with_adapters, save_adapters, write_code
from .configuration_llmrec import LLMRecConfig
from .fingerprint import DamagedFileError, commit_of, fingerprint, weight_files
from .gather import gather_rows
from .heads import ContrastiveHead, LogitScale
from .last_layer import find_last_layer, only_where_read
from .losses import binary_cross_entropy, in_batch_infonce, sampled_softmax
from .packing import PackedTexts
from .pooling import pool, pool_packed
from .presets import is_causal, preset_fields
from .processing_llmrec import LLMRecProcessor
from .reading import read_packed

# Their activations leave the range of float16, and vectors turn into NaN without a warning.
FP16_OVERFLOWS = {"t5", "mt5", "umt5"}


def _rows(vectors: Tensor | None, index: Tensor | None) -> Tensor | None:
    return None if vectors is None or index is None else vectors[index]


def _beside(items: Tensor | None, bank: Tensor | None) -> Tensor | None:
    """Columns of the items and of the bank, side by side; both are given, or neither is."""
    if (items is None) != (bank is None):
        raise ValueError("The masks and log counts of a bank go together with those of the items.")
    return None if items is None or bank is None else torch.cat([items, bank.to(items)], dim=-1)


def _hub(revision: str | None) -> dict[str, str]:
    return {} if revision is None else {"revision": revision}


@dataclass
class LLMRecOutput(ModelOutput):
    """Output of [`LLMRecModel`].

    Args:
        loss (`torch.FloatTensor`, scalar, *optional*): where `positive_index` was given.
        scores (`torch.FloatTensor` of shape `(histories, items)`, *optional*):
            Dot products, where items were given; not divided by the temperature.
        user_embeds (`torch.FloatTensor` of shape `(histories, embedding_dim)`, *optional*)
        item_embeds (`torch.FloatTensor` of shape `(items, embedding_dim)`, *optional*):
            With items of several ranks, those of all ranks.
        embeddings (`torch.FloatTensor` of shape `(vectors, embedding_dim)`, *optional*):
            All vectors of packed texts, in their order; those of `input_ids` where there is nothing else.
    """

    loss: Tensor | None = None
    scores: Tensor | None = None
    user_embeds: Tensor | None = None
    item_embeds: Tensor | None = None
    embeddings: Tensor | None = None


class LLMRecModel(PreTrainedModel):
    """A backbone, pooling and a contrastive head, shared by histories and items.

    Make one from a pre-trained language model with [`from_backbone`], load a trained one with
    `from_pretrained`.

    Args:
        config (`LLMRecConfig`): the configuration.
        backbone (`PreTrainedModel`, *optional*): a loaded backbone; built untrained by default.
    """

    config_class = LLMRecConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: Any, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self.backbone = build_backbone(config.text_config, config.encoder_only) if backbone is None else backbone
        self.head = ContrastiveHead(config.text_config.hidden_size, config.projection_dim, config.normalize)
        self.logit_scale = LogitScale(config.temperature, config.learn_temperature)
        # PEFT asks the outermost model which kind of adapter its linear layers need.
        self.is_loaded_in_4bit = bool(getattr(self.backbone, "is_loaded_in_4bit", False))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, LogitScale):
            if module.log_scale is not None:
                init.constant_(module.log_scale, -torch.tensor(module.temperature).log().item())
        else:
            super()._init_weights(module)

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.backbone.set_input_embeddings(value)

    # -- vectors and scores ------------------------------------------------------------------------

    def _embed(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        self._refuse_fp16_overflow(input_ids.device.type)
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        with torch.autocast(device_type=hidden.device.type, enabled=False):
            return self.head(pool(hidden, attention_mask, self.config.pooling))

    def _refuse_fp16_overflow(self, device_type: str) -> None:
        if self.config.text_config.model_type not in FP16_OVERFLOWS:
            return
        autocast = torch.is_autocast_enabled(device_type) and torch.get_autocast_dtype(device_type)
        if torch.float16 in (autocast, self.backbone.dtype):
            raise ValueError(f"{self.config.text_config.model_type} overflows in float16: use bfloat16 or float32.")

    def get_user_embeddings(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Vectors of histories.

        Args:
            input_ids: (histories, length) from [`LLMRecProcessor`], padded on the right.
            attention_mask: (histories, length), 1 for real tokens; all real by default.

        Returns:
            (histories, embedding_dim) float32, of length 1 where the config normalises.
        """
        return self._embed(input_ids, attention_mask)

    def get_item_embeddings(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Vectors of items. Arguments and result as in [`get_user_embeddings`]."""
        return self._embed(input_ids, attention_mask)

    def get_packed_embeddings(self, texts: PackedTexts | list[PackedTexts]) -> Tensor:
        """Vectors of packed texts, histories and items alike.

        Args:
            texts: packed texts, or several passes of them, which go through the backbone one after the other.

        Returns:
            (vectors, embedding_dim) float32, pass by pass.
        """
        passes = texts if isinstance(texts, list) else [texts]
        self._refuse_fp16_overflow(passes[0].input_ids.device.type)
        causal = is_causal(self.config.text_config) and not self.config.encoder_only
        last = find_last_layer(self.backbone) if causal and self.config.pooling == "last" else None
        vectors = []
        for packed in passes:
            if last is None:
                pooled = pool_packed(read_packed(self.backbone, packed, causal), packed, self.config.pooling)
            else:
                with only_where_read(last, packed.ends - 1):
                    pooled = read_packed(self.backbone, packed, causal)[0].float()
            with torch.autocast(device_type=pooled.device.type, enabled=False):
                vectors.append(self.head(pooled))
        return vectors[0] if len(vectors) == 1 else torch.cat(vectors)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        item_input_ids: Tensor | None = None,
        item_attention_mask: Tensor | None = None,
        positive_index: Tensor | None = None,
        candidate_mask: Tensor | None = None,
        item_log_q: Tensor | None = None,
        texts: PackedTexts | list[PackedTexts] | None = None,
        vectors: Tensor | None = None,
        user_index: Tensor | None = None,
        item_index: Tensor | None = None,
        items_per_rank: int | None = None,
        bank: Tensor | None = None,
        bank_mask: Tensor | None = None,
        bank_log_q: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> LLMRecOutput | tuple[Tensor, ...]:
        """Read histories and items, score every pair, and compute the config's loss.

        Texts come padded (the first four arguments), packed (`texts`), or read already (`vectors`).

        Args:
            input_ids, attention_mask: (histories, length). May be left out to embed items alone.
            item_input_ids, item_attention_mask: (items, length), each item of the batch once.
            positive_index: (histories,) column of each history's target among the items. Gives a loss.
            candidate_mask: (histories, items), True where an item counts in that history's loss.
            item_log_q: (items,) log expected count of each item in a batch (logQ correction);
                only for `contrastive_loss="in_batch"`.
            texts: packed texts; without `user_index` and `item_index` they are embedded and nothing else.
            vectors: (vectors, embedding_dim) instead of texts: the loss alone, for gradient caching.
            user_index, item_index: (histories,), (items,) rows of the vectors.
            items_per_rank: with several ranks, the largest number of items of one of them. Items of all ranks are then
                the columns, `items_per_rank` for each rank in turn, and the three arguments about items name those.
            bank: (extra, embedding_dim) vectors of further candidates, without gradient.
            bank_mask, bank_log_q: (histories, extra), (extra,), as for the items.

        Returns:
            [`LLMRecOutput`], or a tuple of its fields that are set with `return_dict=False`.
        """
        user_embeds = item_embeds = embeddings = None
        if texts is not None or vectors is not None:
            if input_ids is not None or item_input_ids is not None or (texts is not None and vectors is not None):
                raise ValueError("Pass padded input_ids, packed texts, or vectors: one of them.")
            embeddings = vectors if texts is None else self.get_packed_embeddings(texts)
            user_embeds = _rows(embeddings, user_index)
            item_embeds = _rows(embeddings, item_index)
        elif input_ids is None and item_input_ids is None:
            raise ValueError("Pass input_ids (histories), item_input_ids (items), both, or packed texts.")
        else:
            if input_ids is not None:
                user_embeds = self.get_user_embeddings(input_ids, attention_mask)
            if item_input_ids is not None:
                item_embeds = self.get_item_embeddings(item_input_ids, item_attention_mask)
            else:
                embeddings = user_embeds  # what a SentenceTransformer takes
        scores = loss = None
        if user_embeds is not None and item_embeds is not None:
            # In half precision a target ties with its neighbours; float32 costs nothing here.
            with torch.autocast(device_type=user_embeds.device.type, enabled=False):
                if items_per_rank is not None:
                    item_embeds = gather_rows(item_embeds, items_per_rank)
                if bank is not None:
                    item_embeds = torch.cat([item_embeds, bank.to(item_embeds)])
                    candidate_mask = _beside(candidate_mask, bank_mask)
                    item_log_q = _beside(item_log_q, bank_log_q)
                scores = user_embeds @ item_embeds.T
                if positive_index is not None:
                    loss = self._loss(scores, positive_index, candidate_mask, item_log_q)
        elif positive_index is not None:
            raise ValueError("A loss needs both histories and items.")
        output = LLMRecOutput(
            loss=loss, scores=scores, user_embeds=user_embeds, item_embeds=item_embeds, embeddings=embeddings
        )
        return output.to_tuple() if return_dict is False else output

    def _loss(
        self, scores: Tensor, positive_index: Tensor, candidate_mask: Tensor | None, item_log_q: Tensor | None
    ) -> Tensor:
        logits = self.logit_scale(scores)
        if self.config.contrastive_loss == "in_batch":
            return in_batch_infonce(logits, positive_index, candidate_mask, item_log_q)
        if item_log_q is not None:
            raise ValueError(
                "item_log_q corrects in-batch negatives; it has no place in contrastive_loss="
                f"{self.config.contrastive_loss!r}."
            )
        if self.config.contrastive_loss == "bce":
            return binary_cross_entropy(logits, positive_index, candidate_mask)
        return sampled_softmax(logits, positive_index, candidate_mask)

    # -- making, loading, saving -------------------------------------------------------------------

    @classmethod
    def from_backbone(
        cls,
        name_or_path: str | os.PathLike,
        *,
        revision: str | None = None,
        preset: str = "default",
        tokenizer: Any = None,
        dtype: torch.dtype | str | None = None,
        attn_implementation: str | None = None,
        quantization_config: Any = None,
        **config_fields: Any,
    ) -> "LLMRecModel":
        """A model around a pre-trained language model.

        Args:
            name_or_path: folder or Hub id of the backbone (BERT, OPT, FLAN-T5, Llama, …).
            revision: revision on the Hub; the config pins the commit that it stands for.
            preset: `"default"`, or `"paper"` for the authors' text layout, pooling and loss.
            tokenizer: its tokenizer; loaded from the same place by default.
            dtype: type of the backbone's weights (float32 by default); the head is float32.
            attn_implementation: attention of the backbone, as in transformers.
            quantization_config: 4-bit quantisation of the backbone, as in transformers.
            **config_fields: fields of [`LLMRecConfig`] that override the preset's.

        Raises:
            OSError: where there is no config, no tokenizer or no safetensors weights.
            ValueError: for weights that do not fit, an unknown preset or field, a tokenizer without a
                special token that the preset needs.
        """
        pinned = commit_of(name_or_path, **_hub(revision)) or revision
        config = cls.config_for_backbone(
            name_or_path, revision=pinned, preset=preset, tokenizer=tokenizer, **config_fields
        )
        options = {"dtype": dtype or torch.float32, "attn_implementation": attn_implementation}
        if quantization_config is not None:
            options["quantization_config"] = quantization_config
        try:
            backbone = load_backbone(
                name_or_path, config.text_config, bool(config.encoder_only), **_hub(pinned), **options
            )
        except OSError:
            if revision is not None or pinned is None:
                raise
            # Where a repository has pickled weights only, transformers finds its pull request with converted ones,
            # but not from a commit: so nothing is pinned.
            backbone = load_backbone(name_or_path, config.text_config, bool(config.encoder_only), **options)
            pinned = config.backbone_revision = None
        files = weight_files(name_or_path, **_hub(pinned))
        config.backbone_fingerprint = fingerprint(files) if files else None
        config.text_config = backbone.config
        # The caller may train at once or encode at once; like every from_pretrained, start in eval mode.
        return cls(config, backbone=backbone).eval()

    @classmethod
    def config_for_backbone(
        cls,
        name_or_path: str | os.PathLike,
        *,
        revision: str | None = None,
        preset: str = "default",
        tokenizer: Any = None,
        **config_fields: Any,
    ) -> Any:
        """The `LLMRecConfig` that [`from_backbone`] makes; no weights are read. Arguments and errors as there."""
        unknown = sorted(set(config_fields) - {field.name for field in fields(cls.config_class)})
        if unknown:
            raise ValueError(f"{unknown[0]!r} is not a field of LLMRecConfig.")
        pinned = commit_of(name_or_path, **_hub(revision)) or revision
        text_config = AutoConfig.from_pretrained(name_or_path, **_hub(pinned))
        if text_config.model_type == cls.config_class.model_type:
            raise ValueError(f"{str(name_or_path)!r} is an LLM-Rec model already: load it with from_pretrained.")
        if tokenizer is None:
            tokenizer = AutoTokenizer.from_pretrained(name_or_path, **_hub(pinned))
        values = {
            "backbone_name_or_path": str(name_or_path),
            "backbone_revision": pinned,
            **preset_fields(preset, text_config, tokenizer),
            **config_fields,
        }
        return cls.config_class(text_config=text_config, **values)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *args: Any,
        config: PreTrainedConfig | None = None,
        load_adapters: bool = True,
        backbone: str | os.PathLike | None = None,
        check_backbone: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Load a saved model: full or merged weights, or adapters over a backbone in its own place.

        Args:
            pretrained_model_name_or_path: folder or Hub id.
            config: its configuration, read from the same place by default.
            load_adapters: `False` gives an adapter checkpoint's bare backbone, for users of
                `PeftModel.from_pretrained`.
            backbone: folder or Hub id to take the backbone of an adapter checkpoint from, instead of the place that
                its config names (on a machine without a network, or from a mirror).
            check_backbone: `False` only warns of a backbone that has changed since the adapters were trained.
            **kwargs: as in transformers (`revision`, `dtype`, `attn_implementation`, `token`, …), and fields of
                [`LLMRecConfig`] to change, such as `default_adapter`.

        Raises:
            TypeError: for an argument that an adapter checkpoint does not take.
            ValueError: for a folder that is not an LLM-Rec model (a raw backbone goes into
                [`from_backbone`]), weights that do not fit its configuration, or another backbone than the adapters'.
            OSError: for a file that is missing or damaged.
        """
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name) is not None}
        own_fields = {field.name for field in fields(cls.config_class)} - {f.name for f in fields(PreTrainedConfig)}
        changes = {name: kwargs.pop(name) for name in sorted(own_fields & kwargs.keys())}
        if config is None:
            config = cls._read_config(pretrained_model_name_or_path, hub)
        elif changes:
            config = copy.deepcopy(config)
        for name, value in changes.items():
            setattr(config, name, value)
        wants_info = kwargs.pop("output_loading_info", False)
        if config.adapters:
            for name in HUB_ARGUMENTS:
                kwargs.pop(name, None)
            model = load_with_adapters(
                cls, pretrained_model_name_or_path, config,
                load_adapters=load_adapters, hub=hub, backbone=backbone, check_backbone=check_backbone, **kwargs,
            )  # fmt: skip
            return (model, {}) if wants_info else model
        if backbone is not None:
            raise TypeError(
                f"backbone={str(backbone)!r} is for adapter checkpoints: {str(pretrained_model_name_or_path)!r} holds "
                "all weights itself."
            )
        if kwargs.get("use_safetensors") not in (None, True):
            raise TypeError("Pickled weights are refused: use_safetensors must be True.")
        kwargs["use_safetensors"] = True
        kwargs["ignore_mismatched_sizes"] = True  # they are refused below, by name
        try:
            with naming_damaged_files(pretrained_model_name_or_path, hub):
                model, info = super().from_pretrained(
                    pretrained_model_name_or_path, *args, config=config, output_loading_info=True, **kwargs
                )
        except DamagedFileError:
            raise  # names the file
        except OSError as error:
            raise OSError(
                f"The weights of {str(pretrained_model_name_or_path)!r} cannot be had: they must be "
                "model.safetensors, or its index and every file that this names; pickled weights are refused. Fetch or "
                f"save the model again. Cause: {error}"
            ) from error
        refuse_other_tensors(pretrained_model_name_or_path, info, "missing_keys", "unexpected_keys", "mismatched_keys")
        return (model, info) if wants_info else model

    @classmethod
    def _read_config(cls, name_or_path: str | os.PathLike, hub: dict[str, Any]) -> Any:
        found, _ = PreTrainedConfig.get_config_dict(name_or_path, **hub)
        if not found or not isinstance(found, dict):
            raise OSError(f"{str(name_or_path)!r} has no config.json, or an empty one: fetch or save the model again.")
        if "model_type" not in found:
            raise ValueError(f"config.json of {str(name_or_path)!r} says no model_type: fetch or save the model again.")
        if found["model_type"] != cls.config_class.model_type:
            raise ValueError(
                f"{str(name_or_path)!r} is a {found['model_type']!r} model, not an LLM-Rec checkpoint. To start from a "
                "pre-trained language model call LLMRecModel.from_backbone(…)."
            )
        try:
            return cls.config_class.from_pretrained(name_or_path, **hub)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"config.json of {str(name_or_path)!r} cannot be used: {error} Fetch or save the model again."
            ) from error

    def as_pipeline(self, processor: LLMRecProcessor, **kwargs: Any) -> Any:
        """`pipeline("recommendation", …)` around this model.

        Args:
            processor: the model's.
            **kwargs: as in transformers (`device`, `batch_size`, …).
        """
        # Not at the top: most do without it. For transformers the import is a reason to keep the file with the others.
        from .pipeline_llmrec import RecommendationPipeline

        return RecommendationPipeline(model=self, tokenizer=processor.tokenizer, processor=processor, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Save config, safetensors weights and the code that loads them.

        A model with adapters is saved as adapters only: its backbone stays where it came from.
        """
        if getattr(self, "_hf_peft_config_loaded", False):
            save_adapters(self, save_directory)
        elif self.config.adapters:
            raise ValueError(
                "This model was loaded without its adapters (load_adapters=False): saved, it would be the untrained "
                "backbone. Load it with them."
            )
        else:
            super().save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            write_code(save_directory)


__all__ = ["LLMRecModel", "LLMRecOutput", "LLMRecProcessor"]
