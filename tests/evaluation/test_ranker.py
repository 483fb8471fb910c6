import warnings

import numpy as np
import pyarrow as pa
import pytest
import torch

from llmrec.evaluation import (
    PRESETS,
    CollapsedModelWarning,
    EmbeddingScorer,
    Histories,
    PopularityScorer,
    Protocol,
    RankResult,
    SmallDomainWarning,
    calc,
    rank,
)
from llmrec.evaluation.candidates import candidate_blocks, draw_without, users_per_block
from llmrec.retrieval import scorers as scorers_module
from llmrec.retrieval.scorers import BLOCK_BYTES

PROTOCOLS = [
    Protocol("sampled", "sampled", n_negatives=20),
    Protocol("sampled-paper", "sampled", n_negatives=20, exclude_target=False, mask_seen=False),
    Protocol("no target again", "sampled", n_negatives=20, mask_seen=False),
    PRESETS["full"],
    PRESETS["full-unmasked"],
    PRESETS["domain"],
    PRESETS["domain-unmasked"],
]
by_name = pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.name)


class ScoresOnly:
    """A scorer with nothing but `scores`."""

    def __init__(self, matrix, name="plain"):
        self.name, self.matrix = name, matrix

    def scores(self, rows):
        return self.matrix[torch.as_tensor(rows)]


def run(split, protocol, scorer=None, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return rank(
            scorer or split.scorer,
            histories=split.histories,
            targets=split.targets,
            domain_codes=split.domain_codes,
            protocol=protocol,
            progress=False,
            **options,
        )


def slow_candidates(split, protocol, row):
    """The other candidates of one user, written down from the protocol's description."""
    target, history = split.targets[row], set(split.histories[row].tolist())
    pool = list(range(split.items))
    if protocol.candidates != "catalogue":
        pool = [item for item in pool if split.domain_codes[item] == split.domain_codes[target]]
    if protocol.candidates != "sampled":
        return [item for item in pool if item != target and not (protocol.mask_seen and item in history)]
    # A target that the user has had before counts as seen only where nothing says that it is the target.
    if protocol.mask_seen:
        pool = [item for item in pool if item not in history or item == target]
    if protocol.exclude_target:
        pool = [item for item in pool if item != target]
    if len(pool) <= protocol.n_negatives:
        return pool
    rng = np.random.default_rng((protocol.seed, row))
    return [pool[pick] for pick in rng.choice(len(pool), protocol.n_negatives, replace=False, shuffle=False)]


@by_name
def test_ranker_equals_its_slow_twin(split, protocol):
    result = run(split, protocol)
    assert result.rows.tolist() == list(range(split.users))
    scores = split.user_embeds.numpy() @ split.item_embeds.numpy().T
    some_tied = False
    for row in range(split.users):
        target, others = split.targets[row], slow_candidates(split, protocol, row)
        higher = sum(scores[row, item] > scores[row, target] for item in others)
        equal = sum(scores[row, item] == scores[row, target] for item in others)
        some_tied |= equal > 0
        assert result.ranks[row] == higher + 0.5 * equal, f"user {row}"
        assert result.candidates[row] == 1 + len(others), f"user {row}"
        assert result.ties[row] == equal, f"user {row}"
    assert some_tied


@by_name
def test_ranks_do_not_depend_on_blocks_or_on_who_is_ranked(split, protocol):
    # Real-valued vectors with duplicate items: float32 sums would differ in the last bit between block shapes.
    generator = torch.Generator().manual_seed(3)
    items = torch.randn(split.items, 48, generator=generator)
    items[split.items // 2 :] = items[: split.items - split.items // 2]
    scorer = EmbeddingScorer("model", torch.randn(split.users, 48, generator=generator), items)
    whole = run(split, protocol, scorer)
    for block_bytes in (1, 5000, 40_000):
        blocked = run(split, protocol, scorer, block_bytes=block_bytes)
        assert np.array_equal(whole.ranks, blocked.ranks)
        assert np.array_equal(whole.candidates, blocked.candidates)
    shares = [run(split, protocol, scorer, rows=np.arange(split.users)[start::3]) for start in (2, 0, 1)]
    merged = RankResult.merge(shares)
    assert np.array_equal(merged.rows, whole.rows)
    assert np.array_equal(merged.ranks, whole.ranks)


@by_name
def test_a_scorer_with_scores_only_gives_the_same_ranks(split, protocol):
    matrix = split.user_embeds @ split.item_embeds.T
    assert np.array_equal(run(split, protocol).ranks, run(split, protocol, ScoresOnly(matrix)).ranks)


def test_both_ways_to_score_drawn_items_agree(split, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    users, items = torch.randn(30, 40, generator=generator), torch.randn(500, 40, generator=generator)
    scorer = EmbeddingScorer("model", users, items)
    rows = np.arange(30)
    drawn = torch.randint(0, 500, (30, 17), generator=generator).numpy()
    expected = scorer.scores(rows).gather(1, torch.as_tensor(drawn))
    assert torch.equal(scorer.scores_of(rows, drawn), expected)
    monkeypatch.setattr(scorers_module, "GEMM_FACTOR", 0)
    assert torch.equal(scorer.scores_of(rows, drawn), expected)
    monkeypatch.setattr("modeling_llmrec.ranking.ITEM_CHUNK", 7)
    assert torch.equal(scorer.scores_of(rows, drawn[0]), scorer.scores(rows)[:, torch.as_tensor(drawn[0])])


def test_identical_vectors_tie_exactly():
    generator = torch.Generator().manual_seed(0)
    items = torch.randn(1, 384, generator=generator).repeat(1003, 1)
    scores = EmbeddingScorer("model", torch.randn(257, 384, generator=generator), items).scores(np.arange(257))
    assert torch.equal(scores, scores[:, :1].expand_as(scores))


def test_scorer_of_some_rows(split):
    rows = np.array([40, 3, 77])
    part = EmbeddingScorer("part", split.user_embeds[rows], split.item_embeds, rows=rows)
    assert torch.equal(part.scores(np.array([3, 77])), split.scorer.scores(np.array([3, 77])))
    with pytest.raises(ValueError, match="'part'.*row 4"):
        part.scores(np.array([4]))


def test_hand_computed_ties():
    scores = torch.tensor([[3.0, 2.0, 2.0, 2.0, 1.0], [0.0, 5.0, 5.0, 7.0, 9.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    result = rank(
        ScoresOnly(scores),
        histories=[[4], [4], [0, 1]],
        targets=[1, 1, 2],
        domain_codes=np.zeros(5, dtype=int),
        protocol=PRESETS["full"],
        progress=False,
    )
    # User 0: one above, two tied. User 1: item 4 seen, one above, one tied. User 2: items 0 and 1 seen, two tied.
    assert result.ranks.tolist() == [2.0, 1.5, 1.0]
    assert result.candidates.tolist() == [4, 4, 3]


def test_target_that_was_seen_is_still_ranked():
    scores = torch.tensor([[1.0, 2.0, 3.0]])
    result = rank(
        ScoresOnly(scores),
        histories=[[1, 2, 1]],
        targets=[1],
        domain_codes=np.zeros(3, dtype=int),
        protocol=PRESETS["full"],
        progress=False,
    )
    assert (result.ranks[0], result.candidates[0]) == (0.0, 2)


@by_name
def test_constant_model_gets_chance_and_is_warned_of(split, protocol):
    constant = ScoresOnly(torch.zeros(split.users, split.items), "constant")
    with pytest.warns(CollapsedModelWarning, match="'constant'"):
        result = rank(
            constant,
            histories=split.histories,
            targets=split.targets,
            domain_codes=split.domain_codes,
            protocol=protocol,
            progress=False,
        )
    assert np.array_equal(result.ranks, (result.candidates - 1) / 2)


def test_constant_model_has_no_hits_in_a_large_catalogue():
    items = EmbeddingScorer("constant", torch.randn(50, 8), torch.ones(400, 8))
    with pytest.warns(CollapsedModelWarning):
        result = rank(
            items,
            histories=[[0]] * 50,
            targets=np.arange(50) + 1,
            domain_codes=np.zeros(400, dtype=int),
            protocol=PRESETS["full"],
            progress=False,
        )
    assert calc(result.ranks)["recall@50"] == 0


@pytest.mark.parametrize("side", ["item", "user"])
def test_nearly_identical_vectors_are_warned_of(side):
    generator = torch.Generator().manual_seed(0)
    vectors = {"user": torch.randn(64, 16, generator=generator), "item": torch.randn(200, 16, generator=generator)}
    # Distinct scores, so that no tie gives it away.
    vectors[side] = torch.ones(16) + 1e-5 * vectors[side]
    scorer = EmbeddingScorer("shrunk", vectors["user"], vectors["item"])
    with pytest.warns(CollapsedModelWarning, match=f"all {side} vectors"):
        rank(
            scorer,
            histories=[[0]] * 64,
            targets=np.arange(64) + 1,
            domain_codes=np.zeros(200, dtype=int),
            protocol=PRESETS["full"],
            progress=False,
        )


def test_healthy_model_and_popularity_are_not_warned_of():
    generator = torch.Generator().manual_seed(0)
    healthy = EmbeddingScorer("m", torch.randn(64, 16, generator=generator), torch.randn(200, 16, generator=generator))
    popularity = PopularityScorer("popularity", np.arange(200) // 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for scorer in (healthy, popularity):
            rank(
                scorer,
                histories=[[0]] * 64,
                targets=np.arange(64) + 1,
                domain_codes=np.zeros(200, dtype=int),
                protocol=PRESETS["full"],
                progress=False,
            )


@by_name
def test_nan_is_refused_with_system_user_and_item(split, protocol):
    matrix = torch.rand(split.users, split.items)
    matrix[17, split.targets[17]] = torch.nan
    with pytest.raises(ValueError, match=rf"'broken'.*item {split.targets[17]} for user row 17 is NaN"):
        run(split, protocol, ScoresOnly(matrix, "broken"))


def test_low_precision_scores_are_refused(split):
    with pytest.raises(TypeError, match="'half'.*float32.*bfloat16"):
        run(split, PRESETS["full"], ScoresOnly(torch.rand(split.users, split.items).bfloat16(), "half"))


def test_bad_indices_are_refused(split):
    split.histories[5] = np.array([1, 90])
    with pytest.raises(ValueError, match="user row 5: history holds item 90"):
        run(split, PRESETS["full"])
    split.histories[5] = np.array([1])
    split.targets[9] = -1
    with pytest.raises(ValueError, match="user row 9: target -1"):
        run(split, PRESETS["full"])
    split.targets[9] = 0
    with pytest.raises(ValueError, match="user row 150 is outside"):
        run(split, PRESETS["full"], rows=np.array([3, 150]))


def test_a_share_may_be_empty(split):
    empty = run(split, PRESETS["sampled"], rows=np.array([], dtype=int))
    whole = run(split, PRESETS["sampled"])
    assert np.array_equal(RankResult.merge([empty, whole]).ranks, whole.ranks)


def test_merge_refuses_a_user_ranked_twice(split):
    part = run(split, PRESETS["full"], rows=np.array([3, 4]))
    with pytest.raises(ValueError, match="user row 3"):
        RankResult.merge([part, part])


def drawn_negatives(split, protocol):
    histories = Histories.of(split.histories)
    for block in candidate_blocks(protocol, histories, split.targets, split.domain_codes, np.arange(split.users)):
        for position, row in enumerate(block.rows):
            off = set(block.off_columns[block.off_rows == position].tolist())
            yield row, [item for column, item in enumerate(block.items[position]) if column and column not in off]


def test_sampled_negatives_are_distinct_and_leave_out_target_and_history(split):
    for row, negatives in drawn_negatives(split, PROTOCOLS[0]):
        target = split.targets[row]
        assert len(set(negatives)) == len(negatives)
        assert not set(negatives) & ({target} | set(split.histories[row].tolist()))
        assert (split.domain_codes[negatives] == split.domain_codes[target]).all()


def test_paper_negatives_may_hold_target_and_history(split):
    negatives = dict(drawn_negatives(split, PROTOCOLS[1]))
    assert any(split.targets[row] in drawn for row, drawn in negatives.items())
    assert any(set(drawn) & set(split.histories[row].tolist()) for row, drawn in negatives.items())


def test_draws_are_uniform_over_what_is_allowed():
    protocol = Protocol("sampled", "sampled", n_negatives=3)
    excluded = np.array([0, 1, 4, 9])
    draws = np.concatenate([draw_without(protocol, row, 10, excluded) for row in range(6000)])
    counts = np.bincount(draws, minlength=10)
    assert counts[excluded].sum() == 0
    allowed = np.delete(counts, excluded)
    # Each of 6 numbers is drawn with probability 1/2: standard deviation of the count is about 39.
    assert np.abs(allowed - 3000).max() < 200


def test_small_domain_uses_all_and_says_so(split):
    protocol = Protocol("sampled", "sampled", n_negatives=60)
    with pytest.warns(SmallDomainWarning, match="'Kitchen'.*60 negatives"):
        result = rank(
            split.scorer,
            histories=split.histories,
            targets=split.targets,
            domain_codes=split.domain_codes,
            protocol=protocol,
            domain_names=["Books", "Coffee", "Kitchen"],
            progress=False,
        )
    inside_domain = run(split, PRESETS["domain"])
    small = split.domain_codes[split.targets] == 2
    assert np.array_equal(result.ranks[small], inside_domain.ranks[small])
    assert np.array_equal(result.candidates[small], inside_domain.candidates[small])


def test_seed_changes_the_draw(split):
    one, other = (run(split, Protocol("sampled", "sampled", n_negatives=20, seed=seed)) for seed in (1, 2))
    assert not np.array_equal(one.ranks, other.ranks)


@pytest.mark.parametrize("name", list(PRESETS))
def test_blocks_stay_within_their_memory(name):
    """20,000 users and as many items: no block holds more than a small part of users x items."""
    protocol, users, items = PRESETS[name], 20_000, 20_000
    rng = np.random.default_rng(0)
    histories = Histories(rng.integers(0, items, 5 * users), np.arange(users + 1) * 5)
    domain_codes = (np.arange(items) >= 2000).astype(np.int64)
    blocks = candidate_blocks(protocol, histories, rng.integers(0, items, users), domain_codes, np.arange(users))
    first = next(iter(blocks))
    columns = items if first.items is None else first.items.shape[-1]
    width = 32 if protocol.candidates == "sampled" else 8
    assert len(first.rows) * columns * width <= BLOCK_BYTES
    assert 1 <= len(first.rows) <= 1024
    assert users_per_block(protocol, 100_000_000) == 1


def test_histories_from_arrow_and_lists_agree(split):
    lists = Histories.of(split.histories)
    column = pa.array([history.tolist() for history in split.histories], type=pa.list_(pa.int32()))
    for arrow in (column, pa.chunked_array([column[:60], column[60:]]), pa.concat_arrays([column[:1], column[1:]])):
        assert np.array_equal(Histories.of(arrow).values, lists.values)
        assert np.array_equal(Histories.of(arrow).offsets, lists.offsets)
    part = Histories.of(column[40:50])
    assert np.array_equal(part[3], split.histories[43])
    positions, items = lists.events(np.array([7, 2]))
    assert items.tolist() == [*split.histories[7], *split.histories[2]]
    assert positions.tolist() == [0] * len(split.histories[7]) + [1] * len(split.histories[2])
    with pytest.raises(ValueError, match="row 1 is null"):
        Histories.of(pa.array([[1], None, [2]]))
