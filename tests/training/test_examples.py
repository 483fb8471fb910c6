"""Prefix examples, the windows they read, and negatives, each against a plain twin or its stated property."""

import datasets
import numpy as np
import pytest
from transformers import BertConfig

from llmrec.evaluation.histories import Histories
from llmrec.training.examples import PrefixExamples, split_histories, window_starts
from llmrec.training.negatives import NegativeSampler
from llmrec.training.titles import TitleClasses
from modeling_llmrec import LLMRecConfig, LLMRecProcessor

HISTORIES = [[4, 7, 1, 9, 2], [3], [], [5, 5, 8], [6, 0]]


def _examples(**keywords) -> PrefixExamples:
    return PrefixExamples(Histories.of(HISTORIES), **{"max_history_items": 3, **keywords})


def test_every_prefix_is_an_example() -> None:
    expected = [
        (user, history[max(0, place - 3) : place], history[place])
        for user, history in enumerate(HISTORIES)
        for place in range(1, len(history))
    ]
    examples = _examples()
    all_of_them = [examples[i] for i in range(len(examples))]
    found = [(one["user"], one["history"].tolist(), one["target"]) for one in all_of_them]
    assert found == expected
    assert examples.available == len(expected) == 7
    assert examples.targets().tolist() == [target for _, _, target in expected]
    assert examples.prefix_lengths().tolist() == [1, 2, 3, 4, 1, 2, 1]
    lengths = np.arange(10) + 1
    assert examples.history_tokens(lengths).tolist() == [sum(i + 1 for i in history) for _, history, _ in expected]


@pytest.mark.parametrize(("max_items", "max_tokens"), [(4, 1000), (100, 40), (6, 31), (1, 12), (3, 12)])
def test_windows_begin_where_the_processor_cuts(tiny_backbone, max_items: int, max_tokens: int) -> None:
    config = LLMRecConfig(
        text_config=BertConfig(max_position_embeddings=1000), max_history_items=max_items,
        max_history_tokens=max_tokens, max_title_tokens=10, prefix_tokens=["[CLS]"], suffix_tokens=["[SEP]"],
    )  # fmt: skip
    processor = LLMRecProcessor.from_backbone(tiny_backbone, config=config)
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 11, 50)
    histories = Histories.of([rng.integers(0, 50, n) for n in (0, 9, 1, 60, 2, 0, 30, 0)])
    examples = PrefixExamples(histories, max_items)
    before = np.concatenate([[0], np.cumsum(lengths[histories.values])])
    starts = window_starts(histories, examples.positions, before, max_items, max_tokens - 2)
    for user, position, start in zip(examples.users, examples.positions, starts, strict=True):
        prefix = histories.values[histories.offsets[user] : position]
        assert position - start == processor.kept_items(lengths[prefix].tolist()) >= 1
    assert (np.diff(starts) >= 0).all()
    example = examples[7]
    assert example["target"] == histories.values[example["position"]]


def test_histories_come_from_a_dataset_also_when_it_was_shuffled_and_cut() -> None:
    split = datasets.Dataset.from_dict({"user_id": list("abcde"), "history": HISTORIES})
    assert [h.tolist() for h in map(split_histories(split).__getitem__, range(5))] == HISTORIES
    some = split.select([3, 0])
    assert [h.tolist() for h in map(split_histories(some).__getitem__, range(2))] == [HISTORIES[3], HISTORIES[0]]


def test_a_subset_is_drawn_once_by_the_seed() -> None:
    def key(examples):
        return [(one["user"], one["target"]) for one in (examples[i] for i in range(len(examples)))]

    few, same, other = (_examples(max_examples=4, seed=seed) for seed in (1, 1, 2))
    assert len(few) == 4 and few.available == 7
    assert key(few) == key(same) != key(other)
    assert set(key(few)) <= set(key(_examples()))
    assert len(_examples(max_examples=100)) == 7


def test_nothing_to_learn_from_is_an_error() -> None:
    with pytest.raises(ValueError, match="no training history has two items"):
        PrefixExamples(Histories.of([[1], [2], []]), 3)
    with pytest.raises(ValueError, match="max_train_examples=0"):
        _examples(max_examples=0)


# -- titles and negatives --------------------------------------------------------------------------


def _shop(
    items: int = 60, domains: int = 3, equal: tuple[tuple[int, int], ...] = ()
) -> tuple[TitleClasses, np.ndarray]:
    tokens = [[100 + item, 7] for item in range(items)]
    for one, other in equal:
        tokens[other] = tokens[one]
    codes = np.arange(items, dtype=np.int32) % domains
    return TitleClasses(tokens, codes), codes


def test_equal_titles_share_a_class_and_within_a_domain_a_representative() -> None:
    classes, codes = _shop(12, 3, equal=((0, 3), (1, 5)))  # 0 and 3 are of one domain, 1 and 5 of two
    assert codes[0] == codes[3] and codes[1] != codes[5]
    assert classes.text[0] == classes.text[3] and classes.representative[3] == 0
    assert classes.text[1] == classes.text[5] and classes.representative[5] == 5
    assert len(set(classes.text)) == 10 and len(set(classes.representative)) == 11


def test_negatives_are_of_the_domain_and_never_the_target_or_the_history() -> None:
    classes, codes = _shop(300, 3, equal=((6, 9), (12, 7)))
    sampler = NegativeSampler(classes, codes, ["a", "b", "c"], n=20, seed=1)
    rng = np.random.default_rng(0)
    for example in range(300):
        target, history = int(rng.integers(300)), rng.integers(0, 300, 12)
        drawn = sampler.draw(0, example, target, history)
        assert len(drawn) == 20 == len(set(drawn.tolist())) == len(set(classes.text[drawn].tolist()))
        assert (codes[drawn] == codes[target]).all()
        assert not set(classes.text[drawn]) & set(classes.text[np.append(history, target)])
        assert (classes.representative[drawn] == drawn).all()


def test_an_item_that_reads_like_the_target_is_no_negative() -> None:
    classes, codes = _shop(9, 1, equal=((2, 5), (3, 8)))
    sampler = NegativeSampler(classes, codes, ["a"], n=4, seed=1)
    for epoch in range(50):
        drawn = sampler.draw(epoch, 0, 5, np.array([8, 8]))
        assert len(set(drawn.tolist())) == 4 and set(drawn.tolist()) <= {0, 1, 4, 6, 7}


def test_negatives_from_everywhere() -> None:
    classes, codes = _shop(300, 3)
    sampler = NegativeSampler(classes, codes, ["a", "b", "c"], n=30, domain="any", seed=1)
    assert set(codes[sampler.draw(0, 0, 4, np.array([1]))]) == {0, 1, 2}


def test_a_draw_depends_on_seed_epoch_and_example_only() -> None:
    classes, codes = _shop()
    history = np.array([0, 3, 9])

    def draw(seed: int, epoch: int, example: int) -> list[int]:
        sampler = NegativeSampler(classes, codes, ["a", "b", "c"], n=5, seed=seed)
        return sampler.draw(epoch, example, 6, history).tolist()

    busy = NegativeSampler(classes, codes, ["a", "b", "c"], n=5, seed=1)
    for example in range(40):
        busy.draw(0, example, 7, history)
    assert draw(1, 2, 3) == busy.draw(2, 3, 6, history).tolist()
    assert len({tuple(draw(*key)) for key in ((1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4))}) == 4


@pytest.mark.parametrize("items", [24, 240])
def test_negatives_are_uniform(items: int) -> None:
    # 24 items: drawn from what is left; 240: by rejection.
    classes, codes = _shop(items, 1)
    sampler = NegativeSampler(classes, codes, ["a"], n=4, seed=1)
    history = np.array([1, 2, 2])
    count = np.zeros(items)
    draws = 12_000
    for example in range(draws):
        count[sampler.draw(0, example, 0, history)] += 1
    allowed = np.setdiff1d(np.arange(items), [0, 1, 2])
    expected = draws * 4 / len(allowed)
    assert count[[0, 1, 2]].sum() == 0
    # Chi-square over its mean, within 4.5 standard deviations (draws without replacement vary less, not more).
    chi_square = ((count[allowed] - expected) ** 2 / expected).sum()
    assert chi_square < len(allowed) + 4.5 * np.sqrt(2 * len(allowed))


def test_a_domain_that_is_too_small_gives_all_it_has_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    classes, codes = _shop(9, 3)
    sampler = NegativeSampler(classes, codes, ["Food", "Kitchen", "Toys"], n=10, seed=1)
    with caplog.at_level("WARNING", logger="llmrec"):
        for example in range(5):
            assert sorted(sampler.draw(0, example, 1, np.array([4, 0]))) == [7]
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1 and "domain 'Kitchen' has 3 titles" in warnings[0] and "1 are left for 10" in warnings[0]
    assert len(sampler.draw(0, 0, 1, np.array([4, 7]))) == 0


# -- negatives that a batch shares -----------------------------------------------------------------


def test_shared_negatives_are_of_the_domains_of_the_targets() -> None:
    classes, codes = _shop(300, 3, equal=((6, 9),))
    sampler = NegativeSampler(classes, codes, ["a", "b", "c"], n=0, seed=1)
    drawn = sampler.draw_shared(2, 7, np.array([0, 3, 2, 5]), 20)
    assert len(drawn) == 40 == len(set(drawn.tolist()))
    assert np.bincount(codes[drawn], minlength=3).tolist() == [20, 0, 20]
    assert (classes.representative[drawn] == drawn).all()
    assert len(sampler.draw_shared(2, 7, np.array([0]), 0)) == 0
    # A domain that has not so many gives all.
    assert sorted(sampler.draw_shared(2, 7, np.array([1]), 1000)) == np.flatnonzero(codes == 1).tolist()
    everywhere = NegativeSampler(classes, codes, ["a", "b", "c"], n=0, domain="any", seed=1)
    drawn = everywhere.draw_shared(2, 7, np.array([0, 3, 2, 5]), 20)
    assert len(set(drawn.tolist())) == 20 and set(codes[drawn]) == {0, 1, 2}


def test_a_shared_draw_depends_on_seed_epoch_example_and_domain_only() -> None:
    classes, codes = _shop(600, 2)

    def draw(seed: int, epoch: int, example: int, targets: list[int]) -> tuple[int, ...]:
        sampler = NegativeSampler(classes, codes, ["a", "b"], n=5, seed=seed)
        return tuple(sampler.draw_shared(epoch, example, np.array(targets), 5).tolist())

    assert draw(1, 2, 3, [4]) == draw(1, 2, 3, [8, 8, 0]) == draw(1, 2, 3, [4, 5])[:5]
    keys = [(1, 2, 3, [4]), (2, 2, 3, [4]), (1, 3, 3, [4]), (1, 2, 4, [4]), (1, 2, 3, [5])]
    assert len({draw(*key) for key in keys}) == 5
    # Nor is it the example's own draw once more.
    own = NegativeSampler(classes, codes, ["a", "b"], n=5, seed=1).draw(2, 3, 4, np.array([0]))
    assert set(own.tolist()) != set(draw(1, 2, 3, [4]))


def test_shared_negatives_are_uniform() -> None:
    classes, codes = _shop(240, 1)
    sampler = NegativeSampler(classes, codes, ["a"], n=0, seed=1)
    draws = 6000
    count = np.bincount(
        np.concatenate([sampler.draw_shared(0, example, np.array([0]), 8) for example in range(draws)]), minlength=240
    )
    expected = draws * 8 / 240
    # Chi-square over its mean, within 4.5 standard deviations.
    assert ((count - expected) ** 2 / expected).sum() < 240 + 4.5 * np.sqrt(2 * 240)
