"""The tables and plots of a model card."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from llmrec.evaluation.groups import OVERALL_DOMAINS, OVERALL_USERS
from llmrec.evaluation.intervals import Bootstrap
from llmrec.evaluation.report import PLOTS_FOLDER, system_differences
from llmrec.evaluation.table import GROUP_LABELS, interval_text, markdown_table, percent, short_name
from llmrec.hub.card_facts import RunFacts
from llmrec.hub.card_metadata import METRICS

GROUP_METRIC = "ndcg@10"
MODEL_TITLE = "**this\u00a0model**"
INTERVAL_TITLE = "95\u00a0%\u00a0interval"
POPULARITY_LABELS = {
    "0": "never seen",
    "1-5": "seen 1 to 5 times",
    "6-20": "seen 6 to 20 times",
    ">20": "seen more often",
}
PLOTS = (
    ("ndcg_by_domain.png", "NDCG@10 by domain, with 95 % intervals over users"),
    ("ndcg_by_popularity.png", "NDCG@10 by training interactions of the target, with 95 % intervals over users"),
)

# Of a recipe: what one needs to judge or repeat the training. (field, what it is called.)
RECIPE_FIELDS = (
    ("tuning", "tuning"),
    ("preset", "preset"),
    ("contrastive_loss", "loss"),
    ("max_history_items", "newest items of a history"),
    ("max_title_tokens", "tokens of a title"),
    ("num_train_epochs", "epochs"),
    ("max_steps", "at most steps"),
    ("max_train_examples", "at most examples"),
    ("learning_rate", "learning rate"),
    ("lr_scheduler_type", "schedule"),
    ("warmup_steps", "warm-up"),
    ("weight_decay", "weight decay"),
    ("max_grad_norm", "gradient norm at most"),
    ("logq_correction", "logQ correction"),
    ("negatives_per_example", "drawn negatives an example"),
    ("negative_domain", "domain of negatives"),
    ("shared_negatives", "negatives shared by a batch"),
    ("catalogue_negatives", "negatives of a cached catalogue"),
    ("packing", "packing"),
    ("early_stopping_patience", "early stopping after"),
)
LORA_FIELDS = (("lora_r", "rank"), ("lora_alpha", "alpha"), ("lora_dropout", "dropout"))
# Values that say "not used": such lines are left out.
_UNUSED: tuple[Any, ...] = (None, 0, -1, False, "", [], "off", "none")


def overall_table(run: RunFacts) -> str:
    """All systems under all protocols, over all users: each metric in %, with the interval of NDCG@10."""
    others = [metric for metric in METRICS if metric != GROUP_METRIC]
    header = ["protocol", "system", short_name(GROUP_METRIC), INTERVAL_TITLE, *map(short_name, others)]
    cells = []
    for protocol in run.protocols:
        for number, system in enumerate([*run.baselines, run.model_system]):
            rows = {metric: run.row(system, protocol, metric, ("overall", OVERALL_USERS)) for metric in METRICS}
            strong = "**" if system == run.model_system else ""
            values = {metric: f"{strong}{percent(row['value'])}{strong}" if row else "" for metric, row in rows.items()}
            bounds = rows[GROUP_METRIC]
            cells.append(
                [
                    f"`{protocol}`" if number == 0 else "",
                    MODEL_TITLE if strong else escape(system),
                    values[GROUP_METRIC],
                    _interval(bounds),
                    *(values[metric] for metric in others),
                ]
            )
    return markdown_table(header, cells, (0, 1))


def group_table(run: RunFacts, protocol: str) -> str:
    """NDCG@10 in % of one protocol: overall, each domain, and by how often training has seen the target."""
    header = ["targets", "users", *map(escape, run.baselines), MODEL_TITLE, INTERVAL_TITLE]
    domains = [group for by, group, _ in run.groups if by == "domain"]
    cells = []
    for group_by, group, users in run.groups:
        if group_by == "history" or (len(domains) == 1 and (group_by == "domain" or group == OVERALL_DOMAINS)):
            continue  # one domain is everything there is
        if group_by == "overall":
            label = "all" if group == OVERALL_USERS else GROUP_LABELS[group_by, group]
        else:
            label = POPULARITY_LABELS[group] if group_by == "popularity" else f"of {escape(group)}"
        of = run.row(run.model_system, protocol, GROUP_METRIC, (group_by, group))
        if of is None:
            continue
        others = [run.row(system, protocol, GROUP_METRIC, (group_by, group)) for system in run.baselines]
        cells.append(
            [
                label,
                f"{users:,}",
                *(percent(other["value"]) if other else "" for other in others),
                f"**{percent(of['value'])}**",
                _interval(of),
            ]
        )
    return markdown_table(header, cells, (0,))


def differences(run: RunFacts, protocol: str) -> list[str]:
    """The model's difference to each baseline, paired over the users; empty where there are no ranks."""
    if run.ranks is None or not run.baselines:
        return []
    stated = run.results["protocol"]["intervals"]
    bootstrap = Bootstrap(resamples=stated["resamples"], level=stated["level"], seed=stated["seed"])
    cells = system_differences(run.ranks, protocol, bootstrap)
    over_users = [(value, interval) for _, over, value, interval in cells if over == "users"]
    return [
        f"minus {escape(system)}: {value} points ({interval})"
        for system, (value, interval) in zip(run.baselines, over_users, strict=True)
    ]


def recipe_table(run: RunFacts) -> str:
    """The training arguments that matter."""
    recipe, facts = run.recipe, run.training
    lines: list[tuple[str, Any]] = []
    for name, title in RECIPE_FIELDS:
        value = recipe.get(name)
        if value in _UNUSED or (name == "preset" and value == "default"):
            continue
        if name == "tuning" and value == "lora":
            targets = ", ".join(map(str, recipe.get("lora_target_modules") or []))
            parts = [f"{word} {recipe[field]}" for field, word in LORA_FIELDS if recipe.get(field) is not None]
            value = f"LoRA, {', '.join(parts)}" + (f", on {targets}" if targets else "")
        elif name == "warmup_steps" and isinstance(value, float) and value < 1:
            value = f"{100 * value:g} % of the steps"
        lines.append((title, value))
    lines += [
        ("batch", facts.get("batch_size")),
        ("precision", facts.get("precision") or recipe.get("precision")),
        ("seed", facts.get("seed", recipe.get("seed"))),
        ("trained parameters", _of(facts.get("trained_parameters"), facts.get("parameters"))),
        ("examples seen", _of(facts.get("examples_seen"), facts.get("examples_available"), "available")),
        ("steps", facts.get("steps")),
        ("kept step", _kept(facts)),
    ]
    cells = [[title, escape(_text(value))] for title, value in lines if value is not None]
    return markdown_table(["argument", "value"], cells, (0, 1))


def choose_plots(run: RunFacts) -> list[tuple[Path, str]]:
    """The plots of a run that say most: (file, caption); empty where it has none."""
    domains = len([1 for by, _, _ in run.groups if by == "domain"])
    # With one domain its plot is a single line.
    wanted = [(file, caption) for file, caption in PLOTS if domains > 1 or file != "ndcg_by_domain.png"]
    there = [(run.folder / PLOTS_FOLDER / file, caption) for file, caption in wanted]
    return [(file, caption) for file, caption in there if file.is_file()]


def copy_plots(plots: Sequence[tuple[Path, str]], folder: Path) -> None:
    """Copy chosen plots into a folder."""
    for file, _ in plots:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / file.name)


def escape(text: str) -> str:
    """A text inside a cell: without what Markdown or HTML would take as its own."""
    plain = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for mark in ("\\", "|", "*", "_", "`", "[", "]"):
        plain = plain.replace(mark, f"\\{mark}")
    return plain


def listed(values: Iterable[str]) -> str:
    """ "a", "b" and "c" as they stand in a sentence; nothing of nothing."""
    *most, last = list(values) or [""]
    return f"{', '.join(most)} and {last}" if most else last


def _interval(row: dict[str, Any] | None) -> str:
    """Both ends in percent, held together where a cell is narrow."""
    return "" if row is None else interval_text(row["low"], row["high"]).replace(" ", "\u00a0")


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    return str(value)


def _of(part: Any, whole: Any, what: str = "") -> str | None:
    if part is None:
        return None
    return f"{part:,}" if whole is None else f"{part:,} of {whole:,}{' ' if what else ''}{what}"


def _kept(facts: dict[str, Any]) -> str | None:
    if facts.get("best_step") is None:
        return None
    if facts.get("best_metric") is None:
        return f"{facts['best_step']:,}"
    name = str(facts.get("metric_for_best_model") or "metric").removeprefix("eval_")
    return f"{facts['best_step']:,} ({name} {100 * facts['best_metric']:.2f} % on validation users)"
