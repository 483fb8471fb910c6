"""Evaluate several systems on the same users: ranks, metrics, table and files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from llmrec.evaluation.groups import HISTORY_GROUPS, history_codes
from llmrec.evaluation.histories import Histories
from llmrec.evaluation.intervals import Bootstrap
from llmrec.evaluation.metrics import metric_names
from llmrec.evaluation.protocols import Protocol, get_protocol
from llmrec.evaluation.ranker import RankResult, collapse_message, rank, small_domains
from llmrec.evaluation.results import RANKS_SCHEMA, check_free, data_block, ranks_to_rows, write_results
from llmrec.evaluation.table import text_table
from llmrec.retrieval.scorers import PopularityScorer, Scorer

if TYPE_CHECKING:
    from llmrec.data.catalogue import Catalogue
    from llmrec.data.prepared import PreparedData

POPULARITY = "popularity"
UNTUNED = "untuned"
TUNED = "tuned"
RANK_RULE = "0-based, expected under ties: candidates scored higher + 0.5 x other candidates scored the same"


@dataclass(frozen=True)
class EvaluationData:
    """One split to evaluate on.

    Attributes:
        split: its name.
        user_ids: of all U users.
        histories: of all U users, whole.
        targets: int64 (U,), item index of each user's target.
        catalogue: the items.
        card: the data card, for results.json.
    """

    split: str
    user_ids: Sequence[str]
    histories: Histories
    targets: np.ndarray
    catalogue: Catalogue
    card: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_prepared(cls, prepared: PreparedData, split: str = "test") -> EvaluationData:
        """The "validation" or "test" split of prepared data.

        Raises:
            ValueError: another split (training histories have no target).
        """
        if split not in ("validation", "test"):
            raise ValueError(f"split {split!r} cannot be evaluated: choose validation or test")
        table = getattr(prepared, split).with_format("arrow")[:]
        return cls(
            split=split,
            user_ids=table["user_id"].to_pylist(),
            histories=Histories.of(table["history"]),
            targets=table["target"].to_numpy().astype(np.int64),
            catalogue=prepared.catalogue,
            card=prepared.card,
        )

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        rows: the rows of results.json.
        ranks: the table of ranks.parquet.
        protocol: the "protocol" block of results.json.
        data: the "data" block.
    """

    rows: list[dict[str, Any]]
    ranks: pl.DataFrame
    protocol: dict[str, Any]
    data: dict[str, Any]

    def frame(self) -> pl.DataFrame:
        """The rows as a table."""
        return pl.DataFrame(self.rows, infer_schema_length=None)

    def value(self, system: str, protocol: str, metric: str, group_by: str = "overall", group: str = "users") -> float:
        """One number.

        Raises:
            KeyError: there is no such row.
        """
        wanted = (system, protocol, group_by, group, metric)
        for row in self.rows:
            if (row["system"], row["protocol"], row["group_by"], row["group"], row["metric"]) == wanted:
                return row["value"]
        raise KeyError(wanted)

    def table(self) -> str:
        """The table for the terminal: overall and per domain."""
        described = {name: block["description"] for name, block in self.protocol["protocols"].items()}
        return text_table(self.rows, descriptions=described)

    def save(
        self,
        folder: str | Path,
        *,
        command: Sequence[str] | None = None,
        overwrite: bool = False,
        report: bool = True,
        extra: dict[str, Any] | None = None,
    ) -> Path:
        """Write results.json and ranks.parquet, and report.md with its plots.

        Args:
            folder: made if it does not exist.
            command: the command line to store; this process's by default.
            overwrite: replace results that are there.
            report: write the report too.
            extra: further keys of results.json, for instance facts about the training.

        Returns:
            The folder.

        Raises:
            ResultsError: the folder holds results already.
        """
        folder = Path(folder)
        check_free(folder, overwrite)
        write_results(
            folder,
            ranks=self.ranks,
            rows=self.rows,
            protocol=self.protocol,
            data=self.data,
            command=this_command() if command is None else command,
            overwrite=overwrite,
            extra=extra,
        )
        if report:
            from llmrec.evaluation.report import write_report

            write_report(folder)
        return folder


def this_command() -> list[str]:
    """The command line of this process; the program without the folder it is installed in."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


def sample_rows(n_users: int, max_users: int | None, seed: int = 0) -> np.ndarray:
    """Row numbers of a fixed random sample of users, sorted, int64; all users if there are not more.

    Raises:
        ValueError: `max_users` < 1.
    """
    if max_users is not None and max_users < 1:
        raise ValueError(f"max_users must be at least 1, got {max_users}")
    if max_users is None or max_users >= n_users:
        return np.arange(n_users)
    return np.sort(np.random.default_rng(seed).choice(n_users, max_users, replace=False))


def evaluate_systems(
    scorers: Sequence[Scorer],
    data: EvaluationData,
    protocols: Sequence[str | Protocol] = ("sampled", "full"),
    *,
    rows: np.ndarray | None = None,
    seed: int | None = None,
    popularity: bool = True,
    bootstrap: Bootstrap | None = None,
    progress: bool = True,
    merge: Callable[[RankResult], RankResult] | None = None,
) -> Evaluation:
    """Rank the same users with several systems.

    Args:
        scorers: the systems; names must differ.
        data: the split.
        protocols: names of presets, or protocols.
        rows: int (R,), row numbers of the users to rank here; all by default. With `merge`, this process's
            share.
        seed: replaces the seed of the protocols' draws.
        popularity: put the popularity system first, unless `scorers` holds one of that name.
        bootstrap: how intervals are made.
        progress: show progress bars.
        merge: for several processes: gathers the shares of one ranking from all of them and returns the whole
            (`RankResult.merge`). Called in the same order in each process.

    Returns:
        The ranks and all metrics.

    Raises:
        ValueError: two systems or protocols share a name; and what `rank` and the scorers refuse.
    """
    bootstrap = bootstrap or Bootstrap()
    chosen = [get_protocol(protocol, seed=seed) for protocol in protocols]
    catalogue = data.catalogue
    systems = list(scorers)
    if popularity and all(scorer.name != POPULARITY for scorer in systems):
        systems.insert(0, PopularityScorer(POPULARITY, catalogue.train_count))
    for kind, names in (("systems", [s.name for s in systems]), ("protocols", [p.name for p in chosen])):
        if not names or len(set(names)) != len(names):
            raise ValueError(f"{kind} need different names, and at least one: got {names}")
    domain_codes, domain_names = np.asarray(catalogue.domain_codes), list(catalogue.domain_names)
    target_domains = domain_codes[data.targets]
    tables: list[pl.DataFrame] = []
    notes: list[str] = []
    blocks: dict[str, dict[str, Any]] = {}
    ranked = np.empty(0, dtype=np.int64)
    for scorer in systems:
        for protocol in chosen:
            result = rank(
                scorer,
                histories=data.histories,
                targets=data.targets,
                domain_codes=domain_codes,
                protocol=protocol,
                rows=rows,
                progress=progress,
                domain_names=domain_names,
            )
            if merge is not None:
                result = merge(result)
            ranked = result.rows
            if len(ranked) == 0:
                raise ValueError("no users to evaluate")
            message = collapse_message(scorer, result)
            if message is not None:
                notes.append(f"{message} (protocol {protocol.name!r})")
            if protocol.name not in blocks:
                small = small_domains(protocol, target_domains[ranked], result.candidates, domain_names)
                blocks[protocol.name] = {**protocol.to_dict(), "small_domains": small}
            tables.append(_rank_table(scorer.name, protocol.name, result, data))
    ranks = pl.concat(tables)
    return Evaluation(
        rows=ranks_to_rows(ranks, bootstrap=bootstrap, progress=progress),
        ranks=ranks,
        protocol={
            "split": data.split,
            "users": len(ranked),
            "users_in_split": len(data),
            "rank": RANK_RULE,
            "scores": "float32",
            "metrics": metric_names(),
            "protocols": blocks,
            "intervals": bootstrap.to_dict(),
            "groups": {
                "overall": "users: mean over users; domains: plain mean of the domains' means",
                "domain": "domain of the target",
                "popularity": "interactions of the target in the training split",
                "history": "domains of the whole history against the target's",
            },
            "notes": notes,
        },
        data=data_block(data.card, split=data.split, users=len(data), items=len(domain_codes), domains=domain_names),
    )


def _rank_table(system: str, protocol: str, result: RankResult, data: EvaluationData) -> pl.DataFrame:
    """The rows of ranks.parquet of one system under one protocol."""
    catalogue, rows = data.catalogue, result.rows
    targets = data.targets[rows]
    domain_codes = np.asarray(catalogue.domain_codes)
    histories = history_codes(data.histories, data.targets, domain_codes, rows)
    domain_names = catalogue.domain_names
    return pl.DataFrame(
        {
            "system": [system] * len(rows),
            "protocol": [protocol] * len(rows),
            "user_id": [data.user_ids[row] for row in rows],
            "item_id": [catalogue.item_ids[target] for target in targets],
            "domain": [domain_names[code] for code in domain_codes[targets]],
            "rank": result.ranks,
            "candidates": result.candidates,
            "train_count": np.asarray(catalogue.train_count)[targets].astype(np.int64),
            "history_domains": [HISTORY_GROUPS[code] for code in histories],
        },
        schema=RANKS_SCHEMA,
    )
