"""From interactions and items to a folder of prepared data: reads, runs the steps, splits, writes."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llmrec.data.assemble import assemble_histories, train_counts
from llmrec.data.card import render_card
from llmrec.data.catalogue import Catalogue
from llmrec.data.choose_domains import keep_domains
from llmrec.data.columns import Columns
from llmrec.data.duplicates import drop_duplicates
from llmrec.data.encode import MISSING_ITEMS, encode_source, merge_sources
from llmrec.data.errors import DataError, LeakageWarning
from llmrec.data.folders import check_output, new_folder
from llmrec.data.k_core import SCOPES
from llmrec.data.k_core import k_core as apply_k_core
from llmrec.data.leakage import leakage_message, measure_leakage
from llmrec.data.order import ORDER_POLICIES, order_events
from llmrec.data.prepared import (
    CARD_FILE,
    CATALOGUE_FILE,
    HISTORIES_FOLDER,
    README_FILE,
    SCHEMA_VERSION,
    PreparedData,
    content_hash,
    load_prepared,
)
from llmrec.data.readers import read_source
from llmrec.data.sample_users import sample_users
from llmrec.data.source import RawData, Source
from llmrec.data.splits import SPLITS, split_events
from llmrec.data.statistics import describe_data
from llmrec.data.steps import StepLog
from llmrec.data.titles import UNTITLED, clean_item_titles, handle_untitled


def prepare(
    sources: Sequence[Source | RawData],
    output: str | os.PathLike[str],
    *,
    name: str | None = None,
    domains: Sequence[str] | None = None,
    k_core: int = 5,
    k_core_scope: str = "merged",
    untitled: str = "drop",
    missing_items: str = "error",
    order_policy: str = "time",
    split: str = "leave-one-out",
    quantiles: Sequence[float] = (0.8, 0.9),
    cuts: Sequence[str] | None = None,
    max_users: int | None = None,
    overwrite: bool = False,
    echo: Callable[[str], None] | None = None,
) -> PreparedData:
    """Prepare data for training and evaluation.

    Args:
        sources: files, or tables already read; their users merge over ids. Where two events of a user have
            the same time, the order of sources and of rows in them decides.
        output: the folder to write; it appears whole or not at all.
        name: what the data card calls the data; by default the folder's name.
        domains: keep these domains only; None keeps all.
        k_core: least interactions of every user and item; 0 for no k-core, and then items without any stay
            too.
        k_core_scope: `merged` (count over all domains, as the paper) or `domain`.
        untitled: `drop` items without a title, or `keep` them under the title `None` as the paper's code
            does.
        missing_items: `error`, or `untitled` to treat an item without a row in the catalogue as one without a
            title.
        order_policy: `time`, `interleave` or `domain-blocks` (see `llmrec.data.order`).
        split: `leave-one-out` or `global-time` (see `llmrec.data.splits`).
        quantiles: for `global-time`: shares of the interactions before the validation and the test window.
        cuts: for `global-time`: the two moments themselves instead.
        max_users: keep so many users, chosen by a hash of their id after the k-core; the catalogue stays
            whole.
        overwrite: replace an output folder that holds prepared data.
        echo: is called with each line of the table of steps, for example `print`.

    Returns:
        the prepared data, loaded back from the folder.

    Raises:
        DataError: bad input or options; nothing is written then.

    Warns:
        LeakageWarning: `leave-one-out` trains on events that are later than other users' test targets.
    """
    output = Path(output)
    _check_choices(k_core_scope, untitled, missing_items, order_policy, split)
    check_output(output, overwrite=overwrite, marker=CARD_FILE)
    if not sources:
        raise DataError("no sources given", advice="Give at least one file of interactions")

    descriptions: dict[str, dict[str, Any]] = {}
    encoded = []
    for number, source in enumerate(sources, start=1):
        raw = source if isinstance(source, RawData) else read_source(source)
        descriptions[_source_name(raw, number, descriptions)] = dict(raw.description)
        encoded.append(encode_source(raw, missing_items))
        del raw  # the strings of one source must not lie beside those of the next
    log = StepLog(echo)
    state = log.record("read", merge_sources(encoded))
    del encoded
    if domains is not None:
        state = log.record(f"domains {', '.join(domains)}", keep_domains(state, domains))
    state = log.record("exact duplicates dropped", drop_duplicates(state))
    state = log.record("titles cleaned", clean_item_titles(state))
    word = "dropped" if untitled == "drop" else "kept as 'None'"
    state = log.record(f"untitled items {word}", handle_untitled(state, untitled))
    if state.events.is_empty():
        raise DataError("nothing left: no item with interactions has a title", column=Columns.TITLE)
    step = f"{k_core}-core ({k_core_scope})" if k_core else "no k-core"
    state = log.record(step, apply_k_core(state, k_core, k_core_scope))
    if max_users is not None:
        state = log.record(f"sample of {max_users:,} users", sample_users(state, max_users))
    state = order_events(state, order_policy)
    cut = split_events(state, split, order_policy=order_policy, quantiles=quantiles, cuts=cuts)

    histories = assemble_histories(state, cut)
    counts = train_counts(state, cut)
    catalogue = Catalogue.from_frame(state.items.with_columns(train_count=counts))
    statistics = describe_data(state, histories, counts)
    statistics["split_facts"] = cut.facts
    if split == "leave-one-out":
        statistics["leakage"] = measure_leakage(state, cut)
        statistics["leakage_warning"] = leakage_message(statistics["leakage"])
        if statistics["leakage_warning"]:
            warnings.warn(statistics["leakage_warning"], LeakageWarning, stacklevel=2)
    del state, cut
    card = {
        "schema": SCHEMA_VERSION,
        "name": name or output.absolute().name,
        "sources": descriptions,
        "options": {
            "domains": None if domains is None else list(domains),
            "k_core": k_core,
            "k_core_scope": k_core_scope,
            "untitled": untitled,
            "missing_items": missing_items,
            "order_policy": order_policy,
            "split": split,
            "quantiles": list(quantiles) if split == "global-time" and cuts is None else None,
            "cuts": list(cuts) if split == "global-time" and cuts is not None else None,
            "max_users": max_users,
        },
        "order_policy": order_policy,
        "split": split,
        "steps": log.rows,
        "hash": content_hash(catalogue, histories),
        "statistics": statistics,
    }
    with new_folder(output) as folder:
        histories.save_to_disk(str(folder / HISTORIES_FOLDER))
        catalogue.save(folder / CATALOGUE_FILE)
        (folder / CARD_FILE).write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (folder / README_FILE).write_text(render_card(card), encoding="utf-8")
    return load_prepared(output)


def _check_choices(k_core_scope: str, untitled: str, missing_items: str, order_policy: str, split: str) -> None:
    """Refuse unknown options before hours are spent on reading."""
    for what, value, known in (
        ("k-core scope", k_core_scope, SCOPES),
        ("policy for untitled items", untitled, UNTITLED),
        ("policy for missing items", missing_items, MISSING_ITEMS),
        ("order policy", order_policy, tuple(ORDER_POLICIES)),
        ("split", split, tuple(SPLITS)),
    ):
        if value not in known:
            raise DataError(f"unknown {what} '{value}'", advice=f"Choose one of {', '.join(known)}")


def _source_name(raw: RawData, number: int, taken: dict[str, dict[str, Any]]) -> str:
    name = str(raw.description.get("domain") or Path(raw.interactions.file).name)
    return name if name not in taken else f"{name} ({number})"
