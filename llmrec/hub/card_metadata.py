"""The front matter of a model card, which the Hub reads, and the check of a finished card."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils import validate_repo_id

from llmrec.evaluation.table import short_name
from llmrec.hub.card_facts import CardError, ModelFacts, RunFacts

PIPELINE_TAG = "sentence-similarity"
"""The Hub knows no task "recommendation"; this is the one in which vectors of two texts are compared. With
"feature-extraction" its page would offer transformers' pipeline of that name, which lays texts out otherwise."""

TASK_NAME = "Sequential recommendation"
LIBRARY = "transformers"
TAGS = ("recommendation", "sequential-recommendation", "llm-rec", "llmrec", "custom_code")
METRICS = ("ndcg@10", "recall@1", "recall@10", "mrr@10")

# Licences that the Hub states for backbones; longer names first where one is the beginning of another.
BACKBONE_LICENCES = {
    "sentence-transformers/all-MiniLM-": "apache-2.0",
    "google-bert/bert-": "apache-2.0",
    "answerdotai/ModernBERT-": "apache-2.0",
    "google/flan-t5-": "apache-2.0",
    "facebook/bart-": "apache-2.0",
}
RELATIONS = ("adapter", "finetune", "merge", "quantized")


def backbone_licence(backbone: str | None) -> str | None:
    """The licence of a well-known backbone; None where it is not known here."""
    if backbone is None:
        return None
    return next((licence for start, licence in BACKBONE_LICENCES.items() if backbone.startswith(start)), None)


def card_data(
    repo_id: str,
    model: ModelFacts,
    run: RunFacts | None,
    *,
    base_model: str | None,
    license: str | None,
    datasets: Sequence[str] = (),
    tags: Sequence[str] = (),
    language: Sequence[str] = (),
) -> ModelCardData:
    """The metadata of a card.

    Args:
        repo_id: the repository that the card is for.
        model, run: what is known of them.
        base_model: Hub id of the backbone.
        license: identifier of the licence; left out where it is None.
        datasets: Hub ids of the data sets it was trained on.
        tags: further tags.
        language: codes of the titles' languages.
    """
    relation = "adapter" if model.form == "adapter" else "finetune"
    kinds = [*(("peft", "lora") if model.form == "adapter" else ())]
    kinds += ["sentence-transformers"] if model.sentence_transformers else []
    results = [] if run is None else eval_results(run, datasets)
    return ModelCardData(
        language=list(language) or None,
        license=license,
        library_name=LIBRARY,
        pipeline_tag=PIPELINE_TAG,
        tags=[*TAGS, *kinds, *tags],
        base_model=base_model,
        base_model_relation=relation if base_model else None,
        datasets=list(datasets) or None,
        metrics=list(METRICS) if results else None,
        model_name=repo_id.split("/")[-1] if results else None,
        eval_results=results or None,
    )


def eval_results(run: RunFacts, datasets: Sequence[str] = ()) -> list[EvalResult]:
    """The results of the model for the `model-index`, overall and of each domain.

    Figures of two protocols must never be compared, and the Hub groups by the configuration of a data set: so the
    protocol stands there. The content hash of the data is its revision.
    """
    data, protocol = run.results["data"], run.results["protocol"]
    name = str(data.get("name") or "unnamed data")
    groups = [("overall", "users", ""), *((by, of, f", {of}") for by, of, _ in run.groups if by == "domain")]
    found = []
    for one in run.protocols:
        about = protocol["protocols"].get(one, {}).get("description")
        for group_by, group, label in groups if len(groups) > 2 else groups[:1]:
            for metric in METRICS:
                row = run.row(run.model_system, one, metric, (group_by, group))
                if row is None:
                    continue
                found.append(
                    EvalResult(
                        task_type=PIPELINE_TAG,
                        task_name=TASK_NAME,
                        dataset_type=datasets[0] if datasets else _identifier(name),
                        dataset_name=f"{name} ({one})",
                        dataset_config=one,
                        dataset_split=str(protocol["split"]),
                        dataset_revision=data.get("hash"),
                        dataset_args={"candidates": about} if about else None,
                        metric_type=metric,
                        metric_name=f"{short_name(metric)}{label}",
                        metric_value=round(float(row["value"]), 6),
                    )
                )
    return found


def check_card(path: str | Path, *, ask_hub: bool = False) -> ModelCard:
    """Check the metadata of a model card with huggingface_hub's own reader, and what that lets pass.

    Args:
        path: the card, a README.md with front matter.
        ask_hub: also let the Hub's validator judge it (`$HF_ENDPOINT`).

    Returns:
        The card.

    Raises:
        CardError: no such file, no front matter, or metadata that the Hub would refuse or misread. It names the
            file, the field and what to do.
    """
    path = Path(path)
    if not path.is_file():
        raise CardError(f"{path}: no such file; write it with `llmrec card`")
    block = REGEX_YAML_BLOCK.search(path.read_text(encoding="utf-8"))
    if block is None:
        raise CardError(f"{path}: no metadata; a card begins with YAML between two lines ---")
    try:
        found = yaml.safe_load(block[2])
        problem = _problem_of_lists(found) or _problem_of_names(found)
        # Only then the reader, which takes the types of lists for granted.
        card = ModelCard("---\n---\n") if problem else ModelCard.load(path)
        problem = problem or _problem_of_results(card)
    except (ValueError, AttributeError, yaml.YAMLError) as error:
        raise CardError(f"{path}: the metadata between the two lines --- cannot be read: {_flat(error)}") from error
    if problem:
        raise CardError(f"{path}: {problem}")
    if ask_hub:
        try:
            card.validate()
        except ValueError as error:
            raise CardError(f"{path}: the Hub refuses its metadata: {_flat(error)}") from error
    return card


def _problem_of_lists(found: Any) -> str | None:
    if not isinstance(found, dict):
        return f"the metadata is a {type(found).__name__}, not a mapping of fields"
    for name in ("tags", "metrics", "datasets", "language"):
        values = found.get(name)
        values = [values] if isinstance(values, str) else values
        if values is not None and not (isinstance(values, list) and all(isinstance(one, str) for one in values)):
            return f"{name} is {values!r}: it must be a list of texts; quote what YAML takes for a number, yes or no"
    languages = found.get("language") or []
    for code in [languages] if isinstance(languages, str) else languages:
        if not re.fullmatch(r"[a-z]{2,3}(-\w+)*|multilingual|code", code):
            return f"language {code!r} is no code of ISO 639, such as en"
    return None


def _problem_of_names(found: dict[str, Any]) -> str | None:
    licence = found.get("license")
    if licence is not None and not (isinstance(licence, str) and re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", licence)):
        return f"license {licence!r} is no identifier such as apache-2.0, cc-by-nc-4.0 or other"
    for name in ("base_model", "datasets"):
        values = found.get(name) or []
        for repo in [values] if isinstance(values, str) else values:
            try:
                validate_repo_id(repo)
            except HFValidationError as error:
                return f"{name} {repo!r} is no repository of the Hub ({_flat(error)})"
    if found.get("base_model_relation") not in (None, *RELATIONS):
        return f"base_model_relation {found['base_model_relation']!r} is none of {', '.join(RELATIONS)}"
    for name in ("library_name", "pipeline_tag"):
        if not isinstance(found.get(name), str) or not re.fullmatch(r"[a-z0-9-]+", found[name]):
            return f"{name} is {found.get(name)!r}: a card of this project names {LIBRARY} and {PIPELINE_TAG}"
    return None


def _problem_of_results(card: ModelCard) -> str | None:
    for result in card.data.get("eval_results") or []:
        value = result.metric_value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return f"model-index: {result.metric_name or result.metric_type} is {value!r}, not a finite number"
    return None


def _identifier(name: str) -> str:
    """A name as the Hub writes those of data sets."""
    return re.sub(r"[^a-z0-9_.-]+", "-", name.lower()).strip("-.") or "unnamed"


def _flat(error: Exception) -> str:
    return " ".join(str(error).split())
