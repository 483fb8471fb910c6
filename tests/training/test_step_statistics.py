"""What is logged beside the loss is what was computed."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from llmrec.training.step_statistics import StepStatistics
from llmrec.training.trainer import mean_logged

Make = Callable[..., SimpleNamespace]


@pytest.mark.parametrize("packing", ["segments", "mask", "off"])
def test_counts_are_those_of_the_batches(make_trainer: Make, packing: str) -> None:
    made = make_trainer(packing=packing, row_tokens=64, shared_negatives=3)
    statistics, examples = StepStatistics(), made.trainer.train_dataset
    tokens = slots = negatives = 0
    for start in (0, 16):
        batch = made.trainer.data_collator([examples[i] for i in range(start, start + 16)])
        statistics.add(made.trainer.input_builder(batch, 0).arguments)
        titles = [made.title_tokens[int(i)] for i in batch["item_ids"]]
        histories = [[made.title_tokens[int(i)] for i in examples[j]["history"]] for j in range(start, start + 16)]
        tokens += sum(len(made.processor.layout_item(title)) for title in titles)
        tokens += sum(len(made.processor.layout_history(history)) for history in histories)
        if packing == "off":
            slots += batch["input_ids"].numel() + batch["item_input_ids"].numel()
        else:
            slots += batch["texts"][0].input_ids.numel()
        for row in range(16):
            negatives += int(batch["candidate_mask"][row].sum()) - 1
    doubled = statistics.summary(lambda sums: 2 * sums)  # as if a second process had done the same
    assert doubled["fill_rate"] == pytest.approx(tokens / slots, abs=1e-4)
    assert (doubled["fill_rate"] == 1) == (packing == "segments")
    assert doubled["negatives"] == pytest.approx(negatives / 32, abs=0.01)
    assert statistics.summary(lambda sums: sums) == {}


def test_the_clock_leaves_out_what_is_between_log_and_step(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    statistics = StepStatistics()
    mask = torch.ones(2, 5, dtype=torch.long)
    batch = {
        "attention_mask": mask, "item_attention_mask": mask, "positive_index": torch.tensor([0, 1]),
        "candidate_mask": torch.zeros(2, 2, dtype=torch.bool), "bank_mask": torch.ones(2, 3, dtype=torch.bool),
    }  # fmt: skip
    now[0] += 50  # an evaluation
    statistics.restart_clock()
    now[0] += 2
    statistics.add(batch)
    statistics.restart_clock()  # too late: a step is on the clock
    now[0] += 2
    found = statistics.summary(lambda sums: sums)
    assert found == {"fill_rate": 1.0, "tokens_per_second": 20 / 4, "negatives": 3.0}


def test_a_mean_weighs_each_entry_with_its_steps() -> None:
    log = [{"step": 2, "loss": 3.0, "negatives": 5.0}, {"step": 2, "eval_ndcg@10": 0.1}, {"step": 6, "loss": 1.5}]
    assert mean_logged(log) == pytest.approx((2 * 3.0 + 4 * 1.5) / 6)
    assert mean_logged(log, "negatives") == 5.0
