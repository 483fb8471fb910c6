"""From a saved model to a checked export, or to nothing."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

from llmrec.hub.formats import onnx_graph, openvino_ir, text_embeddings_inference
from llmrec.hub.formats.check import Check, ExportRefusedError, Reference, sample_texts
from llmrec.hub.formats.layout import LayoutTokenizer, describe_layout
from llmrec.version import __version__

FORMATS: dict[str, ModuleType] = {
    "text-embeddings-inference": text_embeddings_inference,
    "onnx": onnx_graph,
    "openvino": openvino_ir,
}
BOUND = 1e-3
OVERLAP = 0.99


def export_model(
    name_or_path: str | Path,
    output: str | Path,
    format: str,
    *,
    titles: Sequence[str] | None = None,
    source: str | None = None,
    bound: float = BOUND,
    overlap: float = OVERLAP,
    overwrite: bool = False,
    **kwargs: Any,
) -> Check:
    """Write a saved model for another server, and check it there.

    Args:
        name_or_path: folder or Hub id of a model in any form; adapters are merged.
        output: folder to write. It appears only once the check has passed.
        format: one of `FORMATS`.
        titles: titles to check with; built-in ones by default.
        source: what to call them in the report.
        bound: the largest difference of a vector that is let pass.
        overlap: the smallest share of equal titles among the ten best.
        overwrite: whether to replace an existing folder.
        **kwargs: as for `llmrec.hub.loading.load_model` (`revision`, `default_adapter`, `backbone`, …).

    Returns:
        What the check found, which stands in `export.json` too.

    Raises:
        ExportRefusedError: the server cannot run such a model, or the export is beyond the bound.
        FileExistsError: the folder exists and `overwrite` is false.
        ModuleNotFoundError: a package of the extra `export` is missing.
    """
    from llmrec.hub.export import adapters_of, merge_adapter, replace_folder
    from llmrec.hub.loading import load_model

    if format not in FORMATS:
        raise ValueError(f"format={format!r} is none of {', '.join(map(repr, FORMATS))}.")
    writer, folder = FORMATS[format], Path(output)
    if folder.exists() and not overwrite:
        raise FileExistsError(f"{folder} exists already: choose another folder, or pass --overwrite.")
    require(*writer.PACKAGES)
    model, processor = load_model(name_or_path, **kwargs)
    if hasattr(writer, "refuse"):
        writer.refuse(model.config)
    reference = Reference(model, processor, sample_texts(processor.config, titles, source))
    adapters = adapters_of(model)
    adapter = model.active_adapters()[0] if adapters else None
    if adapters:
        model = merge_adapter(model)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as beside:
        draft = Path(beside) / folder.name
        draft.mkdir()
        writer.write(model, processor, draft)
        found = writer.check(draft, reference)
        found.refuse_beyond(bound, overlap)
        tokenizer = "written by the format"
        if not (draft / "tokenizer.json").exists():
            tokenizer = _write_tokenizer(processor, reference, draft)
        config = model.config
        facts = {
            "format": format,
            # A path on this machine is nobody's business.
            "model": Path(name_or_path).name if Path(name_or_path).exists() else str(name_or_path),
            "adapter": adapter,
            "backbone": config.text_config.model_type,
            "embedding_dim": config.embedding_dim,
            "normalize": config.normalize,
            "scores": "dot products of vectors",
            "layout": describe_layout(processor),
            "tokenizer": tokenizer,
            "check": asdict(found),
            "bounds": {"largest_difference": bound, "top_10_overlap": overlap},
            "versions": _versions("llmrec", "torch", "transformers", *writer.PACKAGES),
        }
        text = json.dumps(facts, indent=2, ensure_ascii=False) + "\n"
        (draft / "export.json").write_text(text, encoding="utf-8")
        (draft / "README.md").write_text(_readme(facts, writer.USE), encoding="utf-8")
        replace_folder(draft, folder)
    return found


def require(*packages: str) -> None:
    """Raise `ModuleNotFoundError` that says what to install for a package that is missing."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        extra = "demo" if missing == ["sentence_transformers"] else "export"
        raise ModuleNotFoundError(
            f"This export is written and checked with {', '.join(packages)}, and {', '.join(missing)} is missing: "
            f"`pip install 'llmrec[{extra}]'`."
        )


def _write_tokenizer(processor: Any, reference: Reference, folder: Path) -> str:
    """A tokenizer with the layout in it where that gives our token ids, else the plain one; returns which it is."""
    try:
        layout = LayoutTokenizer(processor)
        sample = reference.sample
        wrong = ~layout.equal(sample.titles, reference.item_ids) & ~layout.too_long(sample.titles)
        if not wrong.any():
            layout.save(folder)
            histories = layout.equal([layout.join(titles) for titles in sample.histories], reference.user_ids)
            cut = int(layout.too_long(sample.titles).sum())
            return (
                "lays out titles by itself, and histories of one title a line: "
                f"{len(wrong) - cut} of {len(wrong)} titles and {int(histories.sum())} of {len(histories)} histories "
                f"get the model's ids; {cut} titles of more than max_title_tokens are not cut"
            )
        reason = f"tokenizer.json gives {int(wrong.sum())} of {len(wrong)} titles other ids with the layout in it"
    except ValueError as error:
        reason = str(error)
    processor.tokenizer.save_pretrained(folder)
    return f"plain, the layout is to be added as `layout` says: {reason}"


def _versions(*packages: str) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = __version__ if package == "llmrec" else version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def _readme(facts: dict[str, Any], use: str) -> str:
    found = facts["check"]
    return (
        f"# {facts['model']} for {facts['format']}\n\n"
        f"Vectors of {facts['embedding_dim']} numbers for titles and histories of titles; their dot products rank.\n\n"
        f"Checked against the model on {found['titles']} titles and {found['histories']} histories "
        f"({found['source']}): largest difference {found['largest_difference']:.1e}, top-10 overlap "
        f"{found['top_10_overlap']:.4f}. All of it, and the layout of texts, stands in `export.json`.\n\n{use}"
    )


__all__ = ["BOUND", "FORMATS", "OVERLAP", "Check", "ExportRefusedError", "export_model", "require"]
