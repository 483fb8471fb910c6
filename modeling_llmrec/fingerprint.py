"""Weight files: where they are, whether they are whole, and a print by which to know them again.

Nothing here reads tensors into memory: the header of a safetensors file says what stands where.
"""

import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any

from transformers.utils import cached_file, extract_commit_hash, logging

logger = logging.get_logger(__name__)

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SAMPLES, SAMPLE_BYTES = 16, 16


class DamagedFileError(OSError):
    """A file of a checkpoint is not whole."""


def commit_of(name_or_path: str | os.PathLike, **hub: Any) -> str | None:
    """The commit of a repository that would be read; None for a folder.

    Args:
        name_or_path: folder or Hub id.
        hub: arguments of the Hub's client (`revision`, `token`, …).

    Raises:
        OSError: where there is no config.json to be had.
    """
    if os.path.isdir(name_or_path):
        return None
    # In the Hub's cache a file lies in a folder that is named by its commit.
    return extract_commit_hash(cached_file(name_or_path, "config.json", **hub), None)


def weight_files(name_or_path: str | os.PathLike, **hub: Any) -> list[Path]:
    """The safetensors files of a model in a folder or on the Hub, in the order of their names; none if it has none.

    Raises:
        DamagedFileError: the index of a sharded model is not an index.
        OSError: a file that the index names is missing, or the Hub is out of reach.
    """
    single = cached_file(name_or_path, WEIGHTS, _raise_exceptions_for_missing_entries=False, **hub)
    if single is not None:
        return [Path(single)]
    index = cached_file(name_or_path, INDEX, _raise_exceptions_for_missing_entries=False, **hub)
    if index is None:
        return []
    return [Path(cached_file(name_or_path, name, **hub)) for name in shards(Path(index))]


def shards(index: Path) -> list[str]:
    """Names of the files that an index of a sharded model lists.

    Raises:
        DamagedFileError: it is not JSON, or lists none.
    """
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DamagedFileError(f"{index} is not the index of a sharded model ({error!r}): fetch it again.") from error
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise DamagedFileError(f"{index} names {name!r}, which is not a safetensors file beside it.")
    return names


def read_header(file: Path) -> tuple[dict[str, Any], int]:
    """What a safetensors file says it holds: `{tensor: {dtype, shape, data_offsets}}`, and where the tensors start.

    Raises:
        DamagedFileError: the file is cut short, or is not a safetensors file.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length + 8 > size:
            raise DamagedFileError(f"{file} is no whole safetensors file ({size} bytes): fetch it again.")
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            end = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
        except (ValueError, KeyError, AttributeError, TypeError, IndexError) as error:
            raise DamagedFileError(
                f"{file} has no header of a safetensors file ({error!r}): fetch it again."
            ) from error
    if size != length + 8 + end:
        raise DamagedFileError(
            f"{file} is damaged: its header promises {length + 8 + end} bytes, and it has {size}. Fetch it again."
        )
    return header, length + 8


def fingerprint(files: list[Path]) -> str:
    """sha256 over names, types and shapes of all tensors and some evenly spread bytes of each.

    Costs as little for 13 GB as for 90 MB. It tells a model from one that was trained further, whose numbers differ
    everywhere, and does not depend on how tensors are spread over files. It does not see a single flipped bit.

    Args:
        files: the safetensors files of one model.

    Returns:
        64 hexadecimal digits.

    Raises:
        DamagedFileError: a file is cut short.
    """
    tensors = {}
    for file in files:
        header, start = read_header(file)
        for name, entry in header.items():
            tensors[name] = (entry["dtype"], entry["shape"], file, start + entry["data_offsets"][0],
                             entry["data_offsets"][1] - entry["data_offsets"][0])  # fmt: skip
    digest = hashlib.sha256()
    streams = {file: file.open("rb") for file in files}
    try:
        for name, (dtype, shape, file, start, size) in sorted(tensors.items()):
            digest.update(json.dumps([name, dtype, shape]).encode())
            for place in _places(size):
                streams[file].seek(start + place)
                digest.update(streams[file].read(min(SAMPLE_BYTES, size - place)))
    finally:
        for stream in streams.values():
            stream.close()
    return digest.hexdigest()


def _places(size: int) -> list[int]:
    """Where samples of a tensor of so many bytes start: its beginning, its end, and evenly between."""
    if size <= SAMPLES * SAMPLE_BYTES:
        return list(range(0, size, SAMPLE_BYTES))
    return [sample * (size - SAMPLE_BYTES) // (SAMPLES - 1) for sample in range(SAMPLES)]


def check_fingerprint(expected: str, name_or_path: str | os.PathLike, hub: dict[str, Any], *, refuse: bool) -> None:
    """Compare the weights of a backbone with the print of those that an adapter was trained over.

    Args:
        expected: `config.backbone_fingerprint`.
        name_or_path: folder or Hub id of the backbone.
        hub: arguments of the Hub's client, its `revision` among them.
        refuse: raise an error; warn otherwise.

    Raises:
        ValueError: they are others.
        OSError: they cannot be read.
    """
    files = weight_files(name_or_path, **hub)
    if not files:
        return  # whoever loads them says what is missing
    found = fingerprint(files)
    if found == expected:
        return
    revision = "" if os.path.isdir(name_or_path) else f" ({hub.get('revision') or 'its newest revision'})"
    message = (
        f"The adapters were trained over another backbone than {str(name_or_path)!r}{revision} is now: its weights "
        f"have the fingerprint {found[:16]}…, config.json says {expected[:16]}…. Over other weights the adapters mean "
        "nothing."
    )
    if refuse:
        raise ValueError(
            f"{message} Pin the commit that they were trained over as backbone_revision, name the right backbone with "
            "backbone=…, or pass check_backbone=False to go on all the same."
        )
    logger.warning(f"{message} Going on, as check_backbone=False says.")


def refuse_damaged_files(name_or_path: str | os.PathLike, hub: dict[str, Any], error: Exception) -> None:
    """Name the weight file that is damaged, if one is; return otherwise.

    Raises:
        DamagedFileError: from `error`.
    """
    try:
        for file in weight_files(name_or_path, **hub):
            read_header(file)
    except DamagedFileError as damage:
        raise damage from error
