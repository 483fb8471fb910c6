"""The data card as Markdown, for people and for the Hub; and the statistics as text for the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from llmrec.data.order import ORDER_POLICIES
from llmrec.data.splits import SPLITS

SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"),
    (10**9, "100M<n<1B"),
)


def render_card(card: dict[str, Any]) -> str:
    """Write the data card as the README.md of a data set, with the front matter that the Hub reads."""
    statistics = card["statistics"]
    front = [
        "---",
        f"pretty_name: {json.dumps(card['name'], ensure_ascii=False)}",
        "tags:",
        "- recommendation",
        "- sequential-recommendation",
        "- llmrec",
        "size_categories:",
        f"- {size_category(statistics['interactions'])}",
        "---",
    ]
    body = [
        f"# {card['name']}",
        f"Histories of {statistics['users']:,} users over {statistics['items']:,} items in "
        f"{len(statistics['domains'])} domain(s), {statistics['interactions']:,} interactions, prepared with "
        "`llmrec prepare`.",
        f"Content hash of histories, targets and catalogue: `{card['hash']}`",
        "Load with `llmrec.data.prepared.load_prepared(folder)`, or the histories alone with "
        "`datasets.load_from_disk(folder + '/histories')`. A history is a list of row numbers of "
        "`catalogue.parquet`, oldest first.",
        "## Sources",
        markdown_table(
            ("source", "format", "interactions", "items"),
            [
                (
                    name,
                    source.get("format", "in memory"),
                    source.get("interactions", ""),
                    source.get("items", ""),
                )
                for name, source in card["sources"].items()
            ],
        ),
        "## Order and split",
        f"**Order policy `{card['order_policy']}`**: {ORDER_POLICIES[card['order_policy']]}.",
        f"**Split `{card['split']}`**: {SPLITS[card['split']]}.",
        *_split_facts(statistics),
        "## Steps",
        "Counts and a hash after each step; items are those with at least one interaction.",
        markdown_table(
            ("step", "interactions", "users", "items", "hash"),
            [
                (row["step"], row["interactions"], row["users"], row["items"], f"`{row['hash']}`")
                for row in card["steps"]
            ],
        ),
        "## Options",
        markdown_table(("option", "value"), [(f"`{key}`", f"`{value}`") for key, value in card["options"].items()]),
        "## Statistics",
    ]
    for title, table in statistics_tables(statistics):
        body += [f"### {title}", markdown_table(table[0], table[1:])]
    return "\n".join(front) + "\n\n" + "\n\n".join(body) + "\n"


def render_statistics(statistics: dict[str, Any]) -> str:
    """Write the statistics as aligned tables for the terminal."""
    blocks = [f"{title}\n{text_table(table)}" for title, table in statistics_tables(statistics)]
    return "\n\n".join(blocks)


def statistics_tables(statistics: dict[str, Any]) -> list[tuple[str, list[tuple[Any, ...]]]]:
    """Arrange the statistics as tables: (title, rows), the first row being the header."""
    domains = statistics["domains"]
    tables: list[tuple[str, list[tuple[Any, ...]]]] = [
        (
            "Domains",
            [
                ("domain", "users", "items", "interactions"),
                *((name, row["users"], row["items"], row["interactions"]) for name, row in domains.items()),
                ("all", statistics["users"], statistics["items"], statistics["interactions"]),
            ],
        ),
        (
            "Users by number of domains",
            [("domains", "users"), *statistics["users_by_number_of_domains"].items()],
        ),
        (
            "Users in both domains",
            [("", *domains), *((a, *row.values()) for a, row in statistics["domain_overlap"].items())],
        ),
    ]
    titles = statistics["titles"]
    splits = statistics["splits"]
    lengths = [
        ("title, characters", titles["characters"]),
        ("title, words", titles["words"]),
        *((f"history, {name}", split["history_length"]) for name, split in splits.items()),
    ]
    tables.append(
        (
            "Lengths",
            [("", *lengths[0][1]), *((name, *values.values()) for name, values in lengths)],
        )
    )
    tables.append(
        (
            "Splits",
            [
                ("split", "users", "examples", "targets never seen in training"),
                *(
                    (
                        name,
                        split["users"],
                        split.get("examples", split["users"]),
                        ""
                        if "targets_without_training" not in split
                        else f"{split['targets_without_training']:,} "
                        f"({split['share_of_targets_without_training']:.1%})",
                    )
                    for name, split in splits.items()
                ),
            ],
        )
    )
    tables.append(
        (
            "Catalogue",
            [
                ("what", "count"),
                ("items", statistics["items"]),
                ("items without interactions", statistics["items_without_interactions"]),
                ("items that share their title with another", titles["items_sharing_a_title"]),
                ("titles of several items", titles["titles_of_several_items"]),
            ],
        )
    )
    return tables


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Write a Markdown table; counts get thousands separators, bars are escaped."""
    lines = [_markdown_row(header), "|" + "---|" * len(header), *(_markdown_row(row) for row in rows)]
    return "\n".join(lines)


def text_table(rows: Sequence[Sequence[Any]]) -> str:
    """Align rows for the terminal: the first column to the left, the others to the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        first, *rest = (
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  " + "  ".join([first, *rest]).rstrip())
    return "\n".join(lines)


def size_category(rows: int) -> str:
    """Name the Hub's size category for a number of rows."""
    for limit, name in SIZES:
        if rows < limit:
            return name
    return "n>1B"


def _split_facts(statistics: dict[str, Any]) -> list[str]:
    lines = [f"- {key.replace('_', ' ')}: {_cell(value)}" for key, value in statistics["split_facts"].items()]
    if statistics.get("leakage_warning"):
        lines.append(f"- Warning: {statistics['leakage_warning']}.")
    for key in ("first_interaction", "last_interaction"):
        if key in statistics:
            lines.append(f"- {key.replace('_', ' ')}: {statistics[key]}")
    return ["\n".join(lines)] if lines else []


def _markdown_row(values: Sequence[Any]) -> str:
    return "| " + " | ".join(_cell(value).replace("|", "\\|") for value in values) + " |"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)
