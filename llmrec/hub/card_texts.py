"""The sentences and lists of facts of a model card: everything in it that is no table of results."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmrec.data.prepared import CARD_FILE
from llmrec.evaluation.results import RESULTS_FILE
from llmrec.evaluation.runner import POPULARITY, TUNED, UNTUNED
from llmrec.evaluation.table import interval_text, percent
from llmrec.hub.card_facts import CardError, ModelFacts, RunFacts, without_folders
from llmrec.hub.card_tables import differences, escape, group_table, listed, overall_table, recipe_table

UNKNOWN_TERMS = (
    "The terms of the data it was trained on are not stated here; data of shops is often for research only. Ask before "
    "you use the model commercially."
)


def model_context(model: ModelFacts, backbone: str | None) -> dict[str, Any]:
    """What the template needs of a model; `backbone` is its Hub id."""
    config, text = model.config, model.config.get("text_config") or {}
    link = f"[{backbone}](https://huggingface.co/{backbone})" if backbone else ""
    size = _size(model.weight_bytes) if model.weight_bytes else "not in this folder"
    revision = config.get("backbone_revision")
    if model.form == "adapter":
        named = (
            f"{'the adapter' if len(model.adapters) == 1 else 'adapters'} {listed(f'`{a}`' for a in model.adapters)}"
        )
        form_text = (
            f"Only {named} ({size}): the backbone{f', {link},' if link else ''} stays in its own repository and is "
            "loaded from there."
        )
    else:
        form_text = f"All weights ({size}), with what training added to the backbone merged in."
    vector = config.get("projection_dim") or text.get("hidden_size") or text.get("d_model")
    fingerprint, order = config.get("backbone_fingerprint"), str(config.get("item_order", "oldest_first"))
    separator = str(config.get("item_separator", "; "))
    facts = [
        ("backbone", link or "not named: it came from a local folder"),
        ("its revision", f"`{revision}`" if revision else "not pinned"),
        ("its fingerprint", f"`{fingerprint}`" if fingerprint else ""),
        ("type", escape(str(text.get("model_type", "not stated")))),
        ("vectors", f"{vector} numbers{', of length 1' if config.get('normalize', True) else ''}" if vector else ""),
        ("pooling", escape(str(config.get("pooling", "mean")))),
        (
            "title",
            f"at most {config.get('max_title_tokens', 40)} tokens, with {escape(json.dumps(separator))} after it",
        ),
        ("history", f"the newest {config.get('max_history_items', 10)} items, {order.replace('_', ' ')}"),
    ]
    return {
        "backbone": backbone,
        "backbone_link": link,
        "form": model.form,
        "form_text": form_text,
        "adapters": model.adapters,
        "adapters_text": listed(f"`{name}`" for name in model.adapters),
        "needed": listed(f"`{name}`" for name in ("torch", "transformers", *(["peft"] if model.adapters else []))),
        "default_adapter": model.default_adapter,
        "other_adapter": next((name for name in model.adapters if name != model.default_adapter), ""),
        "sentence_transformers": model.sentence_transformers,
        "indexed_items": f"{model.indexed_items:,}" if model.indexed_items else "",
        "model_facts": [(name, value) for name, value in facts if value],
        "title_tokens": config.get("max_title_tokens", 40),
        "history_items": config.get("max_history_items", 10),
    }


def run_context(run: RunFacts, model: ModelFacts, results_of: str | None) -> dict[str, Any]:
    """What the template needs of a run, which trained the adapter `results_of` of the model.

    Raises:
        CardError: the results lack something that the card tells.
    """
    try:
        return _run_context(run, model, results_of)
    except (KeyError, TypeError) as error:
        raise CardError(
            f"{run.folder / RESULTS_FILE}: not as `llmrec evaluate` writes it ({error!r}): evaluate the model again"
        ) from error


def _run_context(run: RunFacts, model: ModelFacts, results_of: str | None) -> dict[str, Any]:
    results = run.results
    data, protocol = results["data"], results["protocol"]
    users, available = protocol["users"], protocol["users_in_split"]
    sample = "all" if users == available else f"a sample of {users:,} of the {available:,}"
    intervals = protocol["intervals"]
    domains = [escape(name) for name in data["domains"]]
    blocks = []
    for name in run.protocols:
        block = protocol["protocols"].get(name, {})
        described = str(block.get("description", "not stated"))
        seed = block.get("seed")
        blocks.append(
            {
                "name": name,
                "candidates": described if seed is None else f"{described}; seed {seed}",
                "lead": ", ".join(differences(run, name)),
                "small": "; ".join(
                    f"`{small['domain']}` is small: its users were ranked against all negatives there are, "
                    f"{small['fewest_negatives']:,} at least"
                    for small in block.get("small_domains", [])
                ),
                "table": group_table(run, name),
            }
        )
    prepared = _prepared_card(run)
    return {
        "data_name": escape(str(data.get("name") or "unnamed data")),
        "domains_text": listed(domains) if len(domains) < 8 else f"{len(domains)} domains",
        "items": f"{data['items']:,}",
        "headline": _headline(run),
        "users_text": f"Ranked for {sample} users of the {protocol['split']} split."
        + (f" {_adapter_text(results_of)}" if len(model.adapters) > 1 else ""),
        "rank_text": "Candidates with the same score count half: a target's rank is its expected one under ties.",
        "systems_text": _systems_text(run),
        "interval_text": f"{escape(intervals['method'])}, {intervals['resamples']:,} resamples",
        "overall_table": overall_table(run),
        "protocols": blocks,
        "notes": [escape(note) for note in protocol["notes"]],
        "data_facts": _data_facts(run, prepared),
        "recipe_table": recipe_table(run) if run.recipe else "",
        "command": shlex.join(without_folders(results["command"])),
        "versions": ", ".join(f"{name} {one}" for name, one in results["versions"].items() if one is not None),
        "leakage": _leakage(data, prepared),
    }


def _adapter_text(results_of: str | None) -> str:
    trained = f"the adapter `{results_of}`" if results_of else "one of the adapters"
    return f"**The figures are those of {trained}, as it was trained alone; the other adapters are not measured here.**"


def _systems_text(run: RunFacts) -> str:
    about = {
        POPULARITY: f"*{POPULARITY}* ranks by the number of training interactions",
        UNTUNED: f"*{UNTUNED}* is the backbone as it was downloaded",
        TUNED: f"*{TUNED}*, in plots, is this model",
    }
    known = [about[name] for name in [*run.baselines, run.model_system] if name in about]
    return f" {listed(known)}." if known else ""


def _headline(run: RunFacts) -> str:
    """The figure that stands for all: of the first protocol, with its interval and the baselines'."""
    protocol, overall = run.protocols[0], ("overall", "users")
    rows = {name: run.row(name, protocol, "ndcg@10", overall) for name in [*run.baselines, run.model_system]}
    own = rows.pop(run.model_system)
    if own is None:
        return ""
    bounds = "" if own["low"] is None else f" (95 % interval {interval_text(own['low'], own['high'])})"
    beside = [f"{percent(row['value'])} ({escape(name)})" for name, row in rows.items() if row]
    against = f", against {listed(beside)}" if beside else ""
    return f"NDCG@10 is **{percent(own['value'])} %**{bounds} under the protocol `{protocol}`{against}."


def _data_facts(run: RunFacts, prepared: dict[str, Any] | None) -> list[tuple[str, str]]:
    data, facts = run.results["data"], run.training
    lines = [
        ("name", escape(str(data.get("name") or "not stated"))),
        ("content hash", f"`{data.get('hash') or 'not stated'}`"),
        ("domains", escape(", ".join(data["domains"]))),
        ("items", f"{data['items']:,}"),
        (f"users of the {data['evaluated_split']} split", f"{data['users']:,}"),
        ("split", escape(_worded(data.get("split")))),
        ("order of events", escape(_worded(data.get("order_policy")))),
    ]
    if facts.get("examples_available") is not None:
        lines.append(
            ("training examples", f"{facts['examples_available']:,}, of which {facts['examples_used']:,} were used")
        )
    if prepared is not None:
        statistics, titles = prepared["statistics"], prepared["statistics"]["titles"]
        lines.append(("interactions", f"{statistics['interactions']:,}"))
        if len(statistics["domains"]) > 1:
            counts = ("users", "items", "interactions")
            lines += [
                (f"domain {escape(name)}", ", ".join(f"{row[what]:,} {what}" for what in counts))
                for name, row in statistics["domains"].items()
            ]
        lines += [
            ("k-core", str(prepared["options"]["k_core"] or "none by this project")),
            ("words of a title, mean", f"{titles['words'].get('mean', 0):g}"),
            ("items that share their title", f"{titles['items_sharing_a_title']:,}"),
        ]
    return lines


def _prepared_card(run: RunFacts) -> dict[str, Any] | None:
    """The data card of the run's prepared folder, where that is still there and unchanged."""
    named = run.recipe.get("data")
    if not named:
        return None
    # Named from where the run was started, which is here, or where its folder runs/<name> lies.
    places = [Path(str(named)) / CARD_FILE, run.folder.absolute().parent.parent / str(named) / CARD_FILE]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        return None
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CardError(f"{path}: not JSON ({error}): prepare the data again, or take the folder away") from error
    return dict(card) if card.get("hash") == run.results["data"].get("hash") else None


def _leakage(data: dict[str, Any], prepared: dict[str, Any] | None) -> str:
    if prepared is not None and prepared["statistics"].get("leakage_warning"):
        return f"{escape(prepared['statistics']['leakage_warning']).capitalize()}."
    if data.get("split") == "leave-one-out":
        return "Leave-one-out may train on events that are later than other users' test targets."
    return ""


def language_text(language: Sequence[str]) -> str:
    """What is known of the languages of the titles, given as codes."""
    codes = listed(f"`{code}`" for code in language)
    titles = f"The language of the titles is {codes}" if language else "The language of the titles is not stated"
    return f"{titles}; others, and mixtures, have not been measured."


def licence_text(given: str | None, licence: str | None, backbone: str | None) -> str:
    """Under what the weights are published: as `given`, or by default the backbone's `licence`."""
    if given:
        return f"The weights are published under `{given}`."
    if licence:
        return f"`{licence}`, as the backbone {backbone}. The terms of the data, above, may ask for more."
    return (
        "**Not stated.** Whoever publishes this model has to name one (`license` in the metadata) before others can "
        "use it."
    )


def cost_text(run: RunFacts | None, hardware: str | None, watts: float | None) -> str:
    """How long the training took, as measured; the energy only where a power was stated."""
    facts = {} if run is None else run.training
    seconds = facts.get("seconds")
    if seconds is None:
        return "Not known: no training was recorded."
    where = [f"{_count(facts.get('processes', 1), 'process')} on {facts.get('device', 'a device not stated')}"]
    if facts.get("threads") is not None:
        where.append(_count(facts["threads"], "thread") + (" each" if facts.get("processes", 1) > 1 else ""))
    where += [escape(hardware)] if hardware else []
    took = (
        f"Training took {_duration(seconds)}, as measured ({', '.join(where)}); preparing the data, evaluating and "
        "earlier attempts are not counted."
    )
    if not watts:
        return f"{took} The energy was not measured."
    energy = seconds * watts / 3.6e6
    return f"{took} At {watts:g} W, which was stated and not measured, that is an estimated {energy:.2g} kWh."


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}{'es' if what.endswith('s') else 's'}"


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e5 else f"{count / 1e3:,.1f} kB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _worded(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_worded(part)}" for key, part in value.items() if part is not None)
    return "not stated" if value is None else str(value)
