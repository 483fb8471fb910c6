"""Does a stranger get the scores of the model that was published?"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llmrec.hub.hub_errors import PublishError
from llmrec.hub.loading import load_model

TOLERANCE, HALF_TOLERANCE = 1e-5, 5e-2
"""Largest difference of a score, relative to the largest score where that is above 1; the second where the backbone
computes in half precision, whose sums in another order differ in the third digit."""
STRANGER = Path(__file__).with_name("verify_stranger.py")

# Made up, like the demo's: real catalogues belong to others.
HISTORIES = [["Espresso Beans 1 kg", "Burr Grinder", "Milk Jug"], ["Guitar Strings"], ["Water Colours", "Brush Set"]]
ITEMS = ["Coffee Machine", "Electric Guitar", "Sketch Book", "Barista's Handbook", "Kitchen Scale", "Metronome"]


@dataclass(frozen=True)
class Expected:
    """Scores of the local model.

    Attributes:
        histories, items: what they were computed for.
        scores: (histories, items) for each adapter; of "" where there are none.
        default_adapter: the adapter that is active after loading.
        tolerance: how much a stranger's may differ.
    """

    histories: list[list[str]]
    items: list[str]
    scores: dict[str, torch.Tensor]
    default_adapter: str | None
    tolerance: float


def expected_scores(
    model: str | Path, *, titles: Sequence[str] = (), only: str | None = None, backbone: str | None = None
) -> Expected:
    """Score some histories and items with a local model.

    Args:
        model: its folder.
        titles: of the catalogue it was trained on, to choose from; made-up ones by default.
        only: the one adapter to score with, where it was merged; by default each.
        backbone: folder of the backbone, where config.json names one that is on the Hub.

    Raises:
        OSError, ValueError: the model cannot be loaded.
    """
    histories, items = (HISTORIES, ITEMS) if len(titles) < 12 else _choose(titles)
    loaded, processor = load_model(model, **({} if backbone is None else {"backbone": backbone}))
    batch = processor(histories=histories, items=items)
    default = loaded.config.default_adapter
    adapters = [only] if only is not None else list(loaded.config.adapters or {})
    scores = {}
    for adapter in adapters or [None]:
        if adapter is not None:
            loaded.set_adapter(adapter)
        with torch.no_grad():
            scores["" if adapter is None or only is not None else adapter] = loaded(**batch).scores.float().cpu()
    half = loaded.backbone.dtype.itemsize < 4
    del loaded
    gc.collect()  # before another process loads the same weights
    largest = max(float(one.abs().max()) for one in scores.values())
    tolerance = (HALF_TOLERANCE if half else TOLERANCE) * max(1.0, largest)
    return Expected(histories, items, scores, None if only is not None else default, tolerance)


def verify(repo_id: str, revision: str, expected: Expected, *, environment: dict[str, str] | None = None) -> float:
    """Load a repository in a fresh process that does not have this project, and compare its scores.

    Args:
        repo_id: on the Hub.
        revision: the commit.
        expected: the local model's scores.
        environment: of that process; this one's by default.

    Returns:
        The largest difference of a score.

    Raises:
        PublishError: it cannot be loaded there, or scores differently.
    """
    adapters = [name for name in expected.scores if name]
    job = {
        "repo_id": repo_id,
        "revision": revision,
        "histories": expected.histories,
        "items": expected.items,
        "adapters": adapters,
    }
    with tempfile.TemporaryDirectory(prefix="llmrec-verify-") as elsewhere:
        output = Path(elsewhere) / "scores.json"
        # -I: neither the current folder nor PYTHONPATH is searched for modules.
        done = subprocess.run(
            [sys.executable, "-I", str(STRANGER), str(output)],
            input=json.dumps(job), capture_output=True, text=True, cwd=elsewhere, env=environment, check=False,
        )  # fmt: skip
        if done.returncode != 0 or not output.is_file():
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise PublishError(
                f"{repo_id} at {revision[:10]} does not load in a fresh process:\n" + "\n".join(lines[-12:])
            )
        answer: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    if answer["own_modules"]:
        raise PublishError(f"the fresh process used this project's own {answer['own_modules'][0]}: it proves nothing")
    if adapters and answer["default_adapter"] != expected.default_adapter:
        raise PublishError(
            f"{repo_id} loads with the adapter {answer['default_adapter']!r}, not {expected.default_adapter!r}"
        )
    difference = 0.0
    for name, scores in expected.scores.items():
        found = torch.tensor(answer["scores"][name])
        worst = float((found - scores).abs().max()) if found.shape == scores.shape else float("nan")
        if not worst <= expected.tolerance:  # NaN is no match either
            what = f"adapter {name!r} of {repo_id}" if name else repo_id
            raise PublishError(
                f"{what} at {revision[:10]} gives other scores in a fresh process than the local model: they differ by "
                f"up to {worst:.1e}, allowed are {expected.tolerance:.1e}"
            )
        difference = max(difference, worst)
    return difference


def _choose(titles: Sequence[str]) -> tuple[list[list[str]], list[str]]:
    """Evenly spread titles of a catalogue: three histories and six items."""
    distinct = list(dict.fromkeys(title for title in titles if title.strip()))
    step = max(1, len(distinct) // 12)
    chosen = distinct[::step][:12]
    if len(chosen) < 12:
        return HISTORIES, ITEMS
    return [chosen[:3], chosen[3:4], chosen[4:6]], chosen[6:]
