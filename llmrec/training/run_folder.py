"""The folder of a run: what is in it, whether it may be written to, and its resolved configuration."""

from __future__ import annotations

import dataclasses
import enum
import os
import shutil
from pathlib import Path
from typing import Any, Literal

import yaml
from transformers import TrainingArguments

RunState = Literal["new", "unfinished", "finished"]

# Of TrainingArguments: derived from others, or about this one invocation. They do not belong to a recipe.
_NOT_STORED = {
    "output_dir", "use_cpu", "bf16", "resume", "overwrite", "local_rank", "gradient_checkpointing",
    "gradient_checkpointing_kwargs", "hub_token", "do_train", "do_eval", "accelerator_config",
}  # fmt: skip
# Stored also where they have transformers' default: what one looks for first in a recipe.
_ALWAYS_STORED = {"seed", "lr_scheduler_type", "max_grad_norm", "gradient_accumulation_steps", "max_steps"}
# Stored, but free to differ when a run is resumed: they change neither a weight nor a result.
_FREE = {
    "run_dir", "run_name", "disable_tqdm", "log_level", "log_level_replica", "log_on_each_node", "report_to",
    "dataloader_num_workers", "dataloader_prefetch_factor", "dataloader_pin_memory",
    # With another number of processes; their product is compared by `check_batches`.
    "per_device_train_batch_size", "gradient_accumulation_steps",
}  # fmt: skip


class RunFolderError(ValueError):
    """A run folder that may not be written to, or belongs to another configuration."""


class RunFolder:
    """Paths and state of `runs/<name>/`.

    Args:
        path: the folder; it need not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.model = self.path / "model"
        self.results = self.path / "results.json"
        self.ranks = self.path / "ranks.parquet"
        self.report = self.path / "report.md"
        self.plots = self.path / "plots"
        self.config = self.path / "config.yaml"
        self.checkpoints = self.path / "checkpoints"
        self.logs = self.path / "logs"

    @property
    def state(self) -> RunState:
        """`results.json` is written last, `config.yaml` first."""
        if self.results.exists():
            return "finished"
        return "unfinished" if self.config.exists() else "new"

    def check(self, config: dict[str, Any], *, resume: bool, overwrite: bool) -> RunState:
        """Whether a run may start here, before anything costly is done. Changes nothing.

        Args:
            config: the resolved configuration.
            resume: go on with what is there.
            overwrite: delete what is there.

        Returns:
            What there is to go on with: "new" for nothing.

        Raises:
            RunFolderError: the folder holds a run and neither resume nor overwrite was asked for, or resume was and
                the run has another configuration, or the folder holds files of the same names that are no run's.
        """
        state = self.state
        if state == "new":
            foreign = [path.name for path in self._outputs() if path.exists()]
            if foreign:
                raise RunFolderError(
                    f"{self.path} holds {', '.join(foreign)} but no config.yaml, so it is no run of this project: "
                    "choose another --run_dir"
                )
        if overwrite or state == "new":
            return "new"
        if not resume:
            raise RunFolderError(
                f"{self.path} already holds {'a finished' if state == 'finished' else 'an unfinished'} run: go on "
                "with --resume, start again with --overwrite, or choose another --run_dir"
            )
        self._check_same(config)
        return state

    def begin(self, config: dict[str, Any], *, overwrite: bool) -> None:
        """Make the folder ready after `check`: delete an old run if that was asked for, and write `config.yaml`."""
        if overwrite:
            self._clear()
        if not self.config.exists():
            write_yaml(self.config, config)
        self.checkpoints.mkdir(exist_ok=True)

    def _clear(self) -> None:
        """Delete what a run has written, and nothing else."""
        # The results go first and the configuration last, so that a kill in between leaves an unfinished run.
        for path in [*self._outputs(), self.config]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _outputs(self) -> list[Path]:
        return [self.results, self.ranks, self.report, self.plots, self.model, self.checkpoints, self.logs]

    def _check_same(self, config: dict[str, Any]) -> None:
        stored = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        # What was stored went through YAML; let the other side do the same.
        wanted = yaml.safe_load(yaml.safe_dump(config))
        differing = [key for key in sorted({*stored, *wanted} - _FREE) if stored.get(key) != wanted.get(key)]
        if differing:
            lines = [f"  {key}: {stored.get(key)!r} there, {wanted.get(key)!r} now" for key in differing]
            raise RunFolderError(
                f"{self.path} holds a run of another configuration:\n"
                + "\n".join(lines)
                + "\nresume it with the same arguments, start again with --overwrite, or choose another --run_dir"
            )


def resolved_config(*arguments: Any) -> dict[str, Any]:
    """The arguments of a run in one flat mapping that `train.py` reads back.

    All of ours are there; of the hundred that come with transformers those with another value than its default.
    """
    inherited = {field.name: _default(field) for field in dataclasses.fields(TrainingArguments)}
    config: dict[str, Any] = {}
    for one in arguments:
        own = vars(type(one)).get("__annotations__", {})
        for field in dataclasses.fields(one):
            if not field.init or field.name in _NOT_STORED:
                continue
            value = _plain(getattr(one, field.name))
            told = field.name in own or field.name not in inherited or field.name in _ALWAYS_STORED
            if told or value != inherited[field.name]:
                config[field.name] = value
    return config


def _default(field: Any) -> Any:
    made = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    # TrainingArguments turns an empty text into an empty list for this one.
    return [] if field.name == "debug" else _plain(made)


def write_yaml(file: Path, content: dict[str, Any]) -> None:
    """Write YAML beside `file`, then rename."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    os.replace(draft, file)


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return _plain(value.to_dict()) if hasattr(value, "to_dict") else str(value)
