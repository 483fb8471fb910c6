"""The demo's data: made-up customers of a made-up shop, drawn by a known process.

A customer follows two tastes along the paths of `demo_vocabulary.TASTES`, each purchase one step further on one of
them, and buys staples in between. The last purchases fall after a launch date, when new products join the shop: those
are cold, since no training history holds them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import polars as pl

from llmrec.data.demo_vocabulary import AUTHORS, BOOKS, BRANDS, DETAILS, PATH_DOMAINS, STAPLES, TASTES
from llmrec.data.errors import DataError
from llmrec.data.folders import new_folder

INTERACTIONS_FILE = "interactions.csv"
ITEMS_FILE = "items.csv"

N_OPENING_WORDINGS = 3
"""How many wordings of a kind are on sale from the beginning; later ones arrive at the launch."""

START_DAY = datetime(2022, 1, 3, tzinfo=timezone.utc)
LAUNCH_DAY = datetime(2023, 9, 1, tzinfo=timezone.utc)
END_DAY = datetime(2023, 12, 24, tzinfo=timezone.utc)

# The process, tuned so that popularity and an untuned backbone stay far below what learning reaches.
P_STAPLE = 0.08  # a purchase outside every taste
P_SAME_TASTE = 0.75  # the next step is on the taste of the last one, else on the customer's other taste
MAX_FIRST_STEP = 4  # on a path, where a customer's first purchase may be
P_DETAIL = 0.3  # a title names a size, colour or edition
P_NEW_ARRIVAL = 0.3  # after the launch, of a kind that has one
MIN_PURCHASES, MAX_PURCHASES = 5, 10
VARIANT_WEIGHTS = np.array([0.7, 0.2, 0.1])  # of a kind's products: one leads, as in any shop


@dataclass(frozen=True)
class Item:
    """One product."""

    item_id: str
    title: str
    domain: str


class Shop:
    """The demo's catalogue, the same for every seed of customers."""

    def __init__(self) -> None:
        generator = np.random.default_rng(20231022)
        kinds = [kind for path in TASTES.values() for kind in zip(PATH_DOMAINS, path, strict=True)]
        self.first_staple = len(kinds)
        kinds.extend(STAPLES.items())
        self.opening: list[list[Item]] = []
        self.arrivals: list[list[Item]] = []
        for number, (domain, wordings) in enumerate(kinds):
            late_from = N_OPENING_WORDINGS if number < self.first_staple else len(wordings)
            items = [
                Item(f"{domain[:2].upper()}{number:03d}{place}", _title(wording, domain, generator), domain)
                for place, wording in enumerate(wordings)
            ]
            self.opening.append(items[:late_from])
            self.arrivals.append(items[late_from:])

    @property
    def items(self) -> list[Item]:
        """All products, those of one kind together."""
        return [item for pair in zip(self.opening, self.arrivals, strict=True) for items in pair for item in items]

    def pick(self, kind: int, after_launch: bool, generator: np.random.Generator) -> Item:
        """Draw a product of a kind."""
        if after_launch and self.arrivals[kind] and generator.random() < P_NEW_ARRIVAL:
            return self.arrivals[kind][generator.integers(len(self.arrivals[kind]))]
        on_sale = self.opening[kind]
        weights = VARIANT_WEIGHTS if len(on_sale) == len(VARIANT_WEIGHTS) else np.ones(len(on_sale))
        return on_sale[generator.choice(len(on_sale), p=weights / weights.sum())]


def _title(wording: str, domain: str, generator: np.random.Generator) -> str:
    detail = str(generator.choice(DETAILS[domain]))
    if domain == BOOKS:
        title = f"{wording} by {generator.choice(AUTHORS)}"
        return f"{title} ({detail})" if generator.random() < P_DETAIL else title
    title = f"{generator.choice(BRANDS[domain])} {wording}"
    return f"{title}, {detail}" if generator.random() < P_DETAIL else title


class Customer:
    """Somebody with two tastes, on the way along their paths."""

    def __init__(self, shop: Shop, generator: np.random.Generator) -> None:
        self.shop = shop
        self.generator = generator
        # Some pastimes are widespread: weights fall by half from the first to the last.
        weights = np.linspace(2.0, 1.0, len(TASTES))
        self.tastes = [int(t) for t in generator.choice(len(TASTES), size=2, replace=False, p=weights / weights.sum())]
        self.steps = [int(generator.integers(0, MAX_FIRST_STEP + 1)) for _ in self.tastes]
        self.current = 0
        self.bought: set[str] = set()

    def buy(self, after_launch: bool) -> Item:
        """The next purchase; nothing is bought twice."""
        while True:
            item = self.shop.pick(self._next_kind(), after_launch, self.generator)
            if item.item_id not in self.bought:
                self.bought.add(item.item_id)
                return item

    def _next_kind(self) -> int:
        if self.generator.random() < P_STAPLE:
            return self.shop.first_staple + int(self.generator.integers(len(STAPLES)))
        if self.generator.random() >= P_SAME_TASTE:
            self.current = 1 - self.current
        step = self.steps[self.current]
        self.steps[self.current] = (step + 1) % len(PATH_DOMAINS)  # who has come to the end begins afresh
        return self.tastes[self.current] * len(PATH_DOMAINS) + step


def demo_items() -> pl.DataFrame:
    """The items on sale: columns item_id, title, domain (strings), one row an item."""
    items = Shop().items
    return pl.DataFrame(
        {
            "item_id": [item.item_id for item in items],
            "title": [item.title for item in items],
            "domain": [item.domain for item in items],
        }
    )


def demo_interactions(*, users: int = 800, seed: int = 0) -> pl.DataFrame:
    """Draw the purchases of `users` customers.

    Returns:
        Columns user_id, item_id, domain (strings) and timestamp (int64, seconds since 1970, rising strictly within
        a user); rows ordered by user and time. Customer number i is the same whatever the number of users.

    Raises:
        ValueError: `users` is below 1.
    """
    if users < 1:
        raise ValueError(f"users must be at least 1, not {users}")
    shop = Shop()
    rows: list[tuple[str, str, str, int]] = []
    for number in range(users):
        generator = np.random.default_rng((seed, number))
        customer = Customer(shop, generator)
        for timestamp, after_launch in _purchase_times(generator):
            item = customer.buy(after_launch)
            rows.append((f"U{number:05d}", item.item_id, item.domain, timestamp))
    return pl.DataFrame(rows, schema=["user_id", "item_id", "domain", "timestamp"], orient="row")


def _purchase_times(generator: np.random.Generator) -> list[tuple[int, bool]]:
    """Seconds since 1970 of a customer's purchases, and whether the launch was past.

    The last purchase is always after the launch, in every third customer the last but one too: under leave-one-out
    new arrivals are then targets of validation and test, and never in a training history.
    """
    count = int(generator.integers(MIN_PURCHASES, MAX_PURCHASES + 1))
    late = 1 + int(generator.random() < 1 / 3)
    start, launch, end = (int(day.timestamp()) for day in (START_DAY, LAUNCH_DAY, END_DAY))
    before = np.sort(generator.choice(launch - start, size=count - late, replace=False)) + start
    after = np.sort(generator.choice(end - launch, size=late, replace=False)) + launch
    return [(int(time), False) for time in before] + [(int(time), True) for time in after]


def write_demo_data(folder: Path | str, *, users: int = 800, seed: int = 0) -> None:
    """Write `interactions.csv` and `items.csv` (see `demo_interactions`, `demo_items`) as a new folder.

    Args:
        folder: must be new or empty.
        users: number of customers.
        seed: of the customers; the items are always the same.

    Raises:
        DataError: the folder holds something already; nothing is written then.
        ValueError: `users` is below 1.
    """
    folder = Path(folder)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise DataError("the output is not a new or empty folder", file=folder, advice="Choose another output")
    interactions = demo_interactions(users=users, seed=seed)
    with new_folder(folder) as content:
        interactions.write_csv(content / INTERACTIONS_FILE)
        demo_items().write_csv(content / ITEMS_FILE)
