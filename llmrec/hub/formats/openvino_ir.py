"""OpenVINO: the ONNX graph as its intermediate representation. Checked with OpenVINO's runtime in float32."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from llmrec.hub.formats import onnx_graph
from llmrec.hub.formats.check import Check, Reference

FILE = "openvino_model.xml"
PACKAGES = ("onnx", "onnxscript", "openvino")
USE = """\
```python
import numpy, openvino
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("tokenizer.json")  # adds the separator and the special tokens
# Without the hint a processor with AMX computes in bfloat16: faster, and 3 digits instead of 7.
model = openvino.Core().compile_model("openvino_model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
ids = numpy.array([tokenizer.encode("Espresso Beans 1 kg").ids])
vectors = model({"input_ids": ids, "attention_mask": numpy.ones_like(ids)})["embeddings"]
```
"""


def write(model: Any, processor: Any, folder: Path) -> None:
    """Write `openvino_model.xml` and `.bin`, weights in float32. Arguments as for `onnx_graph.write`."""
    import openvino

    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-onnx-") as beside:
        onnx_graph.write(model, processor, Path(beside))
        converted = openvino.convert_model(Path(beside) / onnx_graph.FILE)
        openvino.save_model(converted, folder / FILE, compress_to_fp16=False)


def check(folder: Path, reference: Reference) -> Check:
    """Compare the written model with ours."""
    import openvino

    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(folder / FILE, "CPU", options)
    return reference.check(onnx_graph.in_batches(reference.processor, lambda batch: compiled(batch)["embeddings"]))
