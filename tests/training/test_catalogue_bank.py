"""Negatives from the cached catalogue: who counts, with what correction, how fresh, and the same after a resume."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from llmrec.retrieval.encoding import encode_titles
from llmrec.training.catalogue_bank import CatalogueBank
from llmrec.training.checkpoints import last_complete
from llmrec.training.titles import TitleClasses
from tests.training.conftest import losses, weights
from tests.training.test_resume import KillAt, Killed
from tests.training.test_trainer import no_dropout

Make = Callable[..., SimpleNamespace]

# Six items in two domains; items 1 and 4 have one title, items 0 and 2 are the same thing.
TITLES = [[5], [6], [5], [7, 8], [6], [9]]
DOMAINS = np.array([0, 0, 0, 0, 1, 1])


def bank_of(negatives: int, domains: np.ndarray | None = DOMAINS, **options: Any) -> CatalogueBank:
    """A bank over the six items, whose vectors are the numbers of their titles."""
    bank = CatalogueBank(None, TITLES, TitleClasses(TITLES, DOMAINS), domains, negatives, 10, **options)
    state = {"vectors": torch.from_numpy(bank.titles.astype(np.float32))[:, None], "refreshed_at": torch.tensor(0)}
    bank.load_state_tensors(state, torch.device("cpu"))
    return bank


def candidates(bank: CatalogueBank, targets: list[int], items: list[int], excluded: list[int]) -> dict:
    return bank.candidates(3, torch.tensor(targets), torch.tensor(items), torch.tensor(excluded, dtype=torch.long))


def test_the_whole_catalogue_counts_once() -> None:
    # The first user has item 3; the batch's items are 0 and 4, and an empty column.
    found = candidates(bank_of(-1), [0, 4], [0, 4, -1], [0 * 6 + 3])
    assert found["bank"].flatten().tolist() == [0, 1, 3, 1, 5]  # representatives 0, 1, 3, 4 and 5, by their titles
    assert found["bank_mask"].tolist() == [[False, True, False, False, False], [False, False, False, False, True]]
    assert not found["bank"].requires_grad
    # Where domains do not matter an item is a title, and title 1 is among the batch's items as item 4.
    found = candidates(bank_of(-1, None), [0, 4], [0, 4], [0 * 6 + 3])
    assert found["bank"].flatten().tolist() == [0, 1, 3, 5]
    assert found["bank_mask"].tolist() == [[False, False, False, True], [False, False, True, True]]


def test_draws_are_uniform_and_depend_on_seed_and_step_only() -> None:
    bank, count = bank_of(2), np.zeros(5)
    for step in range(2000):
        drawn = bank.draw(step)
        assert len(set(drawn.tolist())) == 2
        count[drawn] += 1
    assert np.abs(count / 2000 - 2 / 5).max() < 4 * np.sqrt(0.4 * 0.6 / 2000)
    again = [bank_of(2).draw(step).tolist() for step in range(20)]
    assert [bank.draw(step).tolist() for step in range(20)] == again
    assert [bank_of(2, seed=1).draw(step).tolist() for step in range(20)] != again
    assert len(bank_of(99).draw(0)) == 5


def test_the_correction_is_the_log_of_the_chance_to_be_a_candidate() -> None:
    rng = np.random.default_rng(0)
    share = np.array([0.5, 0.3, 0.0, 0.15, 0.05, 0.0])  # of the targets, at the representatives
    batch_size, trials = 4, 20000
    bank = bank_of(2, expected_counts=batch_size * share)
    drawn = np.zeros((trials, 6), dtype=bool)
    drawn[np.arange(trials)[:, None], rng.choice(6, p=share, size=(trials, batch_size))] = True
    for trial in range(trials):
        drawn[trial, bank.pool[bank.draw(trial)]] = True
    frequency = drawn[:, bank.pool].mean(0)
    found = bank_of(-1, expected_counts=batch_size * share)
    assert torch.equal(candidates(found, [0], [0, 4], [])["bank_log_q"], torch.zeros(5))
    assert torch.equal(candidates(found, [0], [0, 4, -1], [])["item_log_q"], torch.zeros(3))
    chance = bank._tables["log_chance"][torch.from_numpy(bank.pool)].exp().numpy()
    # Poisson for binomial: exp(-q) for (1 - q / 4)^4, which for the most frequent item is 0.14 for 0.06.
    assert np.abs(chance - frequency).max() < 0.06
    rare = share[bank.pool] <= 0.15
    assert np.abs(chance - frequency)[rare].max() < 0.03
    partial = candidates(bank, [0], [0, 4, -1], [])
    assert partial["item_log_q"].exp().tolist() == pytest.approx([chance[0], chance[3], 1.0])
    assert partial["bank_log_q"].exp().tolist() == pytest.approx(chance[bank.draw(3)].tolist())


def test_a_full_softmax_over_the_catalogue(make_trainer: Make) -> None:
    made = make_trainer(catalogue_negatives=-1, logq_correction=True, max_pass_tokens=70)
    no_dropout(made.model)
    trainer, classes = made.trainer, made.trainer.data_collator.classes
    bank = trainer.input_builder.bank
    bank.refresh(made.model, 0, torch.device("cpu"))
    examples = [trainer.train_dataset[i] for i in range(12)]
    batch = trainer.data_collator(examples)
    arguments = trainer.input_builder(batch, 0).arguments
    with torch.no_grad():
        found = made.model.eval()(**arguments)
    everything = encode_titles(made.model, made.processor, made.title_tokens, progress=False)
    domains = np.asarray(made.data.catalogue.domain_codes)
    total = 0.0
    for row, example in enumerate(examples):
        target = example["target"]
        seen = classes.text[made.trainer.train_dataset.histories[example["user"]]]
        counts = (domains == domains[target]) & (classes.representative == np.arange(len(classes)))
        counts &= ~np.isin(classes.text, seen)
        counts[classes.representative[target]] = True
        logits = everything @ found.user_embeds[row] / made.model.config.temperature
        total += float(torch.logsumexp(logits[torch.from_numpy(counts)], 0) - logits[target])
    assert float(found.loss) == pytest.approx(total / len(examples), rel=1e-5)


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_the_matrix_is_refreshed_on_time_and_disturbs_nothing(
    make_trainer: Make, monkeypatch: pytest.MonkeyPatch, tuning: str
) -> None:
    made = make_trainer(tuning=tuning, catalogue_negatives=8, catalogue_refresh_steps=3, max_steps=8,
                        gradient_accumulation_steps=2, per_device_train_batch_size=8)  # fmt: skip
    refreshed: list[int] = []
    refresh = CatalogueBank.refresh

    def watching(bank: CatalogueBank, model: Any, step: int, device: torch.device) -> None:
        before = torch.get_rng_state(), np.random.get_state()[1].copy()
        training = model.training
        refresh(bank, model, step, device)
        assert torch.equal(before[0], torch.get_rng_state())
        assert np.array_equal(before[1], np.random.get_state()[1])
        assert model.training == training
        fresh = encode_titles(model, made.processor, made.title_tokens, rows=bank.titles, progress=False)
        # Other titles in a batch, so other sums; the model of a step before is off by far more.
        assert float((bank.vectors - fresh).abs().max()) < 1e-5
        refreshed.append(step)

    monkeypatch.setattr(CatalogueBank, "refresh", watching)
    made.trainer.train()
    assert refreshed == [0, 3, 6]
    bank = made.trainer.input_builder.bank
    stale = encode_titles(made.model, made.processor, made.title_tokens, rows=bank.titles, progress=False)
    assert float((bank.vectors - stale).abs().max()) > 1e-3


def test_more_negatives_are_logged(make_trainer: Make) -> None:
    found = {}
    for negatives in (0, 10, -1):
        made = make_trainer(f"run{negatives}", catalogue_negatives=negatives, max_steps=3, logging_steps=3)
        made.trainer.train()
        found[negatives] = made.trainer.state.log_history[0]
    # 24 titles in a domain, of which a user has some and the batch has others.
    assert found[0]["negatives"] + 2 < found[10]["negatives"] < found[-1]["negatives"] < 24
    assert all(0 < log["fill_rate"] <= 1 and log["tokens_per_second"] > 0 for log in found.values())


@pytest.mark.parametrize(("packing", "kill"), [("auto", 5), ("auto", 8), ("off", 10)])
def test_a_resumed_run_goes_on_with_the_same_matrix(make_trainer: Make, packing: str, kill: int) -> None:
    recipe = {
        "tuning": "full", "catalogue_negatives": 12, "catalogue_refresh_steps": 4, "max_steps": 11, "logging_steps": 1,
        "save_strategy": "steps", "save_steps": 3, "logq_correction": True, "packing": packing,
    }  # fmt: skip
    undisturbed = make_trainer("undisturbed", **recipe)
    undisturbed.trainer.train()
    # Resumed from 3 (matrix of step 0), 6 (of step 4) or 9 (of step 8); 4 and 8 are due for a new one soon after.
    killed = make_trainer("killed", callbacks=[KillAt(kill)], **recipe)
    with pytest.raises(Killed):
        killed.trainer.train()
    checkpoint = last_complete(Path(killed.arguments.output_dir))
    resumed = make_trainer("killed", **recipe)
    resumed.trainer.train(resume_from_checkpoint=str(checkpoint))
    assert losses(resumed.trainer) == losses(undisturbed.trainer)
    expected = weights(undisturbed.model)
    assert all(torch.equal(value, expected[name]) for name, value in weights(resumed.model).items())


def test_the_matrix_of_another_catalogue_is_refused() -> None:
    state = bank_of(2).state_tensors()
    state["vectors"] = state["vectors"][:-1]
    with pytest.raises(ValueError, match="has 3 titles, the catalogue 4"):
        bank_of(2).load_state_tensors(state, torch.device("cpu"))
    assert CatalogueBank(None, TITLES, TitleClasses(TITLES, DOMAINS), DOMAINS, 2, 10).state_tensors() == {}
    with pytest.raises(RuntimeError, match="call refresh"):
        candidates(CatalogueBank(None, TITLES, TitleClasses(TITLES, DOMAINS), DOMAINS, 2, 10), [0], [0], [])
