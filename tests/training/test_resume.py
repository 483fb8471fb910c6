"""A run that is stopped and resumed gives the losses and weights of an undisturbed one, to the last bit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from llmrec.training.checkpoints import (
    MARKER,
    Batches,
    CheckpointError,
    check_resumable,
    checkpoint_folders,
    is_complete,
    last_complete,
    mark_complete,
    remove_incomplete,
    rotate,
    step_of,
)
from llmrec.training.sampling import EpochSampler
from tests.training.conftest import losses, weights
from tests.training.launching import launch
from tests.training.many_processes import without_dropout

Make = Callable[..., SimpleNamespace]


class Killed(Exception):
    """Stands for SIGKILL: nothing of the trainer runs after it."""


class KillAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Killed


RECIPES = {
    "lora, epochs and accumulation": {
        "tuning": "lora", "num_train_epochs": 2, "gradient_accumulation_steps": 2, "save_strategy": "steps",
        "save_steps": 4, "logging_steps": 3, "per_device_train_batch_size": 8,
    },
    "full, grouped by length, evaluation": {
        "tuning": "full", "num_train_epochs": 2, "train_sampling_strategy": "group_by_length", "eval_strategy": "steps",
        "save_strategy": "steps", "eval_steps": 3, "save_steps": 3, "logging_steps": 2, "negative_domain": "any",
        "contrastive_loss": "sampled_softmax", "negatives_per_example": 4, "eval_users": 20,
    },
    "save at the end of epochs": {
        "tuning": "full", "num_train_epochs": 2, "save_strategy": "epoch", "eval_strategy": "epoch", "logging_steps": 5,
        "contrastive_loss": "bce", "eval_users": 20,
    },
    # The matrix of step 5 is still in use after the checkpoint of step 6.
    "cached vectors of the catalogue": {
        "tuning": "full", "contrastive_loss": "in_batch", "catalogue_negatives": 12, "catalogue_refresh_steps": 5,
        "max_steps": 13, "save_strategy": "steps", "save_steps": 3, "logging_steps": 2,
    },
    "max_steps within an epoch": {"max_steps": 11, "save_strategy": "steps", "save_steps": 4, "logging_steps": 100},
}  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
def test_resumed_runs_repeat_the_undisturbed_one(make_trainer: Make, recipe: str) -> None:
    undisturbed = make_trainer("undisturbed", **RECIPES[recipe])
    undisturbed.trainer.train()
    steps = undisturbed.trainer.state.global_step
    expected_log = _timeless(undisturbed.trainer.state.log_history)
    expected_weights = weights(undisturbed.model)
    assert len(losses(undisturbed.trainer)) >= 3
    for kill in sorted({3, steps // 2, steps - 1}):
        run = f"killed-{kill}"
        killed = make_trainer(run, callbacks=[KillAt(kill)], **RECIPES[recipe])
        with pytest.raises(Killed):
            killed.trainer.train()
        checkpoint = last_complete(Path(killed.arguments.output_dir))
        resumed = make_trainer(run, **RECIPES[recipe])
        torch.rand(7)  # whatever the random state is at the start, the checkpoint's replaces it
        resumed.trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        if checkpoint is not None:
            assert step_of(checkpoint) <= kill
            assert _timeless(resumed.trainer.state.log_history) == expected_log
            for name, value in weights(resumed.model).items():
                assert torch.equal(value, expected_weights[name]), name


def test_workers_change_nothing(make_trainer: Make) -> None:
    found = []
    for workers in (0, 2):
        made = make_trainer(f"workers-{workers}", num_train_epochs=2, dataloader_num_workers=workers,
                            contrastive_loss="sampled_softmax")  # fmt: skip
        made.trainer.train()
        found.append(losses(made.trainer))
    assert found[0] == found[1]


@pytest.mark.parametrize("kill", [None, 9, 15])
def test_every_epoch_has_its_own_order_and_negatives(make_trainer: Make, kill: int | None) -> None:
    recipe = {"tuning": "full", "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 3}
    checkpoint = None
    if kill is not None:
        killed = make_trainer(callbacks=[KillAt(kill)], **recipe)
        with pytest.raises(Killed):
            killed.trainer.train()
        checkpoint = last_complete(Path(killed.arguments.output_dir))
    made = make_trainer(**recipe)
    seen: dict[int, list[int]] = {0: [], 1: []}
    collate = made.trainer.data_collator

    def watching(examples: list) -> dict:
        for example in examples:
            seen[example["epoch"]].append(example["example"])
        return collate(examples)

    made.trainer.data_collator = watching
    made.trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    examples = made.trainer.train_dataset
    for epoch in (0, 1):
        examples.set_epoch(epoch)
        order = list(EpochSampler(examples, made.arguments.data_seed))
        done = 0 if checkpoint is None else max(0, step_of(checkpoint) * 16 - epoch * len(examples))
        # A checkpoint within epoch 1 leaves nothing of epoch 0 and the rest of epoch 1, from a batch's beginning.
        assert seen[epoch] == order[done // 16 * 16 :], epoch
    assert len(examples) % 16 and seen[1] != seen[0]


def test_a_run_that_had_finished_training_is_not_trained_further(make_trainer: Make) -> None:
    # The parent class would take one step more: it forgets that training had been told to stop.
    first = make_trainer(max_steps=7, save_strategy="steps", save_steps=4)
    first.trainer.train()
    again = make_trainer(max_steps=7, save_strategy="steps", save_steps=4)
    output = again.trainer.train(resume_from_checkpoint=str(last_complete(Path(again.arguments.output_dir))))
    assert output.global_step == again.trainer.state.global_step == 7
    assert losses(again.trainer) == losses(first.trainer)
    for name, value in weights(again.model).items():
        assert torch.equal(value, weights(first.model)[name]), name
    assert again.trainer.seconds >= first.trainer.seconds * 0.5 > 0


def test_the_best_checkpoint_is_loaded_also_after_a_resume_and_a_move(make_trainer: Make, tmp_path: Path) -> None:
    # A learning rate that destroys the model, so that an early checkpoint is the best one.
    recipe = {
        "tuning": "full", "num_train_epochs": 2, "eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 4,
        "save_steps": 4, "learning_rate": 0.3, "warmup_steps": 0.6, "eval_users": 40, "save_total_limit": 2,
    }  # fmt: skip
    first = make_trainer("here", **recipe)
    first.trainer.train()
    best = first.trainer.state.best_global_step
    assert best < first.trainer.state.global_step
    folder = Path(first.arguments.output_dir)
    assert {step_of(path) for path in checkpoint_folders(folder)} == {best, first.trainer.state.global_step}
    metric = first.trainer.evaluate()["eval_ndcg@10"]
    assert metric == first.trainer.state.best_metric
    (tmp_path / "there").mkdir()
    folder.rename(tmp_path / "there" / "checkpoints")
    second = make_trainer("there", **recipe)
    second.trainer.train(resume_from_checkpoint=str(last_complete(Path(second.arguments.output_dir))))
    assert second.trainer.evaluate()["eval_ndcg@10"] == metric


def test_early_stopping_counts_on_after_a_resume(make_trainer: Make) -> None:
    recipe = {
        "tuning": "full", "num_train_epochs": 20, "eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 2,
        "save_steps": 2, "learning_rate": 0.5, "warmup_steps": 0, "eval_users": 40, "early_stopping_patience": 3,
    }  # fmt: skip
    undisturbed = make_trainer("undisturbed", **recipe)
    undisturbed.trainer.train()
    stopped = undisturbed.trainer.state.global_step
    assert stopped < undisturbed.trainer.state.max_steps
    assert stopped == undisturbed.trainer.state.best_global_step + 3 * 2
    killed = make_trainer("killed", callbacks=[KillAt(stopped - 1)], **recipe)
    with pytest.raises(Killed):
        killed.trainer.train()
    resumed = make_trainer("killed", **recipe)
    resumed.trainer.train(resume_from_checkpoint=str(last_complete(Path(resumed.arguments.output_dir))))
    assert resumed.trainer.state.global_step == stopped
    assert losses(resumed.trainer) == losses(undisturbed.trainer)


def test_a_checkpoint_of_another_configuration_is_refused(make_trainer: Make) -> None:
    first = make_trainer(max_steps=2, save_strategy="steps", save_steps=2, tuning="lora", lora_r=4)
    first.trainer.train()
    checkpoint = last_complete(Path(first.arguments.output_dir))
    other = make_trainer(max_steps=2, save_strategy="steps", save_steps=2, tuning="lora", lora_r=8)
    with pytest.raises(CheckpointError, match=r"another configuration.*lora_[AB].*\[4, 32\]|another configuration"):
        other.trainer.train(resume_from_checkpoint=str(checkpoint))


# -- folders ---------------------------------------------------------------------------------------


def _checkpoint(folder: Path, step: int, complete: bool = True) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    for name in ("trainable.safetensors", "optimizer.pt", "trainer_state.json"):
        (path / name).write_bytes(b"x" * 100)
    if complete:
        mark_complete(path, Batches(1, 16, 1))
    return path


def test_half_written_and_half_removed_checkpoints_are_not_resumed(tmp_path: Path) -> None:
    good = _checkpoint(tmp_path, 9)
    unmarked = _checkpoint(tmp_path, 12, complete=False)
    truncated = _checkpoint(tmp_path, 100)
    (truncated / "optimizer.pt").write_bytes(b"x" * 40)
    lost = _checkpoint(tmp_path, 20)
    (lost / "trainable.safetensors").unlink()
    (tmp_path / "data.json").write_text("{}")
    assert last_complete(tmp_path) == good
    assert set(remove_incomplete(tmp_path)) == {unmarked, truncated, lost}
    assert checkpoint_folders(tmp_path) == [good]
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        check_resumable(tmp_path / "checkpoint-12", Batches(1, 16, 1))
    assert last_complete(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    ("limit", "best", "kept"),
    [
        (None, None, [1, 2, 3, 10]),
        (2, None, [3, 10]),
        (1, None, [10]),
        (2, 1, [1, 10]),
        (1, 2, [2, 10]),
        (3, 10, [2, 3, 10]),
    ],
)
def test_rotation_keeps_the_newest_and_the_best(
    tmp_path: Path, limit: int | None, best: int | None, kept: list[int]
) -> None:
    for step in (1, 2, 3, 10):
        _checkpoint(tmp_path, step)
    rotate(tmp_path, limit, None if best is None else tmp_path / f"checkpoint-{best}")
    assert [step_of(path) for path in checkpoint_folders(tmp_path)] == kept


def test_a_kill_during_rotation_leaves_no_checkpoint_that_looks_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = _checkpoint(tmp_path, 1), _checkpoint(tmp_path, 2)

    def interrupted(path: Path) -> None:
        (Path(path) / "trainer_state.json").unlink()
        raise Killed

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(Killed):
        rotate(tmp_path, 1, None)
    assert not is_complete(old) and is_complete(new)


def test_a_checkpoint_is_marked_after_everything_else_and_before_the_old_one_goes(
    make_trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    import llmrec.training.trainer as module

    seen = []

    def watching_rotate(folder: Path, limit: int | None, best: Path | None) -> None:
        seen.append([(step_of(path), is_complete(path)) for path in checkpoint_folders(folder)])
        rotate(folder, limit, best)

    monkeypatch.setattr(module, "rotate", watching_rotate)
    made = make_trainer(max_steps=6, save_strategy="steps", save_steps=2, save_total_limit=1)
    made.trainer.train()
    assert seen == [[(2, True)], [(2, True), (4, True)], [(4, True), (6, True)]]
    files = json.loads((Path(made.arguments.output_dir) / "checkpoint-6" / MARKER).read_text())["files"]
    assert set(files) == {
        "trainable.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json",
    }  # fmt: skip


def test_files_in_subfolders_count(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-4"
    for name in ("trainable/__0_0.distcp", "trainable/.metadata", "optimizer_0/__0_0.distcp"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(b"x" * 10)
    mark_complete(path, Batches(2, 8, 1, weights="fsdp2"))
    assert is_complete(path)
    (path / "trainable/.metadata").write_bytes(b"x" * 9)
    assert not is_complete(path)
    (path / "trainable/.metadata").write_bytes(b"x" * 10)
    shutil.rmtree(path / "optimizer_0")
    assert not is_complete(path)


# -- other numbers of processes --------------------------------------------------------------------

MOVED = {
    "tuning": "full", "num_train_epochs": 2, "max_train_examples": 96, "gradient_accumulation_steps": 2,
    "save_strategy": "steps", "save_steps": 2, "logging_steps": 1,
}  # fmt: skip


@pytest.mark.slow
def test_two_processes_resume_exactly_and_numbers_of_processes_may_change(
    make_trainer: Make, tiny_backbone: Path, tiny_prepared: Path, tmp_path: Path
) -> None:
    undisturbed = make_trainer("alone", per_device_train_batch_size=16, **MOVED)
    without_dropout(undisturbed.model)
    undisturbed.trainer.train()
    stopped = make_trainer("from-one", per_device_train_batch_size=16, callbacks=[KillAt(3)], **MOVED)
    without_dropout(stopped.model)
    with pytest.raises(Killed):
        stopped.trainer.train()
    two = {**MOVED, "per_device_train_batch_size": 8}
    jobs = [
        {"name": "two", "run": "two", "settings": two, "dropout": True},
        {"name": "two-stopped", "run": "two-stopped", "settings": two, "dropout": True, "stop": 5},
        {"name": "two-resumed", "run": "two-stopped", "settings": two, "dropout": True, "resume": True},
        {"name": "from-one", "run": "from-one", "settings": two, "resume": True},
        {"name": "from-two", "run": "from-two", "settings": two, "stop": 5},
    ]  # fmt: skip
    launch("cpu", {"backbone": str(tiny_backbone), "data": str(tiny_prepared), "out": str(tmp_path), "jobs": jobs})

    one, other = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("two", "two-resumed"))
    assert one["processes"] == 2 and len(one["log"]) == 6
    assert _timeless(one["log"]) == _timeless(other["log"])
    expected, found = (load_file(tmp_path / f"{name}.safetensors") for name in ("two", "two-resumed"))
    assert all(torch.equal(found[name], value) for name, value in expected.items())

    # checkpoint-2 and checkpoint-4 lie within the epochs of 3 steps.
    resumed = make_trainer("from-two", per_device_train_batch_size=16, **MOVED)
    without_dropout(resumed.model)
    checkpoint = last_complete(Path(resumed.arguments.output_dir))
    assert checkpoint is not None and step_of(checkpoint) == 4
    assert check_resumable(checkpoint, resumed.trainer.batches) == 2
    resumed.trainer.train(resume_from_checkpoint=str(checkpoint))
    alone = weights(undisturbed.model)
    for moved in (weights(resumed.model), load_file(tmp_path / "from-one.safetensors")):
        for name, value in alone.items():
            # The same examples in other sums: differences of rounding, through six steps of Adam.
            assert float((moved[name] - value).abs().max()) <= 1e-5, name


@pytest.mark.parametrize(
    ("then", "now", "advice"),
    [
        (Batches(2, 8, 1), Batches(4, 8, 1), "per_device_train_batch_size: 4 and gradient_accumulation_steps: 1"),
        (Batches(4, 8, 1), Batches(1, 8, 4), None),
        (Batches(1, 64, 1), Batches(2, 64, 1), "per_device_train_batch_size: 32 and gradient_accumulation_steps: 1"),
        (Batches(4, 8, 2), Batches(2, 8, 1), "per_device_train_batch_size: 32 and gradient_accumulation_steps: 1"),
        (Batches(1, 16, 1), Batches(3, 16, 1), "no batch size fits 3 processes"),
        # In-batch negatives: as many examples must be contrasted with each other.
        (Batches(2, 8, 1, "all"), Batches(1, 16, 1, "all"), None),
        (Batches(2, 8, 1, "all"), Batches(1, 8, 2, "all"), "size: 16 and gradient_accumulation_steps: 1"),
        (Batches(2, 8, 1, "process"), Batches(1, 16, 1, "process"), "size: 8 and gradient_accumulation_steps: 2"),
        (Batches(2, 8, 2, "all"), Batches(3, 8, 2, "all"), "no batch size fits 3 processes"),
    ],
)
def test_steps_must_be_of_the_same_examples(tmp_path: Path, then: Batches, now: Batches, advice: str | None) -> None:
    path = _checkpoint(tmp_path, 3, complete=False)
    mark_complete(path, then)
    if advice is None:
        assert check_resumable(path, now) == then.processes
    else:
        with pytest.raises(CheckpointError, match=advice):
            check_resumable(path, now)


def test_checkpoints_of_before_are_read_and_other_ways_to_hold_weights_refused(tmp_path: Path) -> None:
    path = _checkpoint(tmp_path, 3)
    marker = json.loads((path / MARKER).read_text())
    old = {name: marker[name] for name in ("step", "world_size", "files")}
    (path / MARKER).write_text(json.dumps(old))
    assert check_resumable(path, Batches(1, 5, 7)) == 1
    with pytest.raises(CheckpointError, match="written by 1 processes.*this run has 2"):
        check_resumable(path, Batches(2, 8, 1))
    mark_complete(path, Batches(2, 8, 1, weights="fsdp2"))
    with pytest.raises(CheckpointError, match="fsdp2 weights.*whole.*configs/accelerate/fsdp2.yaml"):
        check_resumable(path, Batches(2, 8, 1))
    assert check_resumable(path, Batches(4, 4, 1, weights="fsdp2")) == 2
    mark_complete(path, Batches(2, 8, 1, weights="deepspeed"))
    with pytest.raises(CheckpointError, match="DeepSpeed, which cannot share it out to 4"):
        check_resumable(path, Batches(4, 4, 1, weights="deepspeed"))


def _timeless(log_history: list[dict]) -> list[dict]:
    drop = ("runtime", "per_second", "total_flos")
    return [{k: v for k, v in entry.items() if not any(part in k for part in drop)} for entry in log_history]
