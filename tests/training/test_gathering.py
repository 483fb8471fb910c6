"""Two processes that gather their items are one process with the batches of both."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llmrec.training.candidates import in_batch_mask
from llmrec.training.gathering import NOBODY, GatheredItems, gather_items, gathered_mask
from tests.training.test_trainer import Gradients, no_dropout, wake_adapters

Make = Callable[..., SimpleNamespace]

COMMON = {
    "precision": "fp32", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "eval_strategy": "no",
    "learning_rate": 3e-3, "max_steps": 1, "max_grad_norm": 0, "logging_steps": 1, "lora_dropout": 0.0,
}  # fmt: skip
# Trainings on two processes; the backbone is BERT, or OPT whose histories share prefixes.
VARIANTS: dict[str, dict[str, Any]] = {
    "packed": {"tuning": "full", "learn_temperature": True},
    "rows": {"tuning": "full", "packing": "mask", "projection_dim": 8},
    "padded": {"tuning": "full", "packing": "off"},
    "accumulated": {"tuning": "lora", "gradient_accumulation_steps": 2},
    "any-domain": {"tuning": "full", "negative_domain": "any"},
    "shared-prefixes": {"decoder": True, "tuning": "full", "negatives_per_example": 2, "logq_correction": True},
    "cached": {"tuning": "full", "learn_temperature": True, "max_pass_tokens": 60},
    "cached-shared-prefixes": {
        "decoder": True, "tuning": "lora", "learn_temperature": True, "max_pass_tokens": 60,
        "gradient_accumulation_steps": 2, "logq_correction": True, "data_seed": 6,
    },
    "cached-temperature-alone": {"tuning": "frozen", "learn_temperature": True, "max_pass_tokens": 60},
    "cached-own-negatives": {"tuning": "full", "contrastive_loss": "sampled_softmax", "max_pass_tokens": 100},
    "bank": {"tuning": "full", "catalogue_negatives": 9, "logq_correction": True},
    "cached-whole-catalogue": {
        "decoder": True, "tuning": "full", "catalogue_negatives": -1, "max_pass_tokens": 60, "learn_temperature": True,
        "data_seed": 6,
    },
    "not-gathered": {"tuning": "full", "gather_negatives": False},
}  # fmt: skip


@pytest.fixture(scope="module")
def two_processes(
    tiny_backbone: Path, tiny_decoder: Path, tiny_prepared: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with what two processes found, variant by variant."""
    out = tmp_path_factory.mktemp("two")
    variants = {}
    for name, variant in VARIANTS.items():
        settings = dict(variant)
        backbone = tiny_decoder if settings.pop("decoder", False) else tiny_backbone
        variants[name] = {"backbone": str(backbone), "per_device_train_batch_size": 8, **settings}
    job = {"data": str(tiny_prepared), "out": str(out), "common": COMMON, "variants": variants}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         str(Path(__file__).with_name("two_processes_candidates.py"))],
        capture_output=True, text=True, timeout=300,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "LLMREC_JOB": json.dumps(job),
             "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    return out


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_two_processes_are_one(two_processes: Path, make_trainer: Make, tiny_decoder: Path, name: str) -> None:
    settings = dict(VARIANTS[name])
    if settings.pop("decoder", False):
        settings["backbone"] = str(tiny_decoder)
    gradients = Gradients()
    made = make_trainer(name, callbacks=[gradients], **{**COMMON, **settings}, per_device_train_batch_size=16)
    no_dropout(made.model)
    wake_adapters(made.model)
    made.trainer.train()
    expected, log = gradients.found, made.trainer.state.log_history[0]
    scale = max(float(value.abs().max()) for value in expected.values())
    assert scale > 1e-3
    both = [json.loads((two_processes / f"{name}-{process}.json").read_text()) for process in (0, 1)]
    for process in (0, 1):
        found = load_file(two_processes / f"{name}-{process}.safetensors")
        assert found.keys() == expected.keys()
        worst = max(float((found[key] - value).abs().max()) for key, value in expected.items())
        if name == "not-gathered":
            # Fewer negatives: another loss. (So this comparison can tell.)
            assert worst > 0.05 * scale
            assert both[process]["log"]["negatives"] < 0.7 * log["negatives"]
            continue
        # float32 sums in another order; a temperature's gradient is a small difference of large sums.
        assert worst <= 1e-5 * scale + 1e-6
        assert both[process]["log"]["loss"] == pytest.approx(log["loss"], rel=1e-5)
        assert both[process]["log"]["negatives"] == log["negatives"]
    if name not in ("cached-own-negatives", "not-gathered"):
        assert both[0]["items"] != both[1]["items"], "batches of equal size show less"
    if name.startswith("cached"):
        assert all(min(one["chunks"]) > 1 for one in both)
        # One chunk of a step sends the gradients of both processes off, and it is the last.
        steps = settings.get("gradient_accumulation_steps", 1)
        assert all(one["unsynchronised"] == sum(one["chunks"]) + steps - 1 for one in both)


def test_first_occurrences_count(monkeypatch: pytest.MonkeyPatch) -> None:
    other = torch.tensor([2, 5, 9])  # the other rank's items, in columns 0 to 2 and after ours
    for rank in (0, 1):

        def gather(share: torch.Tensor, rank: int = rank) -> torch.Tensor:
            theirs = torch.nn.functional.pad(other, (0, 1), value=NOBODY)
            if share.is_floating_point():
                theirs = torch.tensor([0.2, 0.5, 0.9, 0.0])
            return torch.cat([share, theirs] if rank == 0 else [theirs, share])

        monkeypatch.setattr("llmrec.training.gathering.gather", gather)
        sizes = [4, 3] if rank == 0 else [3, 4]
        own, log_q = torch.tensor([1, 5, 7, 9]), torch.tensor([0.1, 0.5, 0.7, 0.9])
        found = gather_items(torch.tensor([9, 1]), own, log_q, sizes)
        assert found.per_rank == 4
        if rank == 0:
            assert found.ids.tolist() == [1, 5, 7, 9, 2, NOBODY, NOBODY, NOBODY]
            assert found.positive_index.tolist() == [3, 0]
        else:
            assert found.ids.tolist() == [2, 5, 9, NOBODY, 1, NOBODY, 7, NOBODY]
            assert found.positive_index.tolist() == [2, 4]
        assert found.log_q[found.positive_index].tolist() == pytest.approx([0.9, 0.1])


def test_the_mask_leaves_empty_columns_out() -> None:
    text, domain = torch.tensor([0, 1, 2, 3, 4, 0]), torch.tensor([0, 0, 0, 1, 1, 1])
    items = GatheredItems(torch.tensor([1, 2, NOBODY, 0, 3, NOBODY]), 3, torch.tensor([0, 4]), None)
    excluded = torch.tensor([0 * 6 + 2])  # the first example's user has item 2
    mask = gathered_mask(items, torch.tensor([1, 3]), excluded, text, domain)
    # Item 0 fills up for nobody in the clamped ids; only the real one counts.
    assert mask.tolist() == [[True, False, False, True, False, False], [False, False, False, False, True, False]]
    whole = gathered_mask(items, torch.tensor([1, 3]), excluded, text, None)
    assert whole.tolist() == [[True, False, False, True, True, False], [True, True, False, True, True, False]]
    assert not in_batch_mask(torch.tensor([1]), torch.tensor([1]), torch.empty(0, dtype=torch.long), text).any()
