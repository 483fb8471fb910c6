"""Everything that `prepare` can be told as one dataclass, for the command line and for YAML files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llmrec.data.errors import DataError
from llmrec.data.prepare import prepare
from llmrec.data.prepared import PreparedData
from llmrec.data.source import Source


@dataclass
class PrepareOptions:
    """Sources and steps. Give either `interactions` (with `items`) or `sources`.

    Attributes:
        interactions: file with the interactions of all domains (or of the only one).
        items: file with the items.
        sources: one text a domain, `DOMAIN=interactions[,items]`.
        data_format: `tables`, `amazon-2018`, `amazon-2023` or `movielens`.
        columns: for `tables`, our column name to the file's; `items.` before ours means the items file only.
        time_unit: for `tables`, the unit of numeric timestamps, `s` or `ms`.
        name: what the data card calls the data; by default the output folder's name.

    The other fields are the arguments of `llmrec.data.prepare.prepare`.
    """

    interactions: str | None = None
    items: str | None = None
    sources: Sequence[str] = ()
    data_format: str = "tables"
    columns: Mapping[str, str] = field(default_factory=dict)
    time_unit: str = "s"
    name: str | None = None
    domains: Sequence[str] | None = None
    k_core: int = 5
    k_core_scope: str = "merged"
    untitled: str = "drop"
    missing_items: str = "error"
    order_policy: str = "time"
    split: str = "leave-one-out"
    quantiles: Sequence[float] = (0.8, 0.9)
    cuts: Sequence[str] | None = None
    max_users: int | None = None
    overwrite: bool = False

    def make_sources(self) -> list[Source]:
        """Turn the texts into sources.

        Raises:
            DataError: neither or both ways of naming files, or a text that is not
                `DOMAIN=interactions[,items]`.
        """
        if (self.interactions is None) == (not self.sources):
            raise DataError("give either interactions (with items) or sources as DOMAIN=interactions[,items]")
        if self.interactions is not None:
            return [self._source(None, self.interactions, self.items)]
        if self.items is not None:
            raise DataError(
                "items are given beside sources",
                advice="Write them into each source: DOMAIN=interactions,items",
            )
        return [self._parse(text) for text in self.sources]

    def _parse(self, text: str) -> Source:
        domain, equals, files = text.partition("=")
        interactions, _, items = files.partition(",")
        if not (domain.strip() and equals and interactions):
            raise DataError(f"source '{text}' is not of the form DOMAIN=interactions[,items]")
        return self._source(domain.strip(), interactions, items or None)

    def _source(self, domain: str | None, interactions: str, items: str | None) -> Source:
        return Source(
            interactions=Path(interactions),
            items=None if items is None else Path(items),
            domain=domain,
            data_format=self.data_format,
            columns=self.columns,
            time_unit=self.time_unit,
        )


def prepare_from_options(
    options: PrepareOptions, output: str | os.PathLike[str], *, echo: Callable[[str], None] | None = None
) -> PreparedData:
    """Prepare data as the options say; see `llmrec.data.prepare.prepare` for steps, errors and warnings."""
    return prepare(
        options.make_sources(),
        output,
        name=options.name,
        domains=options.domains,
        k_core=options.k_core,
        k_core_scope=options.k_core_scope,
        untitled=options.untitled,
        missing_items=options.missing_items,
        order_policy=options.order_policy,
        split=options.split,
        quantiles=options.quantiles,
        cuts=options.cuts,
        max_users=options.max_users,
        overwrite=options.overwrite,
        echo=echo,
    )
