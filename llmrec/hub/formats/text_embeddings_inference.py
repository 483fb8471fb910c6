"""text-embeddings-inference: a plain backbone with the classic modules of a SentenceTransformer.

Its server is written in Rust: it runs no code of ours, reads adapters of no kind, and tokenises a text with
`tokenizer.json` alone. So adapters are merged, the head becomes the modules Dense and Normalize under the names that
the server knows, and the layout goes into `tokenizer.json`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import logging

from llmrec.hub.formats.check import Check, ExportRefusedError, Reference
from llmrec.hub.formats.layout import LayoutTokenizer

PACKAGES = ("sentence_transformers",)
# Keys that the server demands in config.json, beyond those of any model. transformers 5 moved some of them.
REQUIRED: dict[str, tuple[str, ...]] = {
    "bert": (
        "hidden_act", "hidden_dropout_prob", "intermediate_size", "initializer_range", "layer_norm_eps",
        "num_attention_heads", "num_hidden_layers", "type_vocab_size",
    ),
    "modernbert": (
        "attention_bias", "attention_dropout", "bos_token_id", "classifier_activation", "cls_token_id", "eos_token_id",
        "global_attn_every_n_layers", "global_rope_theta", "hidden_activation", "initializer_cutoff_factor",
        "initializer_range", "intermediate_size", "local_attention", "local_rope_theta", "norm_bias", "norm_eps",
        "num_attention_heads", "num_hidden_layers", "pad_token_id", "sep_token_id",
    ),
    "qwen3": (
        "attention_bias", "eos_token_id", "head_dim", "hidden_act", "intermediate_size", "num_attention_heads",
        "num_hidden_layers", "num_key_value_heads", "rms_norm_eps", "rope_theta", "use_sliding_window",
    ),
}  # fmt: skip
POOLINGS = {"bert": ("cls", "mean"), "modernbert": ("cls", "mean"), "qwen3": ("cls", "mean", "last")}
POOLING_FIELDS = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens", "last": "pooling_mode_lasttoken"}
USE = """\
```
docker run -p 8080:80 -v $PWD:/model ghcr.io/huggingface/text-embeddings-inference:cpu-latest --model-id /model
curl localhost:8080/embed -H 'Content-Type: application/json' -d '{"inputs": ["Espresso Beans 1 kg"]}'
```

A title is one text. A history is one text too, one title a line, oldest first: its newest titles that fit into
`max_history_tokens` of `export.json`. Compare vectors by their dot product. A model with `"normalize": false` in
`export.json` needs `"normalize": false` in the request too. Version 1.8 or later, where `2_Dense` is present.
"""


def refuse(config: Any) -> None:
    """Raise `ExportRefusedError` for a model that the server cannot run, before any work is done."""
    kind = config.text_config.model_type
    if kind not in REQUIRED:
        raise ExportRefusedError(
            f"text-embeddings-inference does not run {kind!r} backbones in a form that this export writes; it takes "
            f"{', '.join(REQUIRED)}. Use --format onnx or openvino, which take every family."
        )
    if config.pooling not in POOLINGS[kind]:
        raise ExportRefusedError(
            f"text-embeddings-inference has no pooling={config.pooling!r} for {kind!r} backbones, only "
            f"{', '.join(map(repr, POOLINGS[kind]))}. Use --format onnx or openvino."
        )
    if kind == "qwen3" and getattr(config.text_config, "use_sliding_window", False):
        raise ExportRefusedError("text-embeddings-inference does not run qwen3 backbones with a sliding window.")


def write(model: Any, processor: Any, folder: Path) -> None:
    """Write the backbone, its modules and the tokenizer with the layout in it.

    Args:
        model: an `LLMRecModel` without adapters.
        processor: its processor.
        folder: exists.

    Raises:
        ExportRefusedError: for a family, a pooling or a configuration that the server does not take.
    """
    config = model.config
    model.backbone.save_pretrained(folder)
    _write_config(model, folder)
    LayoutTokenizer(processor).save(folder)
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    hidden = config.text_config.hidden_size
    pooling = {"word_embedding_dimension": hidden, **{f: how == config.pooling for how, f in POOLING_FIELDS.items()}}
    absent = ("pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens")
    _write_json(
        folder / "1_Pooling" / "config.json", {**pooling, **dict.fromkeys(absent, False), "include_prompt": True}
    )
    if config.projection_dim:
        from safetensors.torch import save_file

        modules.append(("Dense", "2_Dense"))
        _write_json(
            folder / "2_Dense" / "config.json",
            {
                "in_features": hidden,
                "out_features": config.projection_dim,
                "bias": False,
                "activation_function": "torch.nn.modules.linear.Identity",
            },
        )
        weight = model.head.projection.weight.detach().float().cpu().contiguous()
        save_file({"linear.weight": weight}, folder / "2_Dense" / "model.safetensors", metadata={"format": "pt"})
    if config.normalize:
        modules.append(("Normalize", f"{len(modules)}_Normalize"))
        (folder / f"{len(modules) - 1}_Normalize").mkdir()
    _write_json(
        folder / "modules.json",
        [
            {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for n, (kind, path) in enumerate(modules)
        ],
    )
    _write_json(
        folder / "sentence_bert_config.json", {"max_seq_length": config.max_history_tokens, "do_lower_case": False}
    )
    _write_json(
        folder / "config_sentence_transformers.json",
        {
            "model_type": "SentenceTransformer", "prompts": {}, "default_prompt_name": None,
            "similarity_fn_name": "dot",
        },
    )  # fmt: skip


def check(folder: Path, reference: Reference) -> Check:
    """Compare what a SentenceTransformer makes of the folder, from text, with the model.

    Raises:
        ExportRefusedError: where a title within the limits gets other token ids than the processor's.
    """
    from sentence_transformers import SentenceTransformer

    sample, layout = reference.sample, LayoutTokenizer(reference.processor)
    joined = [layout.join(titles) for titles in sample.histories]
    equal_items = layout.equal(sample.titles, reference.item_ids)
    equal_users = layout.equal(joined, reference.user_ids)
    wrong = ~equal_items & ~layout.too_long(sample.titles)
    if wrong.any():
        raise ExportRefusedError(
            f"tokenizer.json cannot say how this model lays out titles: {int(wrong.sum())} of {len(wrong)} get other "
            f"token ids, the first {sample.titles[int(wrong.argmax())]!r}."
        )
    with _quiet():
        sentences = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    texts = [*sample.titles, *joined]
    ids = [row[mask.bool()].tolist() for row, mask in _tokenised(sentences, texts)]
    if ids != layout.encode(texts):
        raise ExportRefusedError("transformers does not read tokenizer.json as it was written.")

    def encode(some: list[str]) -> np.ndarray:
        return np.asarray(sentences.encode(some, show_progress_bar=False), dtype=np.float32)

    return reference.check(
        lambda _: encode(sample.titles),
        lambda _: encode(joined),
        shapes=False,
        equal_items=equal_items,
        equal_users=equal_users,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' report that BERT's pooler is missing, which nobody reads here."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _tokenised(sentences: Any, texts: list[str]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    rows: list[tuple[torch.Tensor, torch.Tensor]] = []
    for start in range(0, len(texts), 64):
        batch = sentences.preprocess(texts[start : start + 64])
        rows += zip(batch["input_ids"], batch["attention_mask"], strict=True)
    return rows


def _write_config(model: Any, folder: Path) -> None:
    """Add to config.json what the server looks for under older names."""
    kind = model.config.text_config.model_type
    path = folder / "config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["architectures"] = [type(model.backbone).__name__]
    ropes = settings.get("rope_parameters") or {}
    if kind == "qwen3":
        if ropes.get("rope_type", "default") != "default":
            raise ExportRefusedError(f"text-embeddings-inference does not scale positions: {ropes}.")
        settings["rope_theta"] = ropes.get("rope_theta")
        # The server takes it for padding, which is masked.
        settings["eos_token_id"] = _first(settings.get("eos_token_id"))
    if kind == "modernbert":
        layers = settings["layer_types"]
        period = layers.index("full_attention", 1) if "full_attention" in layers[1:] else len(layers)
        expected = ["sliding_attention" if n % period else "full_attention" for n in range(len(layers))]
        if layers != expected:
            raise ExportRefusedError(f"text-embeddings-inference has no such order of attention layers: {layers}.")
        settings["global_attn_every_n_layers"] = period
        for name, attention in (("global_rope_theta", "full_attention"), ("local_rope_theta", "sliding_attention")):
            settings[name] = ropes.get(attention, {}).get("rope_theta")
    for name in REQUIRED[kind]:
        if settings.get(name) is None:
            raise ExportRefusedError(
                f"text-embeddings-inference needs {name} in config.json, which this backbone lacks."
            )
    _write_json(path, settings)


def _first(ids: Any) -> int:
    if isinstance(ids, list):
        ids = ids[0] if ids else None
    return 0 if ids is None else int(ids)


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
