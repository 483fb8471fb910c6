"""The demo's data: reproducible, and with the properties that make it worth learning from."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from llmrec.data.demo import (
    INTERACTIONS_FILE,
    ITEMS_FILE,
    Shop,
    demo_interactions,
    demo_items,
    write_demo_data,
)
from llmrec.data.demo_vocabulary import PATH_DOMAINS, STAPLES, TASTES
from llmrec.data.errors import DataError


@pytest.fixture(scope="module")
def items() -> pl.DataFrame:
    return demo_items()


@pytest.fixture(scope="module")
def interactions() -> pl.DataFrame:
    return demo_interactions()


def test_items_are_a_few_hundred_in_several_domains(items: pl.DataFrame) -> None:
    assert items.columns == ["item_id", "title", "domain"]
    assert 200 <= items.height <= 500
    assert items["domain"].n_unique() >= 3
    assert items["item_id"].is_unique().all() and items["title"].is_unique().all()
    assert items.group_by("domain").len()["len"].min() >= 30  # type: ignore[operator]


def test_titles_are_as_clean_as_a_shop_writes_them(items: pl.DataFrame) -> None:
    titles = items["title"]
    assert (titles == titles.str.strip_chars()).all()
    assert not titles.str.contains(r"\s\s|[<>;]").any()
    assert titles.str.len_chars().is_between(8, 120).all()


def test_every_taste_goes_the_same_way_round_the_domains() -> None:
    assert {len(path) for path in TASTES.values()} == {len(PATH_DOMAINS)}
    assert all(3 <= len(wordings) <= 4 for path in TASTES.values() for wordings in path)
    assert set(STAPLES) == set(PATH_DOMAINS)


def test_interactions_are_ordered_and_known(interactions: pl.DataFrame, items: pl.DataFrame) -> None:
    assert interactions.columns == ["user_id", "item_id", "domain", "timestamp"]
    assert interactions.equals(interactions.sort("user_id", "timestamp"))
    assert interactions.select("user_id", "timestamp").is_unique().all()
    assert interactions.select("user_id", "item_id").is_unique().all(), "nothing is bought twice"
    joined = interactions.join(items, on=["item_id", "domain"], how="inner")
    assert joined.height == interactions.height, "every interaction has its item, in the same domain"
    per_user = interactions.group_by("user_id").agg(pl.len(), pl.col("domain").n_unique())
    assert per_user.height == 800
    assert per_user["len"].min() >= 5  # type: ignore[operator]
    assert (per_user["domain"] > 1).mean() > 0.95  # type: ignore[operator]


def test_the_same_seed_gives_the_same_data_and_another_seed_other_customers(interactions: pl.DataFrame) -> None:
    assert demo_interactions().equals(interactions)
    assert demo_items().equals(demo_items())
    assert not demo_interactions(seed=1).equals(interactions)


def test_more_customers_leave_the_first_ones_alone(interactions: pl.DataFrame) -> None:
    few = demo_interactions(users=20)
    assert few.equals(interactions.head(few.height))


def test_new_arrivals_are_cold(interactions: pl.DataFrame) -> None:
    arrivals = [item.item_id for arrivals in Shop().arrivals for item in arrivals]
    position = pl.int_range(pl.len()).over("user_id")
    from_the_end = (pl.len().over("user_id") - 1 - position).alias("from_the_end")
    bought = interactions.with_columns(from_the_end, pl.col("item_id").is_in(arrivals).alias("arrival"))
    assert not bought.filter(pl.col("from_the_end") > 1)["arrival"].any(), "never in a training history"
    cold = bought.filter(pl.col("from_the_end") == 0)["arrival"].mean()
    assert 0.05 < cold < 0.3  # type: ignore[operator]
    first_arrival = bought.filter("arrival")["timestamp"].min()
    assert first_arrival > bought.filter(pl.col("from_the_end") > 1)["timestamp"].max()  # type: ignore[operator]


def test_a_few_products_lead(interactions: pl.DataFrame) -> None:
    counts = interactions.group_by("item_id").len()["len"].sort(descending=True)
    top_tenth = counts.head(counts.len() // 10).sum() / counts.sum()
    assert 0.2 < top_tenth < 0.6


def test_order_carries_signal(interactions: pl.DataFrame) -> None:
    """A kind is followed by the next of its taste far more often than by the one before."""
    shop = Shop()
    kind_of = {
        item.item_id: kind
        for products in (shop.opening, shop.arrivals)
        for kind, items in enumerate(products)
        for item in items
    }
    kinds = interactions["item_id"].replace_strict(kind_of, return_dtype=pl.Int64)
    pairs = interactions.select("user_id").with_columns(kind=kinds, following=kinds.shift(-1))
    pairs = pairs.filter(pl.col("user_id") == pl.col("user_id").shift(-1))
    taste, step = pl.col("kind") // len(PATH_DOMAINS), pl.col("kind") % len(PATH_DOMAINS)
    ahead = (pl.col("following") == pl.col("kind") + 1) & (step < len(PATH_DOMAINS) - 1)
    behind = (pl.col("following") == pl.col("kind") - 1) & (step > 0)
    within = pairs.filter(taste < len(TASTES))
    assert within.select(ahead.mean()).item() > 0.4
    assert within.select(behind.mean()).item() < 0.02


def test_files_are_written_whole_and_never_over_others(tmp_path: Path) -> None:
    write_demo_data(tmp_path / "shop", users=7, seed=3)
    assert pl.read_csv(tmp_path / "shop" / INTERACTIONS_FILE).equals(demo_interactions(users=7, seed=3))
    assert pl.read_csv(tmp_path / "shop" / ITEMS_FILE).equals(demo_items())
    assert [path.name for path in tmp_path.iterdir()] == ["shop"], "nothing half written stays beside it"
    with pytest.raises(DataError, match="not a new or empty folder"):
        write_demo_data(tmp_path / "shop", users=8)
    assert pl.read_csv(tmp_path / "shop" / INTERACTIONS_FILE)["user_id"].n_unique() == 7


def test_a_shop_without_customers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="users must be at least 1, not 0"):
        write_demo_data(tmp_path / "shop", users=0)
    assert not (tmp_path / "shop").exists()
