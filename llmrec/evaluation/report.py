"""report.md: the results of a folder for people, made from results.json and ranks.parquet alone."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from llmrec.evaluation.intervals import Bootstrap, Interval, paired_difference
from llmrec.evaluation.plots import plots_available, write_plots
from llmrec.evaluation.results import load_ranks, load_results
from llmrec.evaluation.table import TITLES, markdown_table, percent, short_name, table_cells, unique

REPORT_FILE = "report.md"
PLOTS_FOLDER = "plots"
DIFFERENCE_METRIC = "ndcg@10"


def write_report(folder: str | Path) -> Path:
    """Write report.md and its plots beside results.json and ranks.parquet.

    Returns:
        The path of report.md.

    Raises:
        ResultsError: the folder holds no valid results.
    """
    folder = Path(folder)
    results, ranks = load_results(folder), load_ranks(folder)
    text = report_text(results, ranks, _plots(folder, results["rows"], ranks))
    path = folder / REPORT_FILE
    new = path.with_suffix(".md.new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)
    return path


def report_text(results: dict[str, Any], ranks: pl.DataFrame, plots: Sequence[str]) -> str:
    """The report as Markdown.

    Args:
        results: contents of results.json.
        ranks: the table of ranks.parquet.
        plots: lines that show the plots, or say why there are none.
    """
    protocol, data, rows = results["protocol"], results["data"], results["rows"]
    parts = ["# Evaluation", *_about(protocol, data)]
    for name in unique(row["protocol"] for row in rows):
        block = protocol["protocols"].get(name, {})
        parts += [f"## Protocol `{name}`", f"Candidates: {block.get('description', 'not stated')}."]
        small_domains = [
            f"- `{small['domain']}` is a small domain: {small['users']:,} users were ranked against all "
            f"negatives there are, {small['fewest_negatives']:,} at least, instead of {block['n_negatives']:,}."
            for small in block.get("small_domains", [])
        ]
        parts += ["\n".join(small_domains)] if small_domains else []
        parts.append(markdown_table(*table_cells(rows, name, ("overall", "domain"))))
        differences = system_differences(ranks, name, _bootstrap(protocol))
        if differences:
            parts += [
                f"Difference in {short_name(DIFFERENCE_METRIC)}, percentage points, over the same users and resamples:",
                markdown_table(["difference", "over", "value", "95 % interval"], differences, (0, 1)),
            ]
        for group_by in ("popularity", "history"):
            header, cells = table_cells(rows, name, (group_by,))
            if cells:
                header = [TITLES[group_by], *header[1:]]
                parts += [f"### By {TITLES[group_by]}", markdown_table(header, cells)]
    parts += ["## Plots", *plots, "## How it was made", *_made(results)]
    return "\n\n".join(parts) + "\n"


def system_differences(ranks: pl.DataFrame, protocol: str, bootstrap: Bootstrap) -> list[list[str]]:
    """Cells of the table of differences: the last system against each of the others."""
    of_protocol = ranks.filter(pl.col("protocol") == protocol)
    systems = unique(of_protocol["system"].to_list())
    last = of_protocol.filter(pl.col("system") == systems[-1])
    domains = last["domain"].to_numpy()
    cells = []
    for other in systems[:-1]:
        against = of_protocol.filter(pl.col("system") == other)["rank"].to_numpy()
        for label, groups in (("users", None), ("mean of domains", domains)):
            difference = paired_difference(
                last["rank"].to_numpy(), against, DIFFERENCE_METRIC, domains=groups, bootstrap=bootstrap
            )
            cells.append([f"{systems[-1]} − {other}", label, *_signed(difference)])
    return cells


def _about(protocol: dict[str, Any], data: dict[str, Any]) -> list[str]:
    users, available = protocol["users"], protocol["users_in_split"]
    sample = "" if users == available else f", a sample of {available:,}"
    about = [
        f"- Data: {data.get('name') or 'unnamed'}, hash `{data.get('hash')}`, {data['items']:,} items in "
        f"{len(data['domains'])} domains ({', '.join(data['domains'])}).",
        f"- Split: {_stated(data.get('split'))}; order of events: {_stated(data.get('order_policy'))}.",
        f"- Users: {users:,} of the {protocol['split']} split{sample}.",
        f"- Rank: {protocol['rank']}. Scores in {protocol['scores']}.",
        f"- Intervals: {protocol['intervals']['method']}, {protocol['intervals']['resamples']:,} resamples.",
        "- *overall* is the mean over users, *mean of domains* the plain mean of the domains' means. "
        "All metrics are in %.",
    ]
    warnings = [f"- **Warning:** {note}." for note in protocol["notes"]]
    return ["\n".join(about + warnings)]


def _stated(value: Any) -> str:
    """A field of the data card in words: it may be a name or a block with a name."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_stated(part)}" for key, part in value.items() if part is not None)
    return "not stated" if value is None else str(value)


def _made(results: dict[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items() if version is not None)
    return [f"```\n{shlex.join(results['command'])}\n```", f"Versions: {versions}."]


def _plots(folder: Path, rows: Sequence[dict[str, Any]], ranks: pl.DataFrame) -> list[str]:
    if not plots_available():
        return ["The plots were left out, since matplotlib is not installed: `pip install 'llmrec[plots]'`."]
    (folder / PLOTS_FOLDER).mkdir(exist_ok=True)
    return [
        f"![{caption}]({PLOTS_FOLDER}/{file})\n\n*{caption}.*"
        for file, caption in write_plots(folder / PLOTS_FOLDER, rows, ranks)
    ]


def _bootstrap(protocol: dict[str, Any]) -> Bootstrap:
    intervals = protocol["intervals"]
    return Bootstrap(resamples=intervals["resamples"], level=intervals["level"], seed=intervals["seed"])


def _signed(interval: Interval) -> list[str]:
    value, low, high = (
        f"{'+' if x >= 0 else '−'}{percent(abs(x))}" for x in (interval.value, interval.low, interval.high)
    )
    return [value, f"{low} to {high}"]
