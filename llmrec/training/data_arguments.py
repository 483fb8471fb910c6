"""Arguments of the data: a prepared folder, and how it is made."""

from __future__ import annotations

from dataclasses import dataclass, field

from llmrec.data.options import PrepareOptions


@dataclass
class DataArguments:
    """Prepared data, and how it is prepared where the folder does not exist yet (see `PrepareOptions`)."""

    data: str | None = field(
        default=None,
        metadata={"help": "Folder of prepared data; made from the raw files if it does not exist."},
    )
    interactions: str | None = field(default=None, metadata={"help": "Raw interactions of all domains."})
    items: str | None = field(default=None, metadata={"help": "Raw items and titles that belong to them."})
    sources: list[str] = field(
        default_factory=list,
        metadata={"help": "Raw files of one domain each, DOMAIN=interactions[,items], instead of the two above."},
    )
    data_format: str = field(
        default="tables",
        metadata={"help": "Format of the raw files: tables, amazon-2018, amazon-2023, movielens."},
    )
    columns: list[str] = field(
        default_factory=list, metadata={"help": "Names of the columns in raw tables, each OURS=THEIRS."}
    )
    time_unit: str = field(default="s", metadata={"help": "Unit of numeric timestamps in raw tables: s or ms."})
    domains: list[str] | None = field(default=None, metadata={"help": "Keep these domains only."})
    k_core: int = field(default=5, metadata={"help": "Least interactions of every user and item; 0 for no k-core."})
    k_core_scope: str = field(
        default="merged",
        metadata={"help": "Count interactions over all domains (merged) or in each (domain)."},
    )
    untitled: str = field(default="drop", metadata={"help": "Items without a title: drop or keep."})
    missing_items: str = field(
        default="error",
        metadata={"help": "Items of interactions that the items file lacks: error or untitled."},
    )
    order_policy: str = field(
        default="time", metadata={"help": "Order of a user's events: time, interleave or domain-blocks."}
    )
    split: str = field(default="leave-one-out", metadata={"help": "leave-one-out or global-time."})
    quantiles: list[float] = field(
        default_factory=lambda: [0.8, 0.9],
        metadata={"help": "For global-time: shares of the interactions before the two windows."},
    )
    cuts: list[str] | None = field(
        default=None, metadata={"help": "For global-time: the two moments themselves, such as 2014-01-01."}
    )
    max_users: int | None = field(
        default=None, metadata={"help": "Keep this many users, chosen by a hash of their id."}
    )

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("data is not given: name the folder of prepared data, for example --data prepared/shop")
        for column in self.columns:
            if not all(column.partition("=")):
                raise ValueError(f"columns: {column!r} is not of the form OURS=THEIRS")

    @property
    def has_raw_files(self) -> bool:
        """Whether the arguments say what to prepare the data from."""
        return bool(self.interactions or self.sources)

    def prepare_options(self) -> PrepareOptions:
        """The same for `llmrec.data.options.prepare_from_options`."""
        shared = {name: getattr(self, name) for name in PrepareOptions.__dataclass_fields__ if hasattr(self, name)}
        return PrepareOptions(**{**shared, "columns": dict(column.split("=", 1) for column in self.columns)})
