"""Packed texts against the processor's own layout, text by text."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from llmrec.data.title_tokens import TitleTokens
from llmrec.evaluation.histories import Histories
from llmrec.training.collator import Collator
from llmrec.training.examples import PrefixExamples
from llmrec.training.layout import (
    PACKINGS,
    Specials,
    Text,
    Texts,
    fill_rate,
    fill_rows,
    history_text,
    item_text,
    lay_out,
    pack,
    pack_passes,
    shared_history_text,
    split_passes,
    tokens,
)
from llmrec.training.negatives import NegativeSampler
from llmrec.training.titles import TitleClasses
from modeling_llmrec import LLMRecConfig, LLMRecProcessor
from modeling_llmrec.packing import PackedTexts

ITEMS = 30


@pytest.fixture
def processor(tiny_backbone) -> Callable[..., LLMRecProcessor]:
    """A processor whose window is 4 items or 21 tokens, special tokens included, by default."""

    def make(**fields) -> LLMRecProcessor:
        defaults = {
            "text_config": {"model_type": "bert"}, "pooling": "last", "max_history_items": 4, "max_title_tokens": 9,
            "max_history_tokens": 21, "prefix_tokens": ["[CLS]"], "suffix_tokens": ["[SEP]"],
        }  # fmt: skip
        return LLMRecProcessor.from_backbone(tiny_backbone, config=LLMRecConfig(**{**defaults, **fields}))

    return make


def title_ids(longest: int = 9) -> list[list[int]]:
    """Random titles of 1 … `longest` tokens, no two the same."""
    rng = np.random.default_rng(4)
    return [[100 + item, *rng.integers(10, 90, rng.integers(0, longest)).tolist()] for item in range(ITEMS)]


def read_one_by_one(packed: PackedTexts) -> list[tuple[list[int], list[int]]]:
    """Token ids and positions that each vector's last token attends to, by the rule in words; nothing vectorised."""
    length = packed.input_ids.shape[1]
    ids, positions, segments = (
        getattr(packed, name).flatten().tolist() for name in ("input_ids", "position_ids", "segment_ids")
    )
    queries = [0] * len(ids) if packed.query_ids is None else packed.query_ids.flatten().tolist()
    found = []
    for start, end in zip(packed.starts.tolist(), packed.ends.tolist(), strict=True):
        last = end - 1
        row_start = last // length * length
        seen = [
            place
            for place in range(row_start, end)
            if segments[place] == segments[last] != 0 and queries[place] in (0, queries[last])
        ]
        assert seen[0] == start
        found.append(([ids[place] for place in seen], [positions[place] for place in seen]))
    return found


def collator_of(processor: LLMRecProcessor, histories: Histories, tokens: list[list[int]], **keywords) -> Collator:
    codes = np.arange(len(tokens), dtype=np.int32) % 2
    classes = TitleClasses(tokens, codes)
    sampler = NegativeSampler(classes, codes, ["a", "b"], 0)
    return Collator(processor, tokens, histories, classes, codes, sampler, "in_batch", **keywords)


LAYOUTS = {
    "both specials": {},
    "no specials": {"prefix_tokens": [], "suffix_tokens": []},
    "prefix only": {"prefix_tokens": ["[CLS]", "[MASK]"], "suffix_tokens": []},
    "long suffix": {"prefix_tokens": [], "suffix_tokens": ["[SEP]", "[MASK]", "[SEP]"]},
    "limited by items": {"max_history_items": 3, "max_history_tokens": 200},
    "limited by tokens": {"max_history_items": 100, "max_history_tokens": 30},
    "unlimited": {"max_history_items": 100, "max_history_tokens": 500},
}


@pytest.mark.parametrize("how", ["segments", "mask", "flex"])
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("share", [True, False])
def test_every_vector_reads_what_the_processor_lays_out(processor: Callable, name: str, how: str, share: bool) -> None:
    made, titles, rng = processor(**LAYOUTS[name]), title_ids(), np.random.default_rng(0)
    # Users shorter and much longer than the window, and some that give no example at all.
    histories = Histories.of([rng.integers(0, ITEMS, n) for n in (7, 0, 2, 1, 25, 3, 0, 40, 5)])
    examples = PrefixExamples(histories, made.config.max_history_items)
    collate = collator_of(made, histories, titles, packing=how, share_prefixes=share, row_tokens=64)
    for size in (1, 17, len(examples)):
        chosen = [examples[int(i)] for i in rng.permutation(len(examples))[:size]]
        batch = collate(chosen)
        (packed,) = batch["texts"]
        found = read_one_by_one(packed)
        assert len(found) == len(packed)
        for row, example in enumerate(chosen):
            # From the whole prefix, not from the events that the example carries.
            prefix = histories.values[histories.offsets[example["user"]] : example["position"]]
            expected = made.layout_history([titles[i] for i in prefix])
            ids, positions = found[batch["user_index"][row]]
            assert ids == expected and positions == list(range(len(expected)))
        for row, item in enumerate(batch["item_ids"].tolist()):
            assert found[batch["item_index"][row]][0] == made.layout_item(titles[item])
        _check_shape(packed, how)


def test_newest_first_is_packed_as_the_processor_lays_it_out(processor: Callable) -> None:
    made, titles, rng = processor(item_order="newest_first"), title_ids(), np.random.default_rng(0)
    histories = Histories.of([rng.integers(0, ITEMS, n) for n in (7, 2, 12)])
    examples = PrefixExamples(histories, made.config.max_history_items)
    chosen = [examples[i] for i in range(len(examples))]
    batch = collator_of(made, histories, titles, packing="flash")(chosen)
    found = read_one_by_one(batch["texts"][0])
    for row, example in enumerate(chosen):
        expected = made.layout_history([titles[i] for i in example["history"]])
        assert found[batch["user_index"][row]][0] == expected


def test_shared_prefixes_read_each_title_of_a_window_once(processor: Callable) -> None:
    made, titles = processor(**LAYOUTS["unlimited"]), title_ids()
    histories = Histories.of([np.arange(12), np.arange(5)])
    examples = PrefixExamples(histories, 100)
    (packed,) = collator_of(made, histories, titles, packing="segments", share_prefixes=True)(
        [examples[i] for i in range(len(examples))]
    )["texts"]
    # [CLS], the titles but the last, and one [SEP] for every example; then every title that is a target.
    window = sum(1 + sum(len(ids) for ids in titles[: n - 1]) + (n - 1) for n in (12, 5))
    assert tokens(packed) == window + sum(len(ids) + 2 for ids in titles[1:12])
    assert packed.query_ids is not None and int(packed.query_ids.max()) == 10
    assert fill_rate(packed) == 1.0
    # Without a suffix nothing needs to be hidden from anyone.
    bare = processor(**{**LAYOUTS["unlimited"], "suffix_tokens": []})
    (packed,) = collator_of(bare, histories, titles, packing="segments", share_prefixes=True)([examples[3]])["texts"]
    assert packed.query_ids is None


def test_an_example_that_a_batch_holds_twice_is_read_once(processor: Callable) -> None:
    histories = Histories.of([np.arange(6)])
    examples = PrefixExamples(histories, 4)
    collate = collator_of(processor(), histories, title_ids(), packing="segments", share_prefixes=True)
    once, twice = collate([examples[1], examples[2]]), collate([examples[1], examples[2], examples[1]])
    assert torch.equal(once["texts"][0].input_ids, twice["texts"][0].input_ids)
    assert twice["user_index"].tolist() == [*once["user_index"].tolist(), int(once["user_index"][0])]


def test_single_texts_are_laid_out_like_many(processor: Callable) -> None:
    made, titles = processor(**LAYOUTS["long suffix"]), title_ids()
    window = titles[:3]
    shared = shared_history_text(made, window, [1, 3])
    packed = pack([item_text(made, titles[7]), shared, history_text(made, window), titles[8]])
    found = [ids for ids, _ in read_one_by_one(packed)]
    assert found == [
        made.layout_item(titles[7]),
        made.layout_history(window[:1]),
        made.layout_history(window),
        made.layout_history(window),
        titles[8],
    ]
    many = lay_out(TitleTokens.of(titles), Specials.of(made), np.array([7, 0, 1, 2]), np.array([1, 3]))
    one_by_one = Texts.of([item_text(made, titles[7]), history_text(made, window)])
    for name in ("ids", "positions", "offsets", "ends", "owners"):
        assert np.array_equal(getattr(many, name), getattr(one_by_one, name)), name


def test_texts_can_be_given_with_their_own_positions_and_ends() -> None:
    packed = pack([Text([5, 6, 7, 8], positions=[0, 1, 1, 2], queries=[0, 1, 0, 0], ends=(2, 4)), [9]], "mask", 8)
    assert packed.starts.tolist() == [0, 0, 4] and packed.ends.tolist() == [2, 4, 5]
    assert [ids for ids, _ in read_one_by_one(packed)] == [[5, 6], [5, 7, 8], [9]]


@pytest.mark.parametrize("how", PACKINGS)
@pytest.mark.parametrize("row_tokens", [None, 16, 64])
def test_every_text_is_packed_once_whole_and_in_one_row(how: str, row_tokens: int | None) -> None:
    rng = np.random.default_rng(1)
    texts = [rng.integers(1, 1000, n).tolist() for n in rng.integers(1, 50, 200)]
    packed = pack(texts, how, row_tokens)
    assert [ids for ids, _ in read_one_by_one(packed)] == texts
    assert all(positions == list(range(len(positions))) for _, positions in read_one_by_one(packed))
    assert tokens(packed) == packed.read_tokens == sum(map(len, texts))
    _check_shape(packed, how)
    if how in ("mask", "flex"):
        assert packed.input_ids.shape[1] <= max(row_tokens or 256, max(map(len, texts)))
        assert fill_rate(packed) > (0.95 if row_tokens is None else 0.85)
        assert not packed.input_ids[packed.segment_ids == 0].any()
    else:
        assert fill_rate(packed) == 1.0 and len(packed.input_ids) == 1


def _check_shape(packed: PackedTexts, how: str) -> None:
    for name in ("input_ids", "position_ids", "segment_ids"):
        assert getattr(packed, name).dtype == torch.int64 and getattr(packed, name).is_contiguous()
        assert getattr(packed, name).shape == packed.input_ids.shape
    assert packed.starts.dtype == packed.ends.dtype == torch.int64
    assert packed.read_tokens == int((packed.ends - packed.starts).sum())
    if how != "segments":
        assert packed.buckets is None
        return
    assert packed.buckets is not None
    every = torch.cat([bucket.flatten() for bucket in packed.buckets])
    assert sorted(every[every >= 0].tolist()) == list(range(packed.input_ids.numel()))
    for bucket in packed.buckets:
        lengths = (bucket >= 0).sum(1)
        assert int(lengths.max()) == bucket.shape[1] <= max(1.15 * int(lengths.min()), int(lengths.min()) + 4)
        for line in bucket:
            text = line[line >= 0]
            # Padding at the end; one whole text, its tokens in order.
            assert (line[: len(text)] == text).all() and (text.diff() == 1).all()
            numbers = packed.segment_ids.flatten()[text]
            assert (numbers == numbers[0]).all() and int((packed.segment_ids == numbers[0]).sum()) == len(text)
        if packed.query_ids is not None:
            # Texts with queries stay among themselves, so that the others can be read by a plain causal kernel.
            asked = [bool(packed.query_ids.flatten()[line[line >= 0]].any()) for line in bucket]
            assert all(asked) or not any(asked)


def test_first_fit_decreasing_is_that_of_the_textbook() -> None:
    rng = np.random.default_rng(2)
    for row_tokens in (30, 64):
        lengths = rng.integers(1, 31, 300)
        rows, columns, numbers = fill_rows(lengths, row_tokens)
        room: list[int] = []
        members: list[list[int]] = []
        for text in sorted(range(300), key=lambda text: -lengths[text]):
            row = next((row for row, left in enumerate(room) if left >= lengths[text]), len(room))
            if row == len(room):
                room.append(row_tokens)
                members.append([])
            room[row] -= int(lengths[text])
            members[row].append(text)
        assert rows.max() + 1 == len(room)
        for row, texts in enumerate(members):
            assert rows[texts].tolist() == [row] * len(texts)
            assert columns[texts].tolist() == np.cumsum([0, *lengths[texts][:-1]]).tolist()
            assert numbers[texts].tolist() == list(range(1, len(texts) + 1))


def test_passes_hold_at_most_their_tokens_and_every_text_once() -> None:
    rng = np.random.default_rng(3)
    lengths = rng.integers(1, 40, 500)
    passes = split_passes(lengths, 100)
    assert sorted(np.concatenate(passes).tolist()) == list(range(500))
    sums = [int(lengths[rows].sum()) for rows in passes]
    assert max(sums) <= 100
    assert np.mean(sums[:-1]) > 80
    # A text that is longer than a pass stands alone.
    assert [rows.tolist() for rows in split_passes(np.array([3, 250, 3, 120]), 100)] == [[1], [3], [0, 2]]
    assert [rows.tolist() for rows in split_passes(np.array([50, 50, 50]), 100)] == [[0, 1], [2]]


@pytest.mark.parametrize("how", ["segments", "mask"])
def test_vectors_are_found_again_behind_the_passes(processor: Callable, how: str) -> None:
    made, titles, rng = processor(), title_ids(), np.random.default_rng(5)
    histories = Histories.of([rng.integers(0, ITEMS, n) for n in (7, 3, 25, 11)])
    examples = PrefixExamples(histories, 4)
    chosen = [examples[int(i)] for i in rng.permutation(len(examples))[:30]]
    keywords = {"packing": how, "share_prefixes": True}
    whole = collator_of(made, histories, titles, **keywords)(chosen)
    parts = collator_of(made, histories, titles, max_pass_tokens=50, **keywords)(chosen)
    assert len(whole["texts"]) == 1 and len(parts["texts"]) > 5
    assert all(tokens(packed) <= 50 for packed in parts["texts"])
    assert tokens(whole["texts"]) == tokens(parts["texts"])
    before = read_one_by_one(whole["texts"][0])
    after = [one for packed in parts["texts"] for one in read_one_by_one(packed)]
    for name in ("user_index", "item_index"):
        assert [after[i] for i in parts[name]] == [before[i] for i in whole[name]]
    texts = Texts.of([[1, 2], [3]])
    (packed,), places = pack_passes(texts, how, max_pass_tokens=3)
    assert len(packed) == 2 and places.tolist() == [0, 1]


def test_what_cannot_be_packed_is_named() -> None:
    with pytest.raises(ValueError, match="packing 'tight' is none of segments, mask, flex, flash"):
        pack([[1]], "tight")
    with pytest.raises(ValueError, match="no text to pack"):
        pack([])
    with pytest.raises(ValueError, match="'flash' cannot share prefixes"):
        pack([Text([5, 6, 7], queries=[0, 1, 0], ends=(2, 3))], "flash")
