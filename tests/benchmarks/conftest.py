"""The demo's shop, prepared, and tiny backbones with a vocabulary of its words."""

from pathlib import Path

import pytest

from benchmarks.training_sides.data import DataChoice, find_data, load_data
from benchmarks.training_sides.shapes import TINY_SHAPES, make_backbone


@pytest.fixture(scope="session")
def nowhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of shared data that holds none."""
    return tmp_path_factory.mktemp("nowhere")


@pytest.fixture(scope="session")
def demo(nowhere: Path, tmp_path_factory: pytest.TempPathFactory) -> DataChoice:
    """The data that a benchmark falls back to."""
    return find_data(None, nowhere, tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="session")
def backbones(demo: DataChoice, nowhere: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of the tiny backbones by the name of the real one."""
    titles, work = load_data(demo.folder).catalogue.titles, tmp_path_factory.mktemp("backbones")
    return {name: make_backbone(TINY_SHAPES[name], nowhere, titles, work) for name in ("minilm", "decoder", "t5")}
