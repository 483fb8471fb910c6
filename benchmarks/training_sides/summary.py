"""From timed steps to figures, and from figures to tables."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from .gate import Side

COUNTS = ("examples", "tokens", "slots")
COLUMNS = (
    ("examples/s", "examples_per_second", "{:.3f}"),
    ("at mean size", "examples_per_second_at_mean_size", "{:.3f}"),
    ("tokens/s", "tokens_per_second", "{:,.0f}"),
    ("fill", "fill_rate", "{:.2f}"),
    ("tokens/ex.", "tokens_per_example", "{:.0f}"),
    ("CPU", "cpu_share", "{:.2f}"),
    ("neg. mean", "negatives_mean", "{:.0f}"),
    ("neg. min", "negatives_min", "{:.0f}"),
    ("peak GiB", "peak_memory_gib", "{:.2f}"),
    ("loss", "heldout_loss", "{:.3f}"),
    ("top 1 of 11", "heldout_top1", "{:.3f}"),
    ("after", "examples_seen", "{:.0f}"),
)


def figures(side: Side) -> dict[str, Any]:
    """What one side came to: rates are medians over its turns, counts are sums.

    A real token is one that some text has; a slot is one that the layout computes, padding included.
    """
    rounds = [_totals(steps) for steps in side.rounds]
    total = {name: sum(each[name] for each in rounds) for name in rounds[0]}
    rates = [each["examples"] / each["seconds"] for each in rounds]
    at_mean_size = None
    if side.facts.get("mean_slots_per_example"):
        at_mean_size = round(
            median(each["slots"] / each["seconds"] for each in rounds) / side.facts["mean_slots_per_example"], 4
        )
    return {
        "side": side.name,
        "examples_per_second": round(median(rates), 4),
        "examples_per_second_at_mean_size": at_mean_size,
        "tokens_per_second": round(median(each["tokens"] / each["seconds"] for each in rounds), 1),
        "examples_per_cpu_second": round(median(each["examples"] / each["cpu_seconds"] for each in rounds), 4),
        "cpu_share": round(total["cpu_seconds"] / total["seconds"], 2),
        "fill_rate": round(total["tokens"] / total["slots"], 4),
        "tokens_per_example": round(total["tokens"] / total["examples"], 1),
        "slots_per_example": round(total["slots"] / total["examples"], 1),
        "examples_seen": int(total["examples"]),
        "turns": [round(rate, 4) for rate in rates],
        **side.facts,
    }


def _totals(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    """Sums over the steps of one turn; time that belongs to examples which were not read is left out."""
    sums = {name: sum(step[name] for step in steps) for name in COUNTS}
    for name in ("seconds", "cpu_seconds"):
        sums[name] = sum(step[name] - step.get(f"excess_{name}", 0.0) for step in steps)
    return sums


def ratio(
    ours: dict[str, Any] | None, others: Sequence[dict[str, Any] | None], of: str = "examples_per_second"
) -> float | None:
    """A rate of ours over that of the fastest of the others; None where either is missing."""
    rates = [other[of] for other in others if other and other.get(of) is not None]
    return round(ours[of] / max(rates), 2) if ours and ours.get(of) is not None and rates else None


def table(rows: Sequence[dict[str, Any]], against: str | None = None) -> str:
    """Rows of figures as lines of text; `against` names the side that the last column compares with."""
    failed = [row for row in rows if "failed" in row]
    rows = [row for row in rows if "failed" not in row]
    base = next((row["examples_per_second"] for row in rows if row["side"] == against), None)
    columns = [column for column in COLUMNS if any(row.get(column[1]) is not None for row in rows)]
    lines = [["side", *(title for title, _, _ in columns), *(["times (a)"] if base else [])]]
    for row in rows:
        cells = [form.format(row[key]) if row.get(key) is not None else "-" for _, key, form in columns]
        lines.append([row["side"], *cells, *([f"{row['examples_per_second'] / base:.2f}"] if base else [])])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    lines += [[f"{row['side']}: {row['failed'].splitlines()[-1]}", *[""] * (len(widths) - 1)] for row in failed]
    return "\n".join(
        "  ".join(cell.ljust(width) if number == 0 else cell.rjust(width) for number, (cell, width) in
                  enumerate(zip(line, widths, strict=True)))
        for line in lines
    )  # fmt: skip
