"""results.json and ranks.parquet: written here and nowhere else, read here and by anybody.

`results.json` is `{"schema", "protocol", "data", "versions", "command", "rows"}`; `rows` are tidy:
`pandas.DataFrame(json.load(open("results.json"))["rows"])`. `ranks.parquet` holds what they were made from.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from llmrec.evaluation.groups import (
    HISTORY_GROUPS,
    OVERALL_DOMAINS,
    OVERALL_USERS,
    POPULARITY_GROUPS,
    popularity_codes,
)
from llmrec.evaluation.intervals import Bootstrap, bootstrap_group_means, mean_of_groups
from llmrec.evaluation.metrics import metric_names
from llmrec.version import __version__

SCHEMA = 1
RESULTS_FILE = "results.json"
RANKS_FILE = "ranks.parquet"
RESULT_KEYS = ("schema", "protocol", "data", "versions", "command", "rows")
ROW_KEYS = ("system", "protocol", "group_by", "group", "users", "metric", "value", "low", "high")
RANKS_SCHEMA: dict[str, Any] = {
    "system": pl.String,
    "protocol": pl.String,
    "user_id": pl.String,
    "item_id": pl.String,
    "domain": pl.String,
    "rank": pl.Float64,
    "candidates": pl.Int64,
    "train_count": pl.Int64,
    "history_domains": pl.String,
}
PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "polars", "numpy")


class ResultsError(ValueError):
    """A results folder cannot be written or read."""


def ranks_to_rows(
    ranks: pl.DataFrame, *, bootstrap: Bootstrap | None = None, progress: bool = False
) -> list[dict[str, Any]]:
    """The rows of results.json from the table of ranks.

    Groups: "overall" ("users": mean over all users; "domains": plain mean of the domains' means), "domain",
    "popularity" (of the target in training) and "history" (domains of the history against the target's).
    Groups without users have no rows.

    Args:
        ranks: columns as in RANKS_SCHEMA; the same users in the same order for each system and protocol.
        bootstrap: how the intervals are made.

    Returns:
        One dictionary with ROW_KEYS for each system, protocol, group and metric; `low` and `high` are the
        ends of the interval of `value`.

    Raises:
        ResultsError: columns are missing, or systems or protocols rank other users or targets than the first.
    """
    bootstrap = bootstrap or Bootstrap()
    missing = [name for name in RANKS_SCHEMA if name not in ranks.columns]
    if missing:
        raise ResultsError(f"ranks: missing column {', '.join(missing)}")
    if len(ranks) == 0:
        raise ResultsError("ranks: no rows")
    tables = ranks.partition_by(["system", "protocol"], maintain_order=True, as_dict=True)
    first = next(iter(tables.values()))
    for (system, protocol), table in tables.items():
        if not table.select("user_id", "item_id").equals(first.select("user_id", "item_id")):
            raise ResultsError(
                f"ranks: system {system!r} under protocol {protocol!r} ranks other users or targets than the "
                "first system, so they cannot be compared"
            )
    domains = sorted(first["domain"].unique().to_list())
    groupings = [
        ("domain", domains, _codes(first["domain"], domains)),
        ("popularity", POPULARITY_GROUPS, popularity_codes(first["train_count"].to_numpy())),
        ("history", HISTORY_GROUPS, _codes(first["history_domains"], HISTORY_GROUPS)),
    ]
    everyone = (np.zeros(len(first), dtype=np.int64), 1)
    metrics = metric_names()
    means = bootstrap_group_means(
        np.stack([table["rank"].to_numpy() for table in tables.values()], axis=1),
        metrics,
        [everyone, *((codes, len(names)) for _, names, codes in groupings)],
        bootstrap,
        progress,
    )
    # (group_by, group, users, values (C,), samples (B, C)) in the order of the rows.
    by_domain = means[1]
    overall = [
        ("overall", OVERALL_USERS, len(first), means[0].values[0], means[0].samples[:, 0]),
        (
            "overall",
            OVERALL_DOMAINS,
            len(first),
            by_domain.values.mean(axis=0),
            mean_of_groups(by_domain.samples),
        ),
    ]
    grouped = [
        (group_by, name, int(mean.users[group]), mean.values[group], mean.samples[:, group])
        for (group_by, names, _), mean in zip(groupings, means[1:], strict=True)
        for group, name in enumerate(names)
        if mean.users[group]
    ]
    summaries = [(*summary[:4], *bootstrap.bounds(summary[4])) for summary in overall + grouped]
    return [
        {
            "system": system,
            "protocol": protocol,
            "group_by": group_by,
            "group": group,
            "users": users,
            "metric": metric,
            "value": float(values[table * len(metrics) + column]),
            "low": _number(low[table * len(metrics) + column]),
            "high": _number(high[table * len(metrics) + column]),
        }
        for table, (system, protocol) in enumerate(tables)
        for group_by, group, users, values, low, high in summaries
        for column, metric in enumerate(metrics)
    ]


def write_results(
    folder: str | Path,
    *,
    ranks: pl.DataFrame,
    rows: Sequence[dict[str, Any]],
    protocol: dict[str, Any],
    data: dict[str, Any],
    command: Sequence[str],
    overwrite: bool = False,
    extra: dict[str, Any] | None = None,
) -> Path:
    """Write results.json and ranks.parquet; both are complete, or the folder is as it was.

    Args:
        folder: made if it does not exist; may hold other files (a run folder).
        ranks: columns as in RANKS_SCHEMA.
        rows: as `ranks_to_rows` gives them.
        protocol: how the ranks were made.
        data: what they were made from; holds at least the hash.
        command: the command line that did it.
        overwrite: replace results that are there.
        extra: further keys of results.json beside those of the schema.

    Returns:
        The path of results.json.

    Raises:
        ResultsError: there are results already, a row is not one, or `extra` names a key of the schema.
    """
    folder = Path(folder)
    results_path, ranks_path = folder / RESULTS_FILE, folder / RANKS_FILE
    check_free(folder, overwrite)
    taken = [key for key in RESULT_KEYS if key in (extra or {})]
    if taken:
        raise ResultsError(f"{results_path}: {taken[0]!r} is a key of the schema and cannot be an extra one")
    results: dict[str, Any] = {
        "schema": SCHEMA,
        "protocol": protocol,
        "data": data,
        "versions": versions(),
        "command": [str(part) for part in command],
        **(extra or {}),
        "rows": list(rows),
    }
    _check_results(results, results_path)
    # Rendered before anything is written: a NaN or a strange type is found here.
    head = {key: value for key, value in results.items() if key != "rows"}
    text = json.dumps(head, indent=2, ensure_ascii=False, allow_nan=False)
    lines = ",\n".join(f"    {json.dumps(row, ensure_ascii=False, allow_nan=False)}" for row in results["rows"])
    text = f'{text[:-2]},\n  "rows": [\n{lines}\n  ]\n}}\n'
    folder.mkdir(parents=True, exist_ok=True)
    new_results, new_ranks = results_path.with_suffix(".json.new"), ranks_path.with_suffix(".parquet.new")
    try:
        ranks.select(list(RANKS_SCHEMA)).write_parquet(new_ranks)
        new_results.write_text(text, encoding="utf-8")
        os.replace(new_ranks, ranks_path)
        os.replace(new_results, results_path)
    finally:
        new_results.unlink(missing_ok=True)
        new_ranks.unlink(missing_ok=True)
    return results_path


def check_free(folder: str | Path, overwrite: bool = False) -> None:
    """Raise ResultsError if a folder holds results that would be overwritten."""
    if not overwrite:
        for name in (RESULTS_FILE, RANKS_FILE):
            path = Path(folder) / name
            if path.exists():
                raise ResultsError(f"{path} exists already: choose another folder, or ask to overwrite it")


def load_results(path: str | Path) -> dict[str, Any]:
    """Read and check results.json.

    Args:
        path: the file, or the folder that holds it.

    Raises:
        ResultsError: no such file, no JSON, or another schema. The message names the file and the place.
    """
    path = Path(path)
    path = path / RESULTS_FILE if path.is_dir() else path
    if not path.is_file():
        raise ResultsError(f"{path}: no such file")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ResultsError(f"{path}: line {error.lineno}: not JSON ({error.msg})") from error
    _check_results(results, path)
    return results


def load_ranks(path: str | Path) -> pl.DataFrame:
    """Read and check ranks.parquet.

    Args:
        path: the file, or the folder that holds it.

    Raises:
        ResultsError: no such file, or a column is missing.
    """
    path = Path(path)
    path = path / RANKS_FILE if path.is_dir() else path
    if not path.is_file():
        raise ResultsError(f"{path}: no such file")
    ranks = pl.read_parquet(path)
    missing = [name for name in RANKS_SCHEMA if name not in ranks.columns]
    if missing:
        raise ResultsError(f"{path}: missing column {', '.join(missing)}")
    return ranks


def versions() -> dict[str, str | None]:
    """Versions of what a number depends on; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    found["llmrec"] = __version__
    return found


def data_block(card: dict[str, Any], *, split: str, users: int, items: int, domains: Sequence[str]) -> dict[str, Any]:
    """The "data" block from a data card: which data, which split, and their hash."""
    return {
        "name": card.get("name"),
        "hash": card.get("hash"),
        "split": card.get("split"),
        "order_policy": card.get("order_policy"),
        "evaluated_split": split,
        "users": users,
        "items": items,
        "domains": list(domains),
    }


def _check_results(results: Any, path: Path) -> None:
    if not isinstance(results, dict) or results.get("schema") != SCHEMA:
        found = results.get("schema") if isinstance(results, dict) else type(results).__name__
        raise ResultsError(f"{path}: schema {found!r} is not {SCHEMA}, which this version reads")
    missing = [key for key in RESULT_KEYS if key not in results]
    if missing:
        raise ResultsError(f"{path}: missing {', '.join(missing)}")
    for number, row in enumerate(results["rows"]):
        lacking = [key for key in ROW_KEYS if key not in row]
        if lacking:
            raise ResultsError(f"{path}: row {number} lacks {', '.join(lacking)}")
        if not isinstance(row["value"], (int, float)) or not math.isfinite(row["value"]):
            raise ResultsError(f"{path}: row {number}: value {row['value']!r} is not a finite number")


def _codes(column: pl.Series, names: Sequence[str]) -> np.ndarray:
    """Index into `names` of each value."""
    place = {name: number for number, name in enumerate(names)}
    unknown = set(column.unique().to_list()) - set(place)
    if unknown:
        raise ResultsError(f"ranks: column {column.name} holds {sorted(map(str, unknown))[0]!r}, not one of {names}")
    return column.replace_strict(place, return_dtype=pl.Int64).to_numpy()


def _number(value: float) -> float | None:
    """JSON knows no NaN."""
    return None if math.isnan(value) else float(value)
