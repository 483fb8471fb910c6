"""The workshop around `modeling_llmrec`: data, training, evaluation, retrieval, export."""

from llmrec.version import __version__

__all__ = ["__version__"]
