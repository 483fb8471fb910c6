"""Optimisers that need a library which may not be installed."""

from __future__ import annotations

import importlib.util

_BITSANDBYTES = ("adamw_8bit", "paged_", "lion", "ademamix", "rmsprop_")
_TORCHAO = ("adamw_torch_4bit", "adamw_torch_8bit")


def library_of(optim: str) -> str | None:
    """The library behind one of transformers' names for optimisers, None for those of torch and transformers."""
    if optim.startswith(_TORCHAO):
        return "torchao"
    return "bitsandbytes" if optim.startswith(_BITSANDBYTES) or "_bnb" in optim else None


def check_optimizer(optim: str) -> None:
    """Say that a library is missing before data are prepared and a backbone is loaded.

    Raises:
        ValueError: naming what to install.
    """
    library = library_of(optim)
    if library is not None and importlib.util.find_spec(library) is None:
        raise ValueError(f"optim={optim!r} needs {library}: `pip install {library}`, or leave optim out")
