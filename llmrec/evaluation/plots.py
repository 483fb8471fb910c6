"""Plots of results. Needs matplotlib, which the extra `plots` brings."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from llmrec.evaluation.table import GROUP_LABELS, TITLES, short_name, unique

# Okabe and Ito's palette, told apart with every common colour blindness; shapes and lines differ as well.
COLOURS = ("#7f7f7f", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")
MARKERS = ("s", "^", "o", "D", "v", "P", "X", "*")
LINES = ("--", "-.", "-", "-", "-", "-", "-", "-")
CURVE_POINTS = 200


def plots_available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def write_plots(folder: Path, rows: Sequence[dict[str, Any]], ranks: pl.DataFrame) -> list[tuple[str, str]]:
    """Draw the plots of a report.

    Args:
        folder: where the PNG files go.
        rows: rows of results.json.
        ranks: the table of ranks.parquet.

    Returns:
        (file name, caption) of each plot.
    """
    made = []
    for group_by, name in (
        ("domain", "ndcg_by_domain"),
        ("popularity", "ndcg_by_popularity"),
        ("history", "ndcg_by_history"),
    ):
        file = f"{name}.png"
        _save(_group_figure(rows, group_by), folder / file)
        made.append((file, f"NDCG@10 by {TITLES[group_by]}, with 95 % intervals over users"))
    _save(_curve_figure(ranks), folder / "recall_curve.png")
    made.append(("recall_curve.png", "Share of users whose target is among the first k candidates"))
    return made


def _group_figure(rows: Sequence[dict[str, Any]], group_by: str, metric: str = "ndcg@10") -> Any:
    """One panel a protocol; in each, groups on the y axis and a point with its interval for each system."""
    chosen = [
        row
        for row in rows
        if row["metric"] == metric
        and (row["group_by"] == group_by or (group_by == "domain" and row["group_by"] == "overall"))
    ]
    protocols = unique(row["protocol"] for row in chosen)
    systems = unique(row["system"] for row in chosen)
    groups = list(dict.fromkeys((row["group_by"], row["group"], row["users"]) for row in chosen))
    figure, axes = _panels(len(protocols), width=1.6 + 3.6 * len(protocols), height=1.5 + 0.62 * len(groups))
    spread = np.linspace(-0.24, 0.24, len(systems)) if len(systems) > 1 else np.zeros(1)
    for axis, protocol in zip(axes, protocols, strict=True):
        for number, system in enumerate(systems):
            points = [
                (place, row)
                for place, group in enumerate(groups)
                for row in chosen
                if row["protocol"] == protocol
                and row["system"] == system
                and (row["group_by"], row["group"]) == group[:2]
            ]
            values = np.array([100 * row["value"] for _, row in points])
            # A percentile interval of a tiny group may lie to one side of the value: a bar cannot be
            # negative.
            low = np.array([_bar(row, "low") for _, row in points])
            high = np.array([_bar(row, "high") for _, row in points])
            axis.errorbar(
                values,
                [place + spread[number] for place, _ in points],
                xerr=np.stack([low, high]),
                fmt=MARKERS[number % len(MARKERS)],
                color=COLOURS[number % len(COLOURS)],
                markersize=5.5,
                elinewidth=1.4,
                capsize=2.5,
                label=system,
            )
        axis.set_title(protocol, fontsize=11)
        axis.set_xlabel(f"{short_name(metric)} (%)")
        # A little below 0, so that a marker at 0 is seen whole.
        axis.set_xlim(left=-0.02 * axis.get_xlim()[1])
        axis.grid(axis="x", color="0.9")
        for border in range(1, len(groups)):
            axis.axhline(border - 0.5, color="0.93", linewidth=0.8)
    axes[0].set_yticks(range(len(groups)))
    axes[0].set_yticklabels(
        [f"{GROUP_LABELS.get(group[:2], group[1])}\n{group[2]:,} users" for group in groups], fontsize=9
    )
    axes[0].set_ylim(len(groups) - 0.5, -0.5)
    _finish(figure, axes[0], f"{short_name(metric)} by {TITLES[group_by]}")
    return figure


def _curve_figure(ranks: pl.DataFrame) -> Any:
    """Recall@k over k, one panel a protocol."""
    protocols = unique(ranks["protocol"].to_list())
    systems = unique(ranks["system"].to_list())
    figure, axes = _panels(len(protocols), width=1.2 + 3.9 * len(protocols), height=4.0)
    for axis, protocol in zip(axes, protocols, strict=True):
        of_protocol = ranks.filter(pl.col("protocol") == protocol)
        most = max(2, int(of_protocol["candidates"].max() or 2))  # type: ignore[arg-type]
        ks = np.unique(np.geomspace(1, most, CURVE_POINTS).round().astype(np.int64))
        for number, system in enumerate(systems):
            of_system = np.sort(of_protocol.filter(pl.col("system") == system)["rank"].to_numpy())
            if len(of_system) == 0:
                continue
            recall = np.searchsorted(of_system, ks, side="left") / len(of_system)
            style = {"color": COLOURS[number % len(COLOURS)], "linestyle": LINES[number % len(LINES)]}
            axis.plot(ks, 100 * recall, label=system, linewidth=2, **style)
        # A target placed at random is among the first k of c candidates with probability k / c.
        candidates = of_protocol["candidates"].to_numpy()
        chance = np.array([np.minimum(k / candidates, 1).mean() for k in ks])
        axis.plot(ks, 100 * chance, label="chance", color="0.75", linewidth=1.2, linestyle=":")
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.set_xlim(1, most)
        axis.set_ylim(-1, 101)
        axis.set_title(protocol, fontsize=11)
        axis.set_xlabel("k, best candidates looked at (log scale)")
        axis.grid(color="0.92")
    axes[0].set_ylabel("recall@k (%)")
    _finish(figure, axes[0], "Recall@k")
    return figure


def _bar(row: dict[str, Any], end: str) -> float:
    if row[end] is None:
        return 0.0
    return max(0.0, 100 * (row["value"] - row["low"] if end == "low" else row["high"] - row["value"]))


def _panels(count: int, width: float, height: float) -> tuple[Any, list[Any]]:
    # The object interface needs no display and leaves pyplot's global state alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(np.atleast_1d(figure.subplots(1, count, sharey=True)))
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(length=0)
    return figure, axes


def _finish(figure: Any, axis: Any, title: str) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.suptitle(title, fontsize=13, fontweight="bold")
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False)


def _save(figure: Any, path: Path) -> None:
    new = path.with_suffix(".png.new")
    figure.savefig(new, dpi=150, format="png")
    os.replace(new, path)
