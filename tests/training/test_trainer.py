"""What a step does: losses go down, accumulation and processes change nothing, evaluation is the ranker's."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from llmrec.evaluation import EmbeddingScorer, EvaluationData, calc, get_protocol, rank
from llmrec.retrieval.encoding import encode_histories, encode_titles
from llmrec.training.processes import LauncherError, check_world_size
from llmrec.training.tuning import NothingLearnedError, check_adapters_learned
from tests.training.conftest import losses, weights

Make = Callable[..., SimpleNamespace]


class Gradients(TrainerCallback):
    """Keeps the gradients of the first optimizer step."""

    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if not self.found:
            self.found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def no_dropout(model: torch.nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):  # OPT's layers
            module.dropout = 0.0


def loss_of(made: SimpleNamespace) -> float:
    """Mean loss over all examples in evaluation mode, with the negatives of epoch 0."""
    examples = made.trainer.train_dataset
    examples.set_epoch(0)
    made.model.eval()
    with torch.no_grad():
        found = [
            float(made.model(**made.trainer.input_builder(batch, step=0).arguments).loss)
            for start in range(0, len(examples) - 16, 16)
            if (batch := made.trainer.data_collator([examples[i] for i in range(start, start + 16)]))
        ]
    return float(np.mean(found))


@pytest.mark.parametrize("tuning", ["full", "lora", "frozen"])
@pytest.mark.parametrize("loss", ["sampled_softmax", "in_batch", "bce"])
def test_every_tuning_lowers_every_loss(make_trainer: Make, tuning: str, loss: str) -> None:
    rate = {"full": 2e-3, "lora": 1e-2, "frozen": 3e-2}[tuning]
    made = make_trainer(
        tuning=tuning, contrastive_loss=loss, projection_dim=16, num_train_epochs=6, learning_rate=rate,
        lora_dropout=0.0, max_train_examples=96,
    )  # fmt: skip
    before, loss_before = weights(made.model), loss_of(made)
    made.trainer.train()
    assert loss_of(made) < 0.95 * loss_before
    changed = {name for name, value in weights(made.model).items() if not torch.equal(value, before[name])}
    backbone = {name for name in before if "backbone." in name}
    if tuning == "full":
        assert changed == set(before)
    elif tuning == "lora":
        assert changed and all(".lora_" in name or "modules_to_save" in name for name in changed)
        assert any("projection" in name for name in changed)
        check_adapters_learned(made.model)
    else:
        assert changed and not changed & backbone


def test_a_learned_temperature_is_trained_with_lora_too(make_trainer: Make) -> None:
    made = make_trainer(tuning="lora", learn_temperature=True, max_steps=3)
    made.trainer.train()
    trained = {name: p for name, p in made.model.named_parameters() if "log_scale" in name and p.requires_grad}
    assert len(trained) == 1
    assert float(next(iter(trained.values())).detach().exp()) != pytest.approx(1 / 0.05)


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("loss", ["sampled_softmax", "bce"])
def test_accumulation_gives_the_gradients_of_one_big_batch(make_trainer: Make, tuning: str, loss: str) -> None:
    found = []
    for size, accumulate in ((16, 1), (4, 4)):
        gradients = Gradients()
        made = make_trainer(
            f"run-{size}", callbacks=[gradients], tuning=tuning, contrastive_loss=loss, max_steps=1, max_grad_norm=0,
            per_device_train_batch_size=size, gradient_accumulation_steps=accumulate, lora_dropout=0.0,
        )  # fmt: skip
        no_dropout(made.model)
        wake_adapters(made.model)
        made.trainer.train()
        found.append((gradients.found, losses(made.trainer)))
    assert_close(found[0][0], found[1][0])
    assert found[0][1][0][1] == pytest.approx(found[1][1][0][1], rel=1e-5)


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_activation_checkpointing_changes_no_gradient(make_trainer: Make, tuning: str) -> None:
    found = []
    for checkpointing in (False, True):
        gradients = Gradients()
        made = make_trainer(
            str(checkpointing), callbacks=[gradients], tuning=tuning, max_steps=1, max_grad_norm=0, lora_dropout=0.0,
            activation_checkpointing=checkpointing,
        )  # fmt: skip
        no_dropout(made.model)
        wake_adapters(made.model)
        made.trainer.train()
        found.append(gradients.found)
    assert_close(*found)


def test_losses_can_be_logged_for_tensorboard(
    make_trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    made = make_trainer(report_to="tensorboard", max_steps=4)
    made.trainer.train()
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))


def test_the_config_gets_no_foreign_fields(make_trainer: Make) -> None:
    made = make_trainer(max_steps=1)
    made.trainer.train()
    assert "use_cache" not in {name for name in made.model.config.to_dict() if name != "text_config"}


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, "asked for 2 processes, but 1 took part"),
        ({"MASTER_ADDR": "127.0.0.1"}, "asked for several processes, but 1 took part"),
    ],
)
def test_a_launcher_that_starts_too_few_processes_is_found_out(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], message: str
) -> None:
    state = SimpleNamespace(num_processes=1)
    for name in ("WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    check_world_size(state)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LauncherError, match=message):
        check_world_size(state)


@pytest.mark.slow
def test_two_processes_give_the_gradients_and_metrics_of_one(
    make_trainer: Make, tiny_backbone: Path, tiny_prepared: Path, tmp_path: Path
) -> None:
    settings = {"tuning": "full", "max_steps": 1, "max_grad_norm": 0, "eval_users": 31, "eval_strategy": "epoch"}
    job = {
        "backbone": str(tiny_backbone), "data": str(tiny_prepared), "out": str(tmp_path / "two"),
        "losses": ["sampled_softmax", "bce"], "settings": {**settings, "per_device_train_batch_size": 8},
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         str(Path(__file__).with_name("two_processes.py"))],
        capture_output=True, text=True, timeout=200,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "LLMREC_JOB": json.dumps(job),
             "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    for loss in job["losses"]:
        gradients = Gradients()
        made = make_trainer(
            loss, callbacks=[gradients], contrastive_loss=loss, per_device_train_batch_size=16, **settings
        )
        no_dropout(made.model)
        metrics = made.trainer.evaluate()
        made.trainer.train()
        for process in (0, 1):
            # The global batch is the same 16 examples; only the order of summation differs.
            assert_close(gradients.found, load_file(tmp_path / "two" / f"{loss}-{process}.safetensors"))
            found = json.loads((tmp_path / "two" / f"{loss}-{process}.json").read_text())
            assert _timeless(found) == _timeless(metrics)


def test_evaluation_is_the_rankers(make_trainer: Make) -> None:
    made = make_trainer(eval_strategy="epoch", eval_users=None, eval_protocol="domain")
    found = made.trainer.evaluate()
    split = EvaluationData.from_prepared(made.data, "validation")
    users = encode_histories(made.model, made.processor, list(map(split.histories.__getitem__, range(len(split)))),
                             made.title_tokens, progress=False)  # fmt: skip
    items = encode_titles(made.model, made.processor, made.title_tokens, progress=False)
    result = rank(
        EmbeddingScorer("model", users, items), histories=split.histories, targets=split.targets,
        domain_codes=made.data.catalogue.domain_codes, protocol=get_protocol("domain"), progress=False,
    )  # fmt: skip
    expected = calc(result.ranks)
    for name in ("ndcg@10", "recall@10", "recall@1", "mrr@10"):
        assert found[f"eval_{name}"] == pytest.approx(expected[name], abs=1e-12)
    made.trainer.train()
    assert made.trainer.state.best_metric is not None


def test_untouched_adapters_are_refused(make_trainer: Make, caplog: pytest.LogCaptureFixture) -> None:
    made = make_trainer(tuning="lora", max_steps=1)
    with pytest.raises(NothingLearnedError, match="as they were before training"):
        check_adapters_learned(made.model)
    first = next(p for name, p in made.model.named_parameters() if ".lora_B." in name)
    with torch.no_grad():
        first.add_(1.0)
    with caplog.at_level("WARNING", logger="llmrec"):
        check_adapters_learned(made.model)
    assert "adapters got no gradient" in caplog.text


def test_cut_histories_are_counted_once(make_trainer: Make, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="llmrec"):
        made = make_trainer(max_history_items=3, max_history_tokens=16, max_title_tokens=8)
    config, examples = made.model.config, made.trainer.train_dataset
    by_items = by_tokens = 0
    for user in range(len(examples.histories)):
        history = examples.histories[user]
        for place in range(1, len(history)):
            by_items += place > 3
            newest = history[max(0, place - 3) : place]
            by_tokens += sum(len(made.title_tokens[int(i)]) for i in newest) + 2 > config.max_history_tokens
    assert by_items and by_tokens
    message = next(r.getMessage() for r in caplog.records if "histories cut" in r.getMessage())
    assert f"newest 3 items: {by_items}, further cut to 16 tokens: {by_tokens}" in message


def test_nothing_is_pickled_but_what_torch_reads_safely(make_trainer: Make) -> None:
    made = make_trainer(max_steps=2, save_strategy="steps", save_steps=2)
    made.trainer.train()
    folder = Path(made.arguments.output_dir) / "checkpoint-2"
    for file in folder.glob("*.p*t*"):
        with torch.serialization.safe_globals(_numpy_random_state()):
            torch.load(file, weights_only=True)
    assert not list(folder.glob("*.bin"))


def _numpy_random_state() -> list:
    from numpy.dtypes import UInt32DType

    return [np._core.multiarray._reconstruct, np.ndarray, np.dtype, UInt32DType]


def wake_adapters(model: torch.nn.Module) -> None:
    """LoRA's B starts at zero, which leaves A without a gradient."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys() and one
    scale = max(float(value.abs().max()) for value in one.values())
    assert scale > 1e-3
    for name, value in one.items():
        # float32 sums in another order; a wrong scale or a lost share of the batch is off by 10 % or more.
        assert float((value - other[name]).abs().max()) <= 5e-6 * max(1.0, scale), name


def _timeless(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if "runtime" not in name}
