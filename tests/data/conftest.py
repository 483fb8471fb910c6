"""Small made-up data for the tests of the data part."""

from __future__ import annotations

import gzip
import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import polars as pl
import pytest

from llmrec.data.encode import encode_source, merge_sources
from llmrec.data.errors import LeakageWarning
from llmrec.data.interactions import Interactions
from llmrec.data.prepare import prepare
from llmrec.data.source import RawData, RawTable

Event = tuple[str, str, int]


@pytest.fixture(autouse=True)
def quiet() -> Iterable[None]:
    """No progress bars, and no leakage warning but where a test asks for it."""
    datasets.disable_progress_bars()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LeakageWarning)
        yield


@pytest.fixture
def write_lines() -> Callable[[Path, Iterable[Any]], Path]:
    """Write lines (text as it is, anything else as JSON) to a plain or `.gz` file."""

    def write(path: Path, lines: Iterable[Any]) -> Path:
        text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
        content = text.encode("utf-8")
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
        return path

    return write


@pytest.fixture
def make_raw() -> Callable[..., RawData]:
    """Raw tables from events (user, item, time) and items {item: (title, domain)}, as of a reader."""

    def make(
        events: Sequence[Event], items: dict[str, tuple[str | None, str]] | None = None, time: str = "timestamp"
    ) -> RawData:
        if items is None:
            items = {item: (f"title of {item}", item[0].upper()) for _, item, _ in events}
        interactions = pl.DataFrame(
            events, schema={"user_id": pl.String, "item_id": pl.String, time: pl.Int64}, orient="row"
        )
        rows = [(item, *rest) for item, rest in items.items()]
        schema = {"item_id": pl.String, "title": pl.String, "domain": pl.String}
        table = pl.DataFrame(rows, schema=schema, orient="row")
        return RawData(RawTable(interactions, "made-up interactions"), RawTable(table, "made-up items"))

    return make


@pytest.fixture
def make_state(make_raw: Callable[..., RawData]) -> Callable[..., Interactions]:
    """The working state of made-up events."""

    def make(*args: Any, **options: Any) -> Interactions:
        return merge_sources([encode_source(make_raw(*args, **options))])

    return make


@pytest.fixture
def random_events() -> Callable[..., list[Event]]:
    """Random events of users u0… and items a0…, b0… of the domains A, B, C, with repeated times."""

    def make(seed: int, n_events: int = 300, n_users: int = 30, n_items: int = 25, n_times: int = 40) -> list[Event]:
        rng = np.random.default_rng(seed)
        users = rng.integers(n_users, size=n_events)
        items = rng.integers(n_items, size=n_events)
        times = rng.integers(n_times, size=n_events)
        return [
            (f"u{user}", f"{'abc'[item % 3]}{item}", int(time) * 1000)
            for user, item, time in zip(users, items, times, strict=True)
        ]

    return make


@pytest.fixture
def rows_of() -> Callable[[Interactions], list[Event]]:
    """The events of a state with their ids, in the state's order."""

    def rows(state: Interactions) -> list[Event]:
        users, items = state.users.to_list(), state.items["item_id"].to_list()
        time = "timestamp" if state.has_time else "order"
        table = state.events.select("user", "item", time)
        return [(users[user], items[item], when) for user, item, when in table.iter_rows()]

    return rows


@pytest.fixture
def events_file(tmp_path: Path) -> Path:
    """A pair of CSV files of 4 users with 4 events each over 3 items in 2 domains."""
    rows = [(f"u{u}", f"i{(u + step) % 3}", 1_600_000_000 + 86_400 * step + u) for u in range(4) for step in range(4)]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    path = tmp_path / "interactions.csv"
    frame.write_csv(path)
    pl.DataFrame(
        {"item_id": ["i0", "i1", "i2"], "title": ["Zero", "One &amp; only", "Two"], "domain": ["A", "A", "B"]}
    ).write_csv(tmp_path / "items.csv")
    return path


@pytest.fixture
def prepare_quickly(tmp_path: Path) -> Callable[..., Any]:
    """`prepare` into a fresh folder, without k-core unless asked."""

    def run(*sources: Any, output: str = "prepared", **options: Any) -> Any:
        return prepare(list(sources), tmp_path / output, **{"k_core": 0, **options})

    return run
