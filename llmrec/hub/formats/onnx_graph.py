"""ONNX: one graph from token ids to vectors, pooling and head inside. Checked with onnxruntime."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmrec.hub.formats.check import Check, Encode, Reference
from modeling_llmrec.ranking import batches_by_length

FILE = "model.onnx"
# Protocol buffers end at 2 GiB; beyond, the weights stand in a file of their own.
INLINE_BYTES = 1_800_000_000
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
USE = """\
```python
import onnxruntime
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("tokenizer.json")  # adds the separator and the special tokens
session = onnxruntime.InferenceSession("model.onnx")
ids = [tokenizer.encode("Espresso Beans 1 kg").ids]
vectors = session.run(["embeddings"], {"input_ids": ids, "attention_mask": [[1] * len(ids[0])]})[0]
```
"""


class Embedder(torch.nn.Module):
    """A model as one function of two tensors."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return self.model.get_item_embeddings(input_ids, attention_mask)


def write(model: Any, processor: Any, folder: Path) -> None:
    """Write `model.onnx` with free batch size and length.

    Args:
        model: an `LLMRecModel` without adapters; is cast to float32.
        processor: its processor.
        folder: exists.
    """
    model = model.float().eval()
    attention = model.config._attn_implementation
    # The plain attention: what SDPA is decomposed into fails on T5's position bias, and gains nothing elsewhere.
    model.set_attn_implementation("eager")
    example = processor.pad([[*range(9)], [*range(4)], [*range(6)]])
    free = {0: "batch", 1: "length"}
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                Embedder(model),
                (example["input_ids"], example["attention_mask"]),
                dynamo=True,
                input_names=["input_ids", "attention_mask"],
                output_names=["embeddings"],
                dynamic_shapes={"input_ids": dict(free), "attention_mask": dict(free)},
                verbose=False,
            )
    finally:
        model.set_attn_implementation(attention)
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program.")
    config = model.config
    program.model.metadata_props.update(
        {
            "model_type": config.model_type,
            "backbone": config.text_config.model_type,
            "pooling": config.pooling,
            "normalize": str(config.normalize),
            "embedding_dim": str(config.embedding_dim),
            "max_length": str(config.max_history_tokens),
        }
    )
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    program.save(folder / FILE, external_data=weights > INLINE_BYTES)


def check(folder: Path, reference: Reference) -> Check:
    """Compare `model.onnx`, run by onnxruntime, with the model."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(folder / FILE, options, providers=["CPUExecutionProvider"])
    return reference.check(in_batches(reference.processor, lambda batch: session.run(["embeddings"], batch)[0]))


def in_batches(processor: Any, run: Any) -> Encode:
    """Encode token ids with a function of one padded batch: `input_ids` and `attention_mask`, int64 (batch, length)."""

    def encode(texts: list[list[int]]) -> np.ndarray:
        parts: list[np.ndarray] = []
        order: list[int] = []
        # The small batches of the shapes stay what they are; a thousand titles are cut.
        batches = [range(len(texts))] if len(texts) <= 32 else batches_by_length([len(ids) for ids in texts], 2048)
        for batch in batches:
            padded = processor.pad([texts[i] for i in batch])
            parts.append(run({name: tensor.numpy() for name, tensor in padded.items()}))
            order += batch
        return np.concatenate(parts)[np.argsort(order)]

    return encode


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's remarks on its own exporter; what fails still raises."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
