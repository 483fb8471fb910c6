"""Exports of a trained model for other servers, each checked against the model itself."""

from llmrec.hub.formats.check import Check, ExportRefusedError
from llmrec.hub.formats.exporting import FORMATS, export_model

__all__ = ["FORMATS", "Check", "ExportRefusedError", "export_model"]
