"""What happens beside the steps: the data set learns its epoch, time is added up, losses are logged when saved."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from llmrec.training.examples import PrefixExamples


class EpochCallback(TrainerCallback):
    """Tells the data set which epoch begins; accelerate's own relay stops at its wrappers."""

    def __init__(self, examples: PrefixExamples) -> None:
        self.examples = examples

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.examples.set_epoch(int(state.epoch or 0))


class ClockCallback(TrainerCallback, ExportableState):
    """Adds up the time spent on training, also over the sessions of a run that was resumed."""

    def __init__(self) -> None:
        self.before = 0.0
        self.start: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds up to now."""
        return self.before + (time.perf_counter() - self.start if self.start is not None else 0.0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start = time.perf_counter()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.before, self.start = self.seconds, None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"args": {}, "attributes": {"before": self.seconds}}


class LogAtSaveCallback(TrainerCallback):
    """Logs the loss whenever a checkpoint may be written, and at the end."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        return self._log(control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        return self._log(control)

    @staticmethod
    def _log(control: Any) -> Any:
        # An evaluation may decide to save (save_strategy "best"), after the decision to log has been taken.
        if control.should_save or control.should_evaluate or control.should_training_stop:
            control.should_log = True
        return control
