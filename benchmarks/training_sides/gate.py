"""Sides in turn: each in a process of its own, which runs only while it is told to.

A side calls `Gate.begin` when it is ready and `Gate.step` after every step, and stands still inside these two until
the parent lets it go on. So sides that are written as loops of their own, or of somebody's Trainer, can be timed
alternately (A, B, A, B, …) without starting them anew, while each keeps its own memory peak.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# Imported once by the server that the sides are forked from. (They read no data there and start no threads.)
PRELOADED = ["torch", "transformers", "accelerate", "datasets", "sentence_transformers", "llmrec.training.run"]


def start_server() -> None:
    """Begin to import what the sides need, before the first of them is started."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    forkserver.ensure_running()


class Gate:
    """The side's end: measures its steps and waits for its turns.

    Args:
        connection: to the parent.
        synchronize: waits for the device, so that a step's end is its end.
    """

    def __init__(self, connection: Connection, synchronize: Callable[[], None] = lambda: None) -> None:
        self._connection = connection
        self._synchronize = synchronize
        self._left = 0
        self._deadline: float | None = None
        self._steps: list[dict[str, Any]] = []
        self._start = self._cpu_start = 0.0

    def begin(self, **facts: Any) -> bool:
        """Say that everything is ready; returns with the first turn, False if there is none."""
        self._connection.send(("ready", facts))
        return self._wait()

    @property
    def overdue(self) -> bool:
        """Whether the time of this turn is up; a side that can stop within a step may look."""
        return self._deadline is not None and time.perf_counter() >= self._deadline

    def step(self, **counts: float) -> bool:
        """Report one step (examples, tokens, slots, …); False if it was the last."""
        self._synchronize()
        times = {"seconds": time.perf_counter() - self._start, "cpu_seconds": time.process_time() - self._cpu_start}
        self._steps.append(times | counts)
        self._left -= 1
        if self._left <= 0 or self.overdue:
            self._connection.send(("round", self._steps))
            return self._wait()
        self._begin_step()
        return True

    def _begin_step(self) -> None:
        self._start, self._cpu_start = time.perf_counter(), time.process_time()

    def _wait(self) -> bool:
        message = self._connection.recv()
        if message is None:
            return False
        self._left, budget = message
        self._steps = []
        self._begin_step()
        self._deadline = None if budget is None else self._start + budget
        return True


class SideError(RuntimeError):
    """A side has failed; the message holds its traceback, or the way it ended."""


class Side:
    """The parent's end of one side.

    Args:
        name: how the side is called in tables.
        run: `run(gate, **settings)`, importable; returns a dictionary of whatever else there is to report.
        settings: keyword arguments of `run`; `device` and `threads` must be among them.

    Attributes:
        sampled: whether the side may stop within a batch when its time is up.
        rounds: the steps of every turn so far.
        facts: what else the side has said of itself.
    """

    def __init__(self, name: str, run: Callable[..., dict[str, Any]], settings: dict[str, Any]) -> None:
        self.name = name
        self.sampled = bool(settings.get("sampled"))
        self.rounds: list[list[dict[str, Any]]] = []
        self.facts: dict[str, Any] = {}
        start_server()
        context = multiprocessing.get_context("forkserver")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_child, args=(theirs, run, settings), daemon=True)
        start = time.perf_counter()
        self._process.start()
        theirs.close()
        self._started = start

    def wait(self) -> None:
        """Wait until it is ready for its first turn; several sides may be got ready at once."""
        if not self.facts:
            self.facts = self._receive("ready")
            self.facts["start_seconds"] = round(time.perf_counter() - self._started, 2)

    def round(self, steps: int = 1, budget: float | None = None) -> None:
        """Let it run `steps` steps, or fewer when `budget` seconds are over."""
        self.wait()
        self._connection.send((steps, budget))
        self.rounds.append(self._receive("round"))

    def finish(self) -> None:
        """Stop it and take what it has to report."""
        self.wait()
        self._connection.send(None)
        self.facts |= self._receive("end")
        self._process.join()

    def close(self) -> None:
        """End its process, whatever it does."""
        if self._process.is_alive():
            self._process.terminate()
        self._process.join()

    def _receive(self, expected: str) -> Any:
        try:
            kind, value = self._connection.recv()
        except EOFError:
            self._process.join()
            raise SideError(
                f"{self.name} ended without a word (exit status {self._process.exitcode}; -9: killed for memory)"
            ) from None
        if kind == "error":
            raise SideError(f"{self.name} failed:\n{value}")
        if kind != expected:
            raise RuntimeError(f"side {self.name!r} sent {kind!r} instead of {expected!r}")
        return value


def _child(connection: Connection, run: Callable[..., dict[str, Any]], settings: dict[str, Any]) -> None:
    # The parent's standard output is the result; whatever a library prints goes to the other stream.
    sys.stdout.flush()
    os.dup2(2, 1)
    _offer_to_die()
    try:
        import torch

        from .machine import reset_peak_memory, synchronize

        # Raw dot products of random weights saturate the softmax, and gradients become denormal numbers, which
        # processors compute many times slower. That is no cost of any recipe, so no side shall pay it.
        torch.set_flush_denormal(True)
        torch.set_num_threads(settings["threads"])
        device = settings["device"]
        reset_peak_memory(device)
        gate = Gate(connection, lambda: synchronize(device))
        connection.send(("end", run(gate, **settings)))
    except BaseException:
        connection.send(("error", traceback.format_exc()))


def _offer_to_die() -> None:
    """Where memory runs out the system shall end this process and no other."""
    try:
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    except OSError:
        pass
