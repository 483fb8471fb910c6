"""Merging sources over user ids, and what the tables may not say."""

from __future__ import annotations

import pytest

from llmrec.data.encode import encode_source, merge_sources
from llmrec.data.errors import DataError


def merge(*raws, missing_items: str = "error"):
    return merge_sources([encode_source(raw, missing_items) for raw in raws])


def test_sources_merge_over_user_ids(make_raw, rows_of) -> None:
    first = [("u2", "a1", 1), ("u1", "a0", 2)]
    second = [("u3", "b0", 1), ("u1", "b0", 3)]
    state = merge(make_raw(first), make_raw(second))
    assert rows_of(state) == first + second
    assert state.users.to_list() == ["u1", "u2", "u3"]
    assert state.items.rows() == [("a0", "title of a0", "A"), ("a1", "title of a1", "A"), ("b0", "title of b0", "B")]
    assert state.domain_names == ["A", "B"]
    assert state.domain_codes.tolist() == [0, 0, 1]


def test_items_are_sorted_by_domain_then_id(make_raw) -> None:
    items = {"z": ("Z", "A"), "y": ("Y", "B"), "x": ("X", "A")}
    state = merge(make_raw([("u", "z", 1), ("u", "y", 1), ("u", "x", 1)], items))
    assert state.items["item_id"].to_list() == ["x", "z", "y"]


def test_digest_ignores_the_order_of_rows_and_nothing_else(make_raw, random_events) -> None:
    events = random_events(0)
    digest = merge(make_raw(events)).digest()
    assert merge(make_raw(events[::-1])).digest() == digest
    halves = [[e for e in events if e[1][0] == "a"], [e for e in events if e[1][0] != "a"]]
    assert merge(*map(make_raw, halves)).digest() == digest
    user, item, time = events[0]
    items = {item: (f"title of {item}", item[0].upper()) for _, item, _ in events}
    for changed in ([(user, item, time + 1)], [("other", item, time)], [], [events[0], events[0]]):
        assert merge(make_raw([*changed, *events[1:]], items)).digest() != digest
    assert merge(make_raw(events, {**items, item: ("another title", item[0].upper())})).digest() != digest


def test_rows_do_not_trade_their_parts(make_raw) -> None:
    items = {"a0": ("t", "A"), "a1": ("t", "A")}
    straight = merge(make_raw([("u", "a0", 1), ("v", "a1", 2)], items))
    crossed = merge(make_raw([("u", "a1", 1), ("v", "a0", 2)], items))
    assert straight.digest() != crossed.digest()


def test_item_without_a_row(make_raw) -> None:
    raw = make_raw([("u", "a0", 1), ("u", "a9", 2), ("v", "a9", 3)], {"a0": ("t", "A")})
    with pytest.raises(DataError) as caught:
        merge(raw)
    message = str(caught.value)
    assert (
        "made-up interactions, row 2, column 'item_id': item 'a9' has no row in the catalogue made-up items" in message
    )
    assert "(1 such items)" in message
    assert "set missing items to 'untitled'" in message


def test_item_without_a_row_as_untitled(make_raw) -> None:
    raw = make_raw([("u", "a0", 1), ("u", "a9", 2)], {"a0": ("t", "A")})
    assert merge(raw, missing_items="untitled").items.rows() == [("a0", "t", "A"), ("a9", None, "A")]
    several = make_raw([("u", "a0", 1), ("u", "a9", 2)], {"a0": ("t", "A"), "b0": ("t", "B")})
    with pytest.raises(DataError, match="has no row.*Such an item has no domain"):
        merge(several, missing_items="untitled")


def items_table(raw, rows):
    frame = raw.items.frame.clear()
    return type(raw)(
        raw.interactions, raw.items.with_frame(frame.vstack(type(frame)(rows, frame.schema, orient="row")))
    )


def test_one_id_with_two_titles(make_raw) -> None:
    rows = [("a0", "Green tea", "A"), ("a1", "Coffee", "A"), ("a0", "Black tea", "A")]
    with pytest.raises(DataError) as caught:
        merge(items_table(make_raw([("u", "a0", 1)]), rows))
    message = str(caught.value)
    assert "made-up items, row 3, column 'title'" in message
    assert "item 'a0' has two titles, 'Green tea' and 'Black tea'" in message


def test_one_id_with_two_domains_in_a_table(make_raw) -> None:
    rows = [("a0", "Green tea", "A"), ("a0", "Green tea", "B")]
    with pytest.raises(DataError, match="item 'a0' has two domains, 'A' and 'B'"):
        merge(items_table(make_raw([("u", "a0", 1)]), rows))


@pytest.mark.parametrize("rows", [
    [("a0", "Tea &amp; more", "A"), ("a0", " Tea  & more ", "A")],
    [("a0", None, "A"), ("a0", "Tea &amp; more", "A")],
    [("a0", "Tea &amp; more", "A"), ("a0", "  ", "A")],
])  # fmt: skip
def test_repeated_rows_of_one_title_are_one_item(make_raw, rows) -> None:
    assert merge(items_table(make_raw([("u", "a0", 1)]), rows)).items.rows() == [("a0", "Tea &amp; more", "A")]


def test_one_id_in_two_sources(make_raw) -> None:
    first = make_raw([("u", "x", 1)], {"x": ("t", "A")})
    second = make_raw([("u", "x", 1)], {"x": ("t", "B")})
    with pytest.raises(DataError, match="item id 'x' occurs in two sources, of domains 'A' and 'B'.*prefix"):
        merge(first, second)


def test_sources_with_different_times(make_raw) -> None:
    with pytest.raises(DataError, match="this source has no 'timestamp', but made-up interactions has"):
        merge(make_raw([("u", "a0", 1)]), make_raw([("u", "b0", 1)], time="order"))


def test_no_interactions(make_raw) -> None:
    with pytest.raises(DataError, match="made-up interactions: no interactions"):
        merge(make_raw([], {"a0": ("t", "A")}))
