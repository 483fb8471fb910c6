"""The working state between two steps: interactions as integer codes over tables of users and items."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from llmrec.data.columns import Columns
from llmrec.data.hashing import rows_digest, string_keys

USER_CODE = "user"
ITEM_CODE = "item"


@dataclass(frozen=True)
class Interactions:
    """Interactions of all sources.

    Attributes:
        users: String, sorted; code u is row u. Every user has at least one event.
        items: item_id, title, domain (String), sorted by (domain, item_id); code i is row i.
        events: user (UInt32), item (UInt32), timestamp and/or order (Int64), perhaps rating; one row an
            interaction, in the order in which the sources were read.
        user_keys: uint64 hash of each user id.
        item_keys: uint64 hash of each item's id, domain and title.
    """

    users: pl.Series
    items: pl.DataFrame
    events: pl.DataFrame
    user_keys: np.ndarray
    item_keys: np.ndarray

    @classmethod
    def build(cls, users: pl.Series, items: pl.DataFrame, events: pl.DataFrame) -> Interactions:
        """Make the state and hash its ids."""
        return cls(users, items, events, string_keys(users), item_keys(items))

    @property
    def user_codes(self) -> np.ndarray:
        """User code of each event, uint32."""
        return self.events[USER_CODE].to_numpy()

    @property
    def item_codes(self) -> np.ndarray:
        """Item code of each event, uint32."""
        return self.events[ITEM_CODE].to_numpy()

    @property
    def domain_names(self) -> list[str]:
        """Names of the domains in the items table, sorted."""
        return self.items[Columns.DOMAIN].unique().sort().to_list()

    @property
    def domain_codes(self) -> np.ndarray:
        """Domain of each ITEM as an index into `domain_names`, int32."""
        names = pl.Enum(self.domain_names)
        return self.items[Columns.DOMAIN].cast(names).to_physical().cast(pl.Int32).to_numpy()

    @property
    def has_time(self) -> bool:
        """Whether events carry a timestamp."""
        return Columns.TIMESTAMP in self.events.columns

    def with_items(self, items: pl.DataFrame) -> Interactions:
        """Replace the items table by one of the same rows with other titles."""
        return replace(self, items=items, item_keys=item_keys(items))

    def keep(self, events: np.ndarray | None = None, items: np.ndarray | None = None) -> Interactions:
        """Keep some events and items; users without an event go, and all codes are renumbered.

        Args:
            events: boolean mask over events; None keeps all.
            items: boolean mask over items; None keeps all. Events of a dropped item go too.
        """
        mask = np.ones(self.events.height, dtype=bool) if events is None else events
        if items is not None:
            mask = mask & items[self.item_codes]
        kept = self.events if mask.all() else self.events.filter(pl.Series(mask))
        alive = np.zeros(len(self.users), dtype=bool)
        alive[kept[USER_CODE].to_numpy()] = True
        kept = kept.with_columns(_renumbered(kept[USER_CODE], alive))
        if items is not None:
            kept = kept.with_columns(_renumbered(kept[ITEM_CODE], items))
        return Interactions(
            users=self.users.filter(pl.Series(alive)),
            items=self.items if items is None else self.items.filter(pl.Series(items)),
            events=kept,
            user_keys=self.user_keys[alive],
            item_keys=self.item_keys if items is None else self.item_keys[items],
        )

    def active_items(self) -> int:
        """Count the items with at least one event."""
        return int(np.count_nonzero(np.bincount(self.item_codes, minlength=self.items.height)))

    def digest(self) -> str:
        """Hash all events (user, item, time) and the items table; the order of rows does not count."""
        times = [self.events[name] for name in (Columns.TIMESTAMP, Columns.ORDER) if name in self.events.columns]
        pairs = [(self.user_codes, self.user_keys), (self.item_codes, self.item_keys)]
        rows = "-".join(rows_digest(pairs, time.to_numpy()) for time in times)
        numbers = np.arange(self.items.height)
        table = rows_digest([(numbers, self.item_keys)], np.zeros(self.items.height, dtype=np.int64))
        return f"{string_keys([f'{self.events.height} {rows} {self.items.height} {table}'])[0]:016x}"


def item_keys(items: pl.DataFrame) -> np.ndarray:
    """Hash each row of an items table: id, domain and title, so that a changed title counts."""
    columns = (items[Columns.ITEM], items[Columns.DOMAIN], items[Columns.TITLE].fill_null(""))
    return string_keys("\x1f".join(row) for row in zip(*columns, strict=True))


def _renumbered(codes: pl.Series, alive: np.ndarray) -> pl.Series:
    if alive.all():
        return codes
    numbers = np.cumsum(alive, dtype=np.int64) - 1
    return pl.Series(codes.name, numbers.astype(np.uint32)[codes.to_numpy()])
