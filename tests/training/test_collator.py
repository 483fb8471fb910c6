"""The collator against a plain twin that works on item ids and Python sets, example by example."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llmrec.evaluation.histories import Histories
from llmrec.training.collator import Collator, expected_counts
from llmrec.training.examples import PrefixExamples
from llmrec.training.negatives import NegativeSampler
from llmrec.training.titles import TitleClasses
from modeling_llmrec import LLMRecModel, LLMRecProcessor

LOSSES = ("sampled_softmax", "in_batch", "bce")


@pytest.fixture
def parts(tiny_backbone) -> Callable[..., SimpleNamespace]:
    """A collator over random histories of 40 items, some with equal titles within and across domains."""

    def make(loss: str, n: int, domain: str = "target", logq: bool = False) -> SimpleNamespace:
        model = LLMRecModel.from_backbone(tiny_backbone, contrastive_loss=loss, max_history_items=4)
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
        counts = expected_counts(examples.targets(), classes, sampler, 16) if logq else None
        collator = Collator(processor, tokens, histories, classes, codes, sampler, loss, domain, counts)
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
        together = made.model(**batch)
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
        output = made.model(**batch)
        logits = output.scores / made.model.config.temperature - batch["item_log_q"]
        logits = logits.masked_fill(~batch["candidate_mask"], float("-inf"))
    assert output.loss == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits, batch["positive_index"])), abs=1e-5
    )


def _texts(processor: LLMRecProcessor, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> list[tuple[int, ...]]:
    return [tuple(ids[mask.bool()].tolist()) for ids, mask in zip(input_ids, attention_mask, strict=True)]


def _text(processor: LLMRecProcessor, titles: list[str]) -> tuple[int, ...]:
    batch = processor(histories=[titles])
    return tuple(batch["input_ids"][0].tolist())
