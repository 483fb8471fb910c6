"""The collator against a plain twin that works on item ids and Python sets, example by example."""

import copy
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from llmrec.evaluation.histories import Histories
from llmrec.training.collator import Collator, expected_counts
from llmrec.training.examples import PrefixExamples
from llmrec.training.negatives import NegativeSampler
from llmrec.training.sampling import EpochSampler
from llmrec.training.titles import TitleClasses
from modeling_llmrec import LLMRecModel, LLMRecProcessor

# What the trainer builds masks over other items from, and takes away before the model.
IDS = ("target_ids", "item_ids", "excluded")


@pytest.fixture
def parts(tiny_backbone) -> Callable[..., SimpleNamespace]:
    """A collator over random histories of 40 items, some with equal titles within and across domains."""

    def make(loss: str, n: int, domain: str = "target", logq: bool = False, **packing) -> SimpleNamespace:
        model = LLMRecModel.from_backbone(tiny_backbone, contrastive_loss=loss, max_history_items=4, pooling="last")
        processor = LLMRecProcessor.from_backbone(tiny_backbone, config=model.config)
        titles = [f"red bean {i}" if i % 3 else f"large pan blue {i}" for i in range(40)]
        titles[9], titles[17], titles[21] = titles[3], titles[4], titles[20]
        tokens = processor.tokenize_titles(titles)
        codes = np.arange(40, dtype=np.int32) % 2
        rng = np.random.default_rng(2)
        histories = Histories.of([rng.integers(0, 40, rng.integers(2, 9)) for _ in range(30)])
        examples = PrefixExamples(histories, 4)
        examples.set_epoch(3)
        classes = TitleClasses(tokens, codes)
        sampler = NegativeSampler(classes, codes, ["a", "b"], n, domain, seed=7)
        shared = packing.get("shared_negatives", 0)
        counts = expected_counts(examples.targets(), classes, sampler, 16, shared) if logq else None
        collator = Collator(processor, tokens, histories, classes, codes, sampler, loss, domain, counts, **packing)
        batch = [examples[int(i)] for i in rng.permutation(len(examples))[:16]]
        return SimpleNamespace(**{name: value for name, value in locals().items() if name != "make"})

    return make


@pytest.mark.parametrize("domain", ["target", "any"])
@pytest.mark.parametrize(("loss", "n"), [("sampled_softmax", 5), ("bce", 1), ("in_batch", 0), ("in_batch", 3)])
def test_against_the_plain_twin(parts: Callable, loss: str, n: int, domain: str) -> None:
    made = parts(loss, n, domain)
    batch = made.collator(made.batch)
    title_of, codes = made.titles, made.codes
    # Every title of the batch once: targets and negatives, told apart by title and domain.
    drawn = [made.sampler.draw(3, e["example"], e["target"], made.histories[e["user"]]).tolist() for e in made.batch]
    members = {(title_of[i], codes[i]) for i in [*(e["target"] for e in made.batch), *sum(drawn, [])]}
    texts = _texts(made.processor, batch["item_input_ids"], batch["item_attention_mask"])
    assert len(texts) == len(members)
    expected_texts = {_text(made.processor, [title]) for title, _ in members}
    assert set(texts) == expected_texts
    for row, example in enumerate(made.batch):
        target = example["target"]
        assert texts[int(batch["positive_index"][row])] == _text(made.processor, [title_of[target]])
        bought = {title_of[i] for i in made.histories[example["user"]]} | {title_of[target]}
        if loss == "in_batch":
            allowed = {
                (title, code) for title, code in members
                if title not in bought and (domain == "any" or code == codes[target])
            }  # fmt: skip
        else:
            allowed = {(title_of[i], codes[i]) for i in drawn[row]}
            assert len(allowed) == n
        counted = batch["candidate_mask"][row].nonzero().flatten().tolist()
        negatives = [column for column in counted if column != int(batch["positive_index"][row])]
        assert len(counted) == len(negatives) + 1 == len(allowed) + 1
        assert sorted(texts[column] for column in negatives) == sorted(
            _text(made.processor, [title]) for title, _ in allowed
        )
    histories = _texts(made.processor, batch["input_ids"], batch["attention_mask"])
    assert histories == [_text(made.processor, [title_of[i] for i in e["history"]]) for e in made.batch]
    assert "item_log_q" not in batch


@pytest.mark.parametrize(("loss", "n"), [("sampled_softmax", 5), ("bce", 2), ("in_batch", 0)])
def test_the_masked_loss_is_that_of_each_example_with_its_own_candidates(parts: Callable, loss: str, n: int) -> None:
    made = parts(loss, n)
    made.model.eval()
    batch = made.collator(made.batch)
    with torch.no_grad():
        together = made.model(**_for_model(batch))
        one_by_one = []
        for row in range(len(made.batch)):
            columns = batch["candidate_mask"][row].nonzero().flatten()
            mine = made.model(
                input_ids=batch["input_ids"][row : row + 1],
                attention_mask=batch["attention_mask"][row : row + 1],
                item_input_ids=batch["item_input_ids"][columns],
                item_attention_mask=batch["item_attention_mask"][columns],
                positive_index=(columns == batch["positive_index"][row]).nonzero().flatten(),
            )
            one_by_one.append(mine.loss)
    assert together.loss == pytest.approx(float(torch.stack(one_by_one).mean()), abs=1e-5)


def test_log_q_is_the_expected_count_and_shifts_the_logits(parts: Callable) -> None:
    made = parts("in_batch", 3, logq=True)
    # Against simulation: how often each title is among the targets and negatives of a random batch.
    rng, count, trials = np.random.default_rng(0), np.zeros(40), 3000
    for _ in range(trials):
        for index in rng.integers(0, len(made.examples), 16):
            example = made.examples[int(index)]
            count[made.classes.representative[example["target"]]] += 1
            pool = made.sampler.pool_of(example["target"])
            count[rng.choice(pool, 3, replace=False)] += 1
    expected = expected_counts(made.examples.targets(), made.classes, made.sampler, 16)
    assert expected.sum() == pytest.approx(16 * 4)
    assert np.allclose(count / trials, expected, rtol=0.1, atol=0.01)
    assert (expected[made.classes.representative != np.arange(40)] == 0).all()
    batch = made.collator(made.batch)
    assert batch["item_log_q"].shape == (len(batch["item_input_ids"]),)
    made.model.eval()
    with torch.no_grad():
        output = made.model(**_for_model(batch))
        logits = output.scores / made.model.config.temperature - batch["item_log_q"]
        logits = logits.masked_fill(~batch["candidate_mask"], float("-inf"))
    assert output.loss == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits, batch["positive_index"])), abs=1e-5
    )


# -- packed ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", ["target", "any"])
@pytest.mark.parametrize("how", ["segments", "mask", "flash"])
@pytest.mark.parametrize(("loss", "n", "k"), [("sampled_softmax", 5, 0), ("bce", 1, 0), ("in_batch", 2, 6)])
def test_packed_and_padded_say_the_same(parts: Callable, loss: str, n: int, k: int, how: str, domain: str) -> None:
    padded, packed = (parts(loss, n, domain, logq=loss == "in_batch", packing=one, shared_negatives=k)
                      for one in ("off", how))  # fmt: skip
    expected, found = padded.collator(padded.batch), packed.collator(packed.batch)
    for name in ("positive_index", "candidate_mask", "item_log_q"):
        assert (name in expected) == (name in found) == (loss == "in_batch" or name != "item_log_q")
        if name in found:
            assert torch.equal(expected[name], found[name]), name
    (texts,) = found["texts"]
    read = [
        tuple(texts.input_ids.flatten()[start:end].tolist())
        for start, end in zip(texts.starts.tolist(), texts.ends.tolist(), strict=True)
    ]
    histories = _texts(padded.processor, expected["input_ids"], expected["attention_mask"])
    items = _texts(padded.processor, expected["item_input_ids"], expected["item_attention_mask"])
    assert [read[i] for i in found["user_index"]] == histories
    assert [read[i] for i in found["item_index"]] == items
    for batch in (expected, found):
        assert set(IDS) & set(batch) == (set(IDS) if loss == "in_batch" else set())


@pytest.mark.parametrize("share", [True, False])
def test_packed_masks_are_those_of_brute_force(parts: Callable, share: bool) -> None:
    made = parts("in_batch", 0, packing="segments", share_prefixes=share, shared_negatives=8)
    batch = made.collator(made.batch)
    titles, codes = made.titles, made.codes
    targets = [example["target"] for example in made.batch]
    first = min(example["example"] for example in made.batch)
    drawn = made.sampler.draw_shared(3, first, np.array(targets), 8).tolist()
    assert len(drawn) == 16
    # Candidates: the targets and the shared negatives, told apart by title and domain, each once.
    members = {(titles[i], codes[i]) for i in [*targets, *drawn]}
    items = batch["item_ids"].tolist()
    assert sorted((titles[i], codes[i]) for i in items) == sorted(members) and items == sorted(items)
    for row, example in enumerate(made.batch):
        target, bought = example["target"], {titles[i] for i in made.histories[example["user"]]}
        expected = [
            (titles[item], codes[item]) == (titles[target], codes[target])
            or (titles[item] not in bought | {titles[target]} and codes[item] == codes[target])
            for item in items
        ]
        assert batch["candidate_mask"][row].tolist() == expected
        assert items[int(batch["positive_index"][row])] == int(batch["target_ids"][row])
        assert titles[int(batch["target_ids"][row])] == titles[target]


def test_a_batch_depends_on_seed_epoch_and_its_examples_only(parts: Callable) -> None:
    keywords = {"packing": "segments", "share_prefixes": True, "shared_negatives": 8}
    fresh, busy = parts("in_batch", 2, **keywords), parts("in_batch", 2, **keywords)
    for start in range(3):
        busy.collator([busy.examples[i] for i in range(start, start + 9)])
    one, same = fresh.collator(fresh.batch), busy.collator(busy.batch)
    assert one.keys() == same.keys()
    for name, value in one.items():
        if name == "texts":
            assert torch.equal(value[0].input_ids, same[name][0].input_ids)
        else:
            assert torch.equal(value, same[name]), name
    busy.examples.set_epoch(4)
    other = busy.collator([busy.examples[example["example"]] for example in busy.batch])
    assert not torch.equal(one["item_ids"], other["item_ids"])


def test_workers_of_a_data_loader_make_the_same_batches(parts: Callable) -> None:
    made = parts("in_batch", 2, packing="segments", share_prefixes=True, shared_negatives=8, max_pass_tokens=60)
    made.examples.by_user = True
    batches = [
        list(DataLoader(made.examples, 16, sampler=EpochSampler(made.examples, 1), collate_fn=made.collator,
                        num_workers=workers))
        for workers in (0, 2)
    ]  # fmt: skip
    assert len(batches[0]) == len(batches[1]) == -(-len(made.examples) // 16)
    for alone, other in zip(*batches, strict=True):
        assert torch.equal(alone["candidate_mask"], other["candidate_mask"])
        assert len(alone["texts"]) == len(other["texts"]) > 1
        for one, two in zip(alone["texts"], other["texts"], strict=True):
            assert torch.equal(one.input_ids, two.input_ids) and torch.equal(one.ends, two.ends)


def test_expected_counts_with_shared_negatives_and_several_processes(parts: Callable) -> None:
    made = parts("in_batch", 2)
    targets = made.examples.targets()
    expected = expected_counts(targets, made.classes, made.sampler, 6, shared_negatives=5, processes=3)
    rng, count, trials = np.random.default_rng(0), np.zeros(40), 3000
    for trial in range(trials):
        for process in range(3):
            batch = targets[rng.integers(0, len(targets), 6)]
            np.add.at(count, made.classes.representative[batch], 1)
            for target in batch:
                count[rng.choice(made.sampler.pool_of(target), 2, replace=False)] += 1
            count[made.sampler.draw_shared(process, trial, batch, 5)] += 1
    assert np.allclose(count / trials, expected, rtol=0.1, atol=0.02)
    alone = expected_counts(targets, made.classes, made.sampler, 6, shared_negatives=5)
    assert np.allclose(3 * alone, expected)


def test_what_the_collator_cannot_do_is_named(parts: Callable) -> None:
    with pytest.raises(ValueError, match="packing 'tight' is none of segments, mask, flex, flash, off"):
        parts("in_batch", 0, packing="tight")
    for packing in ("off", "flash"):
        with pytest.raises(ValueError, match=f"share_prefixes needs packing .* not '{packing}'"):
            parts("in_batch", 0, packing=packing, share_prefixes=True)
    with pytest.raises(ValueError, match="shared_negatives=3 needs the loss 'in_batch', not 'bce'"):
        parts("bce", 1, shared_negatives=3)
    made = parts("in_batch", 0)
    for field, value in (("pooling", "mean"), ("item_order", "newest_first")):
        changed = copy.deepcopy(made.processor)
        setattr(changed.config, field, value)
        with pytest.raises(ValueError, match="share_prefixes needs pooling='last' and item_order='oldest_first'"):
            _again(made, changed, made.tokens)
    with pytest.raises(ValueError, match="a title has 3000 tokens, more than max_history_tokens="):
        _again(made, made.processor, [[1] * 3000, *made.tokens[1:]])


def _again(made: SimpleNamespace, processor: LLMRecProcessor, tokens: list[list[int]]) -> Collator:
    return Collator(
        processor, tokens, made.histories, made.classes, made.codes, made.sampler, "in_batch",
        packing="segments", share_prefixes=True,
    )  # fmt: skip


def _for_model(batch: dict) -> dict:
    return {name: value for name, value in batch.items() if name not in IDS}


def _texts(processor: LLMRecProcessor, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> list[tuple[int, ...]]:
    return [tuple(ids[mask.bool()].tolist()) for ids, mask in zip(input_ids, attention_mask, strict=True)]


def _text(processor: LLMRecProcessor, titles: list[str]) -> tuple[int, ...]:
    batch = processor(histories=[titles])
    return tuple(batch["input_ids"][0].tolist())
