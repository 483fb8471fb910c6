"""The card of a published model: a template filled in from the run, so that no figure is written by hand."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from jinja2 import Environment, StrictUndefined, TemplateError

from llmrec.evaluation.report import PLOTS_FOLDER
from llmrec.hub.card_facts import CardError, read_model, read_run
from llmrec.hub.card_metadata import backbone_licence, card_data, check_card
from llmrec.hub.card_tables import choose_plots, copy_plots
from llmrec.hub.card_texts import UNKNOWN_TERMS, cost_text, language_text, licence_text, model_context, run_context
from llmrec.version import __version__

CARD_NAME = "README.md"
TEMPLATE = Path(__file__).with_name("model_card_template.md")
# Made up, like the demo's: real catalogues belong to others.
EXAMPLE_HISTORY = ["Espresso Beans", "Grinder"]
EXAMPLE_CANDIDATES = ["Milk Jug", "Guitar"]

__all__ = ["CardError", "check_card", "write_model_card"]


def write_model_card(
    folder: str | os.PathLike[str],
    *,
    repo_id: str,
    run: str | os.PathLike[str] | None = None,
    results_of: str | None = None,
    output: str | os.PathLike[str] | None = None,
    base_model: str | None = None,
    license: str | None = None,
    datasets: Sequence[str] = (),
    tags: Sequence[str] = (),
    language: Sequence[str] = (),
    data_note: str | None = None,
    hardware: str | None = None,
    watts: float | None = None,
    template: str | os.PathLike[str] | None = None,
) -> Path:
    """Write the card of a model folder, and beside it the plots that it shows.

    Args:
        folder: the model, with config.json, weights and code.
        repo_id: the repository it is for; stands in the examples.
        run: the run that made it, with results.json; without one the card says that no results are known.
        results_of: of several adapters, the one that the run trained.
        output: the card's file, by default README.md in `folder`; its plots go into `plots/` beside it, or, for a card
            of another name, into `plots/<name>/`.
        base_model: Hub id of the backbone, where config.json does not tell it.
        license: identifier of the licence of the weights; by default that of a well-known backbone.
        datasets: Hub ids of the data sets it was trained on.
        tags: further tags.
        language: codes of the languages of the titles, such as "en".
        data_note: where the data comes from and under which terms, in whole sentences.
        hardware: what the run used, in words.
        watts: power that the machine draws, for an estimate of the energy.
        template: another template, in Jinja2.

    Returns:
        The path of the card.

    Raises:
        CardError: there is no such model, the run is unfinished or of another schema, the template asks for something
            that is not known, or the metadata is invalid. Nothing is written then.
    """
    output = Path(output) if output is not None else Path(folder) / CARD_NAME
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise CardError(f"{repo_id!r} is no name of a repository ({error}): give one such as org/name") from error
    model = read_model(folder)
    facts = None if run is None else read_run(run)
    backbone = base_model or model.backbone
    licence = license or backbone_licence(backbone)
    metadata = card_data(
        repo_id, model, facts, base_model=backbone, license=licence, datasets=datasets, tags=tags, language=language
    )
    plots = [] if facts is None else choose_plots(facts)
    # Several cards of one folder must not share their plots.
    subfolder = PLOTS_FOLDER if output.name == CARD_NAME else f"{PLOTS_FOLDER}/{output.stem}"
    context: dict[str, Any] = {
        "title": repo_id.split("/")[-1],
        "repo_id": repo_id,
        "history": json.dumps(EXAMPLE_HISTORY, ensure_ascii=False),
        "candidates": json.dumps(EXAMPLE_CANDIDATES, ensure_ascii=False),
        "plots": [(f"{subfolder}/{file.name}", caption) for file, caption in plots],
        "run": facts is not None,
        "trained": facts is not None and bool(facts.recipe),
        "llmrec_version": __version__,
        "language_text": language_text(language),
        "data_licence_text": data_note or UNKNOWN_TERMS,
        "licence_text": licence_text(license, licence, backbone),
        "cost_text": cost_text(facts, hardware, watts),
        **model_context(model, backbone),
        **({} if facts is None else run_context(facts, model, results_of)),
    }
    text = _render(Path(template) if template is not None else TEMPLATE, context)
    card = ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{text}")
    output.parent.mkdir(parents=True, exist_ok=True)
    draft = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        card.save(draft)
        check_card(draft)
        copy_plots(plots, output.parent / subfolder)
        os.replace(draft, output)
    except CardError as error:
        raise CardError(str(error).replace(str(draft), str(output))) from error
    finally:
        draft.unlink(missing_ok=True)
    return output


def _render(template: Path, context: dict[str, Any]) -> str:
    # Strict: a name that a template misspells, or a fact that is missing, must not vanish from the card without a word.
    environment = Environment(
        undefined=StrictUndefined,
        finalize=_refuse_missing,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    try:
        text = environment.from_string(template.read_text(encoding="utf-8")).render(context)
    except FileNotFoundError as error:
        raise CardError(f"{template}: no such template") from error
    except (TemplateError, _MissingFactError) as error:
        raise CardError(f"{template}: cannot be filled in: {error}") from error
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


class _MissingFactError(ValueError):
    """A template shows a value that is not known."""


def _refuse_missing(value: Any) -> Any:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        raise _MissingFactError(f"it shows a value that is {value}")
    return value
