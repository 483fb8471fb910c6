"""Tables of results, for the terminal and for Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

SHOWN = ("recall@1", "recall@10", "ndcg@10")
LINE_LENGTH = 100
SHORT = {"recall": "R", "ndcg": "NDCG", "mrr": "MRR"}
GROUP_LABELS = {("overall", "users"): "overall", ("overall", "domains"): "mean of domains"}
TITLES = {
    "overall": "overall",
    "domain": "domain",
    "popularity": "training interactions of the target",
    "history": "domains of the history",
}


def unique(values: Iterable[str]) -> list[str]:
    """Distinct values in the order they first appear."""
    return list(dict.fromkeys(values))


def short_name(metric: str) -> str:
    """ "recall@10" → "R@10"."""
    family, _, cut = metric.partition("@")
    return f"{SHORT[family]}@{cut}"


def table_cells(
    rows: Sequence[dict[str, Any]],
    protocol: str,
    group_bys: Sequence[str],
    metrics: Sequence[str] = SHOWN,
    interval_of: str = "ndcg@10",
) -> tuple[list[str], list[list[str]]]:
    """Header and cells of one protocol's table: a line for each group and system, metrics in %."""
    header = [
        "group",
        "users",
        "system",
        *map(short_name, metrics),
        f"{short_name(interval_of)}, 95 % interval",
    ]
    found = {
        (row["group_by"], row["group"], row["system"], row["metric"]): row
        for row in rows
        if row["protocol"] == protocol
    }
    systems = unique(key[2] for key in found)
    groups = list(dict.fromkeys((key[0], key[1]) for key in found))
    cells = []
    for group_by in group_bys:
        for group in (name for kind, name in groups if kind == group_by):
            for number, system in enumerate(systems):
                of = [found.get((group_by, group, system, metric)) for metric in metrics]
                bounds = found.get((group_by, group, system, interval_of))
                users = next((row["users"] for row in of if row is not None), None)
                if users is None:
                    continue
                label = GROUP_LABELS.get((group_by, group), group)
                cells.append(
                    [
                        label if number == 0 else "",
                        f"{users:,}" if number == 0 else "",
                        system,
                        *(percent(row["value"]) if row is not None else "" for row in of),
                        interval_text(bounds["low"], bounds["high"]) if bounds is not None else "",
                    ]
                )
    return header, cells


def percent(value: float) -> str:
    """A share as percent with two places, without the sign."""
    return f"{100 * value:.2f}"


def interval_text(low: float | None, high: float | None) -> str:
    """Both ends in percent."""
    return "" if low is None or high is None else f"{percent(low)} – {percent(high)}"


def text_table(
    rows: Sequence[dict[str, Any]],
    *,
    descriptions: dict[str, str] | None = None,
    metrics: Sequence[str] = SHOWN,
) -> str:
    """The table for the terminal: each protocol's overall figures, then each domain's, in %.

    Args:
        rows: rows of results.json.
        descriptions: what each protocol means, shown above its table.
        metrics: columns.
    """
    parts = []
    for protocol in unique(row["protocol"] for row in rows):
        about = (descriptions or {}).get(protocol)
        title = textwrap.fill(f"{protocol}: {about}" if about else protocol, LINE_LENGTH)
        header, cells = table_cells(rows, protocol, ("overall", "domain"), metrics)
        widths = [max(len(line[column]) for line in [header, *cells]) for column in range(len(header))]
        lines = [title, _line(header, widths), "  ".join("-" * width for width in widths)]
        for cell in cells:
            if cell[0] and cell is not cells[0]:
                lines.append("")
            lines.append(_line(cell, widths))
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n\nall metrics in %; ties at their expected rank\n"


def markdown_table(header: Sequence[str], cells: Sequence[Sequence[str]], text_columns: Sequence[int] = (0, 2)) -> str:
    """A Markdown table; all columns but `text_columns` are set to the right."""
    rule = ["---" if column in text_columns else "---:" for column in range(len(header))]
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *cells])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    aligned = [
        cell.ljust(width) if column in (0, 2) else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(aligned).rstrip()
