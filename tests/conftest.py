"""What every test shares: a quiet, offline, single-threaded process, and the paths of real data and weights."""

import os
import tempfile
from pathlib import Path

# All of this is read when torch, tokenizers and huggingface_hub are imported, so it stands before any of them.
# One thread: two busy threads on a shared two-core machine spin, and tests run steadier with one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("POLARS_MAX_THREADS", "2")
os.environ["HF_HUB_OFFLINE"] = "1"
# Remote code is copied into the Hugging Face home before it is imported: a folder of this run's own keeps yesterday's
# copies out of today's tests.
_HF_HOME = tempfile.TemporaryDirectory(prefix="llmrec-tests-")
os.environ["HF_HOME"] = _HF_HOME.name

import pytest  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout under test."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """Real data and small real weights kept outside the repository: $LLMREC_SHARED, else `../shared`."""
    folder = Path(os.environ.get("LLMREC_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; set LLMREC_SHARED to a folder that holds data/ and weights/")
    return folder


@pytest.fixture(scope="session")
def shared_data(shared_folder: Path) -> Path:
    """Folder of `food_kitchen` and `arts_office_scientific` (interactions.parquet and items.parquet in each)."""
    return _existing(shared_folder / "data")


@pytest.fixture(scope="session")
def shared_weights(shared_folder: Path) -> Path:
    """Folder of `stories260K` (Llama type), `bart-g2p-en-us` and `tokenizers/{opt,flan-t5-small}`."""
    return _existing(shared_folder / "weights")


@pytest.fixture(scope="session")
def minilm() -> str:
    """Local folder of all-MiniLM-L6-v2 (BERT, 6 layers × 384), the demo's backbone."""
    from llmrec.backbones import MINILM, BackboneNotFoundError, resolve_backbone

    try:
        return resolve_backbone(MINILM)
    except BackboneNotFoundError as error:
        pytest.skip(str(error))


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist")
    return folder
