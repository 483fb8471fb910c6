"""The kinds of files that a published model may hold, and a look into each."""

from __future__ import annotations

import ast
import functools
import re
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmrec.hub.leaks import read_json
from modeling_llmrec.checkpoint import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from modeling_llmrec.fingerprint import read_header, shards

# What a stranger has who has transformers: the code may import nothing else at its top.
STRANGERS_PACKAGES = {"torch", "transformers", *sys.stdlib_module_names}
OWN_PACKAGES = {"llmrec", "modeling_llmrec", "configuration_llmrec"}

_ADAPTER_FOLDER = r"adapters/[A-Za-z0-9][A-Za-z0-9_-]*/"
_TOKENIZER = (
    r"tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json|vocab\.(?:txt|json)|merges\.txt"
    r"|spiece\.model|tokenizer\.model|sentencepiece\.bpe\.model|chat_template\.jinja"
)
# Path in the folder to its kind; the first that fits.
_KINDS = [
    (re.compile(pattern), kind)
    for pattern, kind in (
        (r"config\.json", "configuration"),
        (r"generation_config\.json", "configuration"),
        (r"\w+\.py", "code"),
        (r"model\.safetensors|model-\d{5}-of-\d{5}\.safetensors", "weights"),
        (r"model\.safetensors\.index\.json", "weights index"),
        (_ADAPTER_FOLDER + re.escape(ADAPTER_WEIGHTS), "adapter"),
        (_ADAPTER_FOLDER + re.escape(ADAPTER_CONFIG), "adapter configuration"),
        (_TOKENIZER, "tokenizer"),
        (r"processor_config\.json", "processor"),
        (r"modules\.json|sentence_bert_config\.json|config_sentence_transformers\.json", "sentence-transformers"),
        (r"README\.md", "card"),
        (r"plots/[\w.-]+\.png", "plot"),
        (r"results\.json", "results"),
        (r"index/(?:catalogue\.parquet|item_embeddings\.safetensors|index\.json)", "index"),
        (r"LICENSE(?:\.\w+)?|NOTICE(?:\.\w+)?|CITATION\.cff", "licence"),
        (r"\.gitattributes", "git"),
    )
]
UNKNOWN = "unknown"


def kind_of(path: str) -> str:
    """The kind of a file from its path in the folder."""
    return next((kind for pattern, kind in _KINDS if pattern.fullmatch(path)), UNKNOWN)


def look_into(path: Path, kind: str) -> str:
    """What is inside a file of a known kind, in a few words.

    Raises:
        ValueError, OSError: it is not what its name says, or damaged.
    """
    return _LOOKS[kind](path)


_BITS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
         "I8": "int8", "U8": "uint8", "BOOL": "bool"}  # fmt: skip


def _look_at_weights(path: Path) -> str:
    header, _ = read_header(path)
    if not header:
        raise ValueError(f"{path} holds no tensors: save the model again")
    parameters = sum(_product(tensor["shape"]) for tensor in header.values())
    types = sorted({_BITS.get(tensor["dtype"], tensor["dtype"]) for tensor in header.values()})
    return f"{len(header)} tensors, {_millions(parameters)} parameters, {', '.join(types)}"


def _look_at_adapter(path: Path) -> str:
    from safetensors import safe_open

    about = _look_at_weights(path)
    with safe_open(path, framework="pt") as tensors:
        names = [name for name in tensors.keys() if ".lora_B." in name]
        if names and not any(bool(tensors.get_tensor(name).any()) for name in names):
            raise ValueError("all its lora_B are zero: it was never trained, and changes nothing")
    return f"adapter weights: {about}"


def _look_at_adapter_config(path: Path) -> str:
    settings = json_object(path)
    rank = f", rank {settings['r']}" if "r" in settings else ""
    return f"{settings.get('peft_type', 'adapter')}{rank}"


def _look_at_config(path: Path) -> str:
    config = json_object(path)
    adapters = list(config.get("adapters") or ())
    over = f", over {config.get('backbone_name_or_path')}: {', '.join(adapters)}" if adapters else ""
    return f"{config.get('model_type', 'no model type')}{over}"


def _look_at_index(path: Path) -> str:
    return f"where the tensors are: {len(shards(path))} files"


def _look_at_code(path: Path) -> str:
    source = path.read_text(encoding="utf-8")
    siblings(source)
    return f"code, {len(source.splitlines())} lines"


@functools.lru_cache(maxsize=256)
def siblings(source: str) -> tuple[str, ...]:
    """Modules beside a published one that it imports. The same few files are looked at again and again.

    Raises:
        ValueError: it is not Python, or imports what a stranger does not have, or what a flat folder cannot hold.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise ValueError(f"not Python: line {error.lineno}: {error.msg}") from error
    found: dict[str, None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            module = node.module or ""
            if node.level > 1 or not module.isidentifier():
                raise ValueError(f"line {node.lineno}: the Hub's folders are flat: write `from .sibling import name`")
            found[module] = None
        for package in _absolute_imports(node):
            if package in OWN_PACKAGES:
                raise ValueError(f"imports {package}, which only this project has")
    for node in tree.body:
        for package in _absolute_imports(node):
            if package not in STRANGERS_PACKAGES:
                raise ValueError(f"imports {package}, which a stranger may not have: import it inside a function")
    return tuple(found)


def _absolute_imports(node: ast.AST) -> list[str]:
    """Packages that a statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[0] for alias in node.names]
    return [(node.module or "").split(".")[0]] if isinstance(node, ast.ImportFrom) and not node.level else []


def _look_at_tokenizer(path: Path) -> str:
    if path.name == "tokenizer.json":
        vocabulary = (json_object(path).get("model") or {}).get("vocab") or ()
        return f"tokenizer, {len(vocabulary):,} tokens"
    if path.suffix == ".json":
        json_object(path)
    elif path.suffix != ".model":
        _text(path)
    return "tokenizer"


def _look_at_json(about: str) -> Callable[[Path], str]:
    def look(path: Path) -> str:
        read_json(path)
        return about

    return look


def _look_at_text(about: str) -> Callable[[Path], str]:
    def look(path: Path) -> str:
        return f"{about}, {len(_text(path).splitlines())} lines"

    return look


def _look_at_plot(path: Path) -> str:
    with path.open("rb") as stream:
        start = stream.read(24)
    if start[:8] != b"\x89PNG\r\n\x1a\n" or len(start) < 24:
        raise ValueError("not a PNG image")
    width, height = struct.unpack(">II", start[16:24])
    return f"plot {width}×{height}"


def _look_at_results(path: Path) -> str:
    rows = json_object(path).get("rows")
    if not isinstance(rows, list):
        raise ValueError("no results.json of `llmrec evaluate`: it has no rows")
    return f"results, {len(rows)} rows"


def _look_at_catalogue_index(path: Path) -> str:
    if path.suffix == ".safetensors":
        header, _ = read_header(path)
        return "item vectors: " + ", ".join(" × ".join(map(str, tensor["shape"])) for tensor in header.values())
    if path.suffix == ".parquet":
        import polars as pl

        try:
            items = pl.scan_parquet(path).select(pl.len()).collect().item()
        except pl.exceptions.PolarsError as error:
            raise ValueError(f"not a Parquet file: {error}") from error
        return f"catalogue, {items:,} items"
    json_object(path)
    return "what the item vectors were made with"


_LOOKS: dict[str, Callable[[Path], str]] = {
    "configuration": _look_at_config,
    "code": _look_at_code,
    "weights": lambda path: f"weights: {_look_at_weights(path)}",
    "weights index": _look_at_index,
    "adapter": _look_at_adapter,
    "adapter configuration": _look_at_adapter_config,
    "tokenizer": _look_at_tokenizer,
    "processor": _look_at_json("how texts are read"),
    "sentence-transformers": _look_at_json("for SentenceTransformer"),
    "card": _look_at_text("card"),
    "plot": _look_at_plot,
    "results": _look_at_results,
    "index": _look_at_catalogue_index,
    "licence": _look_at_text("text"),
    "git": _look_at_text("which files are large"),
}


def json_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object; a `ValueError` says why it does not."""
    try:
        value = read_json(path)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"holds a {type(value).__name__}, not an object")
    return value


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text ({error.reason} at byte {error.start})") from error


def _product(shape: list[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _millions(count: int) -> str:
    return f"{count / 1e6:,.2f}M" if count < 1e9 else f"{count / 1e9:,.2f}B"
