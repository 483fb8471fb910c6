"""A catalogue with its vectors beside a model, so that whoever loads the model need not encode the catalogue.

`index/` of a model's folder or repository:

    catalogue.parquet               ids, titles and domains, one row an item
    item_embeddings.safetensors     "item_embeds" (items, embedding_dim), in the order of the rows
    index.json                      whose vectors these are, and hashes of both files
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from llmrec.data.catalogue import Catalogue
from llmrec.data.folders import new_folder
from llmrec.hub.card_facts import hub_name
from llmrec.version import __version__

INDEX_FOLDER = "index"
INDEX_FILE, CATALOGUE_FILE, VECTORS_FILE = "index.json", "catalogue.parquet", "item_embeddings.safetensors"
FORMAT = 1
TENSOR = "item_embeds"
DTYPES = {"float32": torch.float32, "float16": torch.float16}
HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "force_download")

# Fields of the configuration that change the vector of an item; those about histories do not.
VECTOR_FIELDS = (
    "pooling", "projection_dim", "normalize", "item_separator", "max_title_tokens", "prefix_tokens", "suffix_tokens",
    "encoder_only",
)  # fmt: skip
SAMPLED = 1 << 20
"""Numbers of each tensor that the fingerprint reads, evenly spread; smaller tensors are read whole."""
PROBES = 8
"""Items that are encoded again where the fingerprint is another one."""
TOLERANCE, HALF_TOLERANCE = 1e-4, 2e-2
"""Largest distance of such a vector from the stored one, as a share of its length; the second where the weights or the
stored vectors are in half precision."""


class CatalogueIndexError(ValueError):
    """There is no index, it is damaged, or its vectors are those of another model."""


class CatalogueIndex(NamedTuple):
    """A catalogue and its vectors, float32 (items, embedding_dim), with the contents of index.json."""

    catalogue: Catalogue
    item_embeds: torch.Tensor
    about: dict[str, Any]


def save_index(
    folder: str | os.PathLike[str], recommender: Any, *, name: str | None = None, dtype: str = "float32"
) -> Path:
    """Write a recommender's catalogue and vectors into `folder/index/`; it appears whole or not at all.

    Args:
        folder: of the model; an index that is there is replaced.
        recommender: a `Recommender`, whose vectors are written as they are.
        name: what the model is called when its index is refused for another one; by default its Hub id.
        dtype: "float32", which recommends as if the catalogue were encoded afresh, or "float16" for half the size: 6 in
            10,000 of the ten best are then others (MiniLM, 4,385 items, 3,000 users).

    Returns:
        The folder of the index.

    Raises:
        CatalogueIndexError: an unknown `dtype`, or vectors that are not finite, also once they are in half precision.
    """
    if dtype not in DTYPES:
        raise CatalogueIndexError(f"dtype {dtype!r} is none of {', '.join(DTYPES)}")
    target = Path(folder) / INDEX_FOLDER
    vectors = recommender.item_embeds.to(DTYPES[dtype]).contiguous()
    if not torch.isfinite(vectors).all():
        raise CatalogueIndexError(f"{target}: the vectors hold numbers that are not finite in {dtype}")
    model = recommender.model
    with new_folder(target) as draft:
        recommender.catalogue.save(draft / CATALOGUE_FILE)
        save_file({TENSOR: vectors}, draft / VECTORS_FILE, metadata={"format": "pt"})
        about = {
            "format": FORMAT,
            "model": name or hub_name(getattr(model, "name_or_path", None)) or "a model without a name",
            "fingerprint": fingerprint(model),
            "weights": str(_dtype(model)).removeprefix("torch."),
            "dtype": dtype,
            "items": len(recommender.catalogue),
            "embedding_dim": int(vectors.shape[1]),
            "sha256": {file: _sha256(draft / file) for file in (CATALOGUE_FILE, VECTORS_FILE)},
            "llmrec": __version__,
        }
        (draft / INDEX_FILE).write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return target


def load_index(name_or_path: str | os.PathLike[str], revision: str | None = None, **hub: Any) -> CatalogueIndex:
    """Read the index of a model, from its folder, the Hub, or the Hub's cache where there is no network.

    Args:
        name_or_path: folder or Hub id of the model.
        revision: branch, tag or commit on the Hub.
        **hub: further arguments of the Hub's client (`token`, `cache_dir`, `local_files_only`, …).

    Raises:
        CatalogueIndexError: there is none, or it is damaged. The message names the file and what to do.
    """
    hub = {key: value for key, value in {"revision": revision, **hub}.items() if value is not None}
    path = _find(name_or_path, INDEX_FILE, hub)
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        sizes = int(about["items"]), int(about["embedding_dim"])
        hashes = {file: str(about["sha256"][file]) for file in (CATALOGUE_FILE, VECTORS_FILE)}
        found = about["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise CatalogueIndexError(f"{path}: not the description of an index ({error!r}): save it again") from error
    if found != FORMAT:
        raise CatalogueIndexError(f"{path}: format {found!r}, and this version of llmrec reads {FORMAT}: save it again")
    files = {file: _find(name_or_path, file, hub) for file in hashes}
    for file, place in files.items():
        if _sha256(place) != hashes[file]:
            raise CatalogueIndexError(
                f"{place}: changed or cut short since the index was saved: save or fetch it again"
            )
    catalogue = Catalogue.load(files[CATALOGUE_FILE])
    try:
        vectors = load_file(files[VECTORS_FILE])[TENSOR].float()
    except (SafetensorError, KeyError) as error:
        raise CatalogueIndexError(f"{files[VECTORS_FILE]}: not the vectors of an index ({error})") from error
    if (len(catalogue), *vectors.shape) != (sizes[0], *sizes):
        raise CatalogueIndexError(
            f"{path}: speaks of {sizes[0]:,} items × {sizes[1]}, but there are {len(catalogue):,} items and vectors of "
            f"shape {tuple(vectors.shape)}: save the index again"
        )
    return CatalogueIndex(catalogue, vectors, about)


def check_index(index: CatalogueIndex, model: Any, processor: Any, name: str) -> None:
    """Make sure that the vectors of an index are this model's.

    Weights that are the same to the bit are known by their fingerprint. The same model in another form (merged, in
    half precision, on another machine) has another one, so then some items are encoded again and compared.

    Args:
        index: what was loaded.
        model, processor: what shall use it.
        name: what the model is called.

    Raises:
        CatalogueIndexError: they are another model's; the message names both.
    """
    if index.about.get("fingerprint") == fingerprint(model):
        return
    of, width = index.about.get("model"), model.config.embedding_dim
    advice = "save the index again with this model, or pass the catalogue to have it encoded"
    if index.item_embeds.shape[1] != width:
        raise CatalogueIndexError(
            f"the index is of {of}, with vectors of {index.item_embeds.shape[1]} numbers; {name} has {width}: {advice}"
        )
    from llmrec.data.title_tokens import TitleTokens
    from llmrec.retrieval.encoding import encode_titles

    rows = np.unique(np.linspace(0, len(index.catalogue) - 1, PROBES).astype(np.int64))
    titles = TitleTokens.from_titles(processor, [index.catalogue.titles[row] for row in rows])
    afresh, stored = encode_titles(model, processor, titles, progress=False), index.item_embeds[rows]
    distance = float(((afresh - stored).norm(dim=1) / stored.norm(dim=1)).max())
    half = _dtype(model) != torch.float32 or {index.about.get("weights"), index.about.get("dtype")} != {"float32"}
    allowed = HALF_TOLERANCE if half else TOLERANCE
    if not distance <= allowed:
        raise CatalogueIndexError(
            f"the index is of {of} and does not belong to {name}: encoded again, vectors differ by up to "
            f"{distance:.1e} of their length, allowed are {allowed:.0e}: {advice}"
        )


def fingerprint(model: Any) -> str:
    """sha256 of what decides the vectors of items: fields of the configuration, active adapters, weights.

    Of large tensors it reads a million numbers, evenly spread: it recognises another training, not a flipped bit.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    fields = {name: getattr(model.config, name, None) for name in VECTOR_FIELDS}
    active = model.active_adapters() if getattr(model, "_hf_peft_config_loaded", False) else []
    digest.update(json.dumps([fields, list(active)], sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().reshape(-1)
        part = flat[:: max(1, math.ceil(len(flat) / SAMPLED))].contiguous().cpu()
        digest.update(part.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _find(name_or_path: str | os.PathLike[str], file: str, hub: dict[str, Any]) -> Path:
    """Where a file of the index lies on this machine, fetched first if need be."""
    folder = Path(name_or_path)
    advice = "pass a catalogue to have it encoded (--catalogue), or publish one beside the model"
    if folder.is_dir():
        path = folder / INDEX_FOLDER / file
        if not path.is_file():
            raise CatalogueIndexError(f"{path}: no such file, so the model has no index: {advice}")
        return path
    name = str(name_or_path)
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        raise CatalogueIndexError(f"{name}: no such folder, and no name of a repository")
    try:
        return Path(hf_hub_download(name, f"{INDEX_FOLDER}/{file}", **hub))
    except LocalEntryNotFoundError as error:
        raise CatalogueIndexError(
            f"{INDEX_FOLDER}/{file} of {name} is not in the Hugging Face cache and the Hub cannot be reached: load it "
            f"once with a network, or {advice}"
        ) from error
    except EntryNotFoundError as error:
        at = f" at revision {hub['revision']}" if "revision" in hub else ""
        raise CatalogueIndexError(f"{name}{at} has no {INDEX_FOLDER}/{file}: {advice}") from error


def _dtype(model: Any) -> torch.dtype:
    """In what the backbone computes."""
    return next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
