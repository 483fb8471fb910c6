"""Where the backbone of an adapter checkpoint comes from, and how it is known again."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from llmrec.backbones import MINILM
from llmrec.hub.export import save_model
from llmrec.hub.loading import load_model
from llmrec.training.model import build_model
from llmrec.training.model_arguments import ModelArguments
from llmrec.training.tuning import apply_tuning
from modeling_llmrec import LLMRecModel, LLMRecProcessor
from modeling_llmrec.backbone import load_backbone
from modeling_llmrec.fingerprint import DamagedFileError, fingerprint, read_header, weight_files

HISTORIES, ITEMS = [["Espresso Beans", "Milk Jug"], ["Guitar Strings"]], ["Electric Guitar", "Coffee Machine"]


def _scores(model, processor) -> torch.Tensor:
    with torch.no_grad():
        return model(**processor(histories=HISTORIES, items=ITEMS)).scores


@pytest.fixture(scope="module")
def backbone(shared_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A writable copy of the smallest real language model."""
    return _copy(shared_weights / "stories260K", tmp_path_factory.mktemp("backbone") / "stories260K")


def _copy(source: Path, target: Path) -> Path:
    target.mkdir(parents=True)
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())  # the source may be read-only
    return target


@pytest.fixture(scope="module")
def saved(backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """An adapter checkpoint over it, and the scores that it had."""
    return _save_adapter(str(backbone), tmp_path_factory.mktemp("saved") / "model")


def _save_adapter(source: str, folder: Path) -> tuple[Path, torch.Tensor]:
    torch.manual_seed(0)  # not the state that earlier tests left: large adapters merge less exactly
    model = LLMRecModel.from_backbone(source, projection_dim=8)
    processor = LLMRecProcessor.from_backbone(source, config=model.config)
    config = LoraConfig(
        r=2, target_modules="all-linear", exclude_modules=["head.projection"], modules_to_save=["head"],
        init_lora_weights=False,
    )  # fmt: skip
    peft_model = get_peft_model(model, config).eval()
    save_model(peft_model, processor, folder, form="adapter")
    return folder, _scores(peft_model, processor)


@pytest.fixture
def in_cache(backbone: Path) -> Callable[..., str]:
    """Put a copy of the backbone into the Hub's cache, as a download does, and return its Hub id."""
    made = []

    def put(name: str, commit: str, change: float = 0.0) -> str:
        repository = Path(constants.HF_HUB_CACHE) / f"models--someone--{name}"
        made.append(repository)
        _copy(backbone, repository / "snapshots" / commit)
        if change:
            _train_further(repository / "snapshots" / commit, change)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(commit)
        return f"someone/{name}"

    yield put
    for repository in made:
        shutil.rmtree(repository, ignore_errors=True)


def _train_further(folder: Path, change: float) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] += change
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


# -- the print ---------------------------------------------------------------------------------------


def test_a_fingerprint_knows_a_model_in_other_files(backbone: Path, tmp_path: Path) -> None:
    whole = fingerprint(weight_files(backbone))
    assert len(whole) == 64 and whole == LLMRecModel.from_backbone(backbone).config.backbone_fingerprint
    tensors = load_file(backbone / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, own in parts.items():
        save_file({name: tensors[name] for name in own}, tmp_path / file, metadata={"made": "otherwise"})
    index = {"metadata": {}, "weight_map": {name: file for file, own in parts.items() for name in own}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert fingerprint(weight_files(tmp_path)) == whole


@pytest.mark.parametrize("what", ["values", "name", "type", "shape"])
def test_a_fingerprint_tells_other_models(backbone: Path, tmp_path: Path, what: str) -> None:
    tensors = load_file(backbone / "model.safetensors")
    name = "model.layers.2.mlp.up_proj.weight"
    if what == "values":
        tensors[name] = tensors[name] * 1.001
    elif what == "name":
        tensors["another"] = tensors.pop(name)
    elif what == "type":
        tensors[name] = tensors[name].view(torch.int32)  # the same bytes
    else:
        tensors[name] = tensors[name].reshape(-1).clone()
    save_file(tensors, tmp_path / "model.safetensors")
    assert fingerprint(weight_files(tmp_path)) != fingerprint(weight_files(backbone))


def test_a_fingerprint_reads_little_of_a_large_file(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    header = json.dumps({"w": {"dtype": "F32", "shape": [4, 10**10], "data_offsets": [0, 16 * 10**10]}}).encode()
    with file.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + 16 * 10**10)  # 160 GB, none of it on the disk
    assert len(fingerprint([file])) == 64


@pytest.mark.parametrize("content", [b"", b"abc", b"\x80\x04pickle" * 20, (3).to_bytes(8, "little") + b"{}]"])
def test_what_is_no_safetensors_file_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"model\.safetensors.*fetch it again"):
        read_header(file)


# -- the backbone of a checkpoint --------------------------------------------------------------------


def test_the_backbone_may_be_taken_from_another_place(saved, backbone: Path, tmp_path: Path) -> None:
    folder, expected = saved
    away = tmp_path / "checkpoint"
    shutil.copytree(folder, away)
    config = json.loads((away / "config.json").read_text())
    config |= {"backbone_name_or_path": "someone/gone", "backbone_revision": "a" * 40}
    (away / "config.json").write_text(json.dumps(config))
    with pytest.raises(OSError, match=r"'someone/gone' at revision 'a{40}'.*pass backbone="):
        LLMRecModel.from_pretrained(away)
    model, processor = load_model(away, backbone=backbone)
    assert torch.equal(_scores(model, processor), expected)
    # Saved again, it still names the published place, not the one it came from this time.
    assert model.config.backbone_name_or_path == "someone/gone" and model.config.backbone_revision == "a" * 40
    through_auto = AutoModel.from_pretrained(away, backbone=backbone)
    assert torch.equal(_scores(through_auto, processor), expected)


def test_a_backbone_that_was_trained_further_is_refused(saved, backbone: Path, tmp_path: Path, caplog) -> None:
    folder, expected = saved
    other = _copy(backbone, tmp_path / "other")
    _train_further(other, 0.5)
    with pytest.raises(ValueError, match=r"another backbone.*backbone_revision.*check_backbone=False"):
        LLMRecModel.from_pretrained(folder, backbone=other)
    model, processor = load_model(folder, backbone=other, check_backbone=False)
    assert "check_backbone=False" in caplog.text and "another backbone" in caplog.text
    assert not torch.allclose(_scores(model, processor), expected)


def test_a_backbone_from_the_hub_is_pinned_to_its_commit(in_cache, tmp_path: Path) -> None:
    old, new = "1" * 40, "2" * 40
    name = in_cache("tiny", old)
    folder, expected = _save_adapter(name, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    assert config["backbone_name_or_path"] == name and config["backbone_revision"] == old
    in_cache("tiny", new, change=0.5)  # the branch moves on; the adapters stay where they were trained
    model, processor = load_model(folder)
    assert torch.equal(_scores(model, processor), expected)
    config["backbone_revision"] = None
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"'someone/tiny' \(its newest revision\) is now"):
        LLMRecModel.from_pretrained(folder)
    config["backbone_revision"] = "3" * 40
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(OSError, match="at revision '3{40}'"):
        LLMRecModel.from_pretrained(folder)


def test_converted_weights_of_a_pull_request_are_not_pinned(in_cache, backbone: Path, monkeypatch) -> None:
    # transformers finds them for the main branch of a repository that has pickled weights only, not for a commit.
    name = in_cache("pickled", "4" * 40)
    (
        Path(constants.HF_HUB_CACHE) / "models--someone--pickled" / "snapshots" / ("4" * 40) / "model.safetensors"
    ).unlink()
    with pytest.raises(OSError, match="'someone/pickled'.*pickled weights are refused"):
        LLMRecModel.from_backbone(name)

    def of_a_pull_request(source, text_config, encoder_only, revision=None, **options):
        if revision is not None:
            raise OSError("no safetensors weights at this commit")
        return load_backbone(backbone, text_config, encoder_only, **options)

    monkeypatch.setattr("modeling_llmrec.modeling_llmrec.load_backbone", of_a_pull_request)
    config = LLMRecModel.from_backbone(name).config
    assert config.backbone_revision is None and config.backbone_fingerprint is None
    with pytest.raises(OSError, match="at this commit"):
        LLMRecModel.from_backbone(name, revision="4" * 40)


def test_checkpoints_without_a_fingerprint_load_as_before(saved, tmp_path: Path) -> None:
    folder, expected = saved
    shutil.copytree(folder, tmp_path / "old")
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    del config["backbone_fingerprint"]
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    assert torch.equal(_scores(*load_model(tmp_path / "old")), expected)


def test_training_names_minilm_by_its_published_name(minilm: str, tmp_path: Path) -> None:
    arguments = ModelArguments(backbone=MINILM, save_form="adapter")
    model, processor = build_model(arguments)
    model = apply_tuning(model, arguments).eval()
    save_model(model, processor, tmp_path / "m", form="adapter")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["backbone_name_or_path"] == MINILM and len(config["backbone_fingerprint"]) == 64
    loaded, again = load_model(tmp_path / "m")
    assert torch.equal(_scores(loaded, again), _scores(model, processor))
    assert sum(file.stat().st_size for file in (tmp_path / "m").rglob("*") if file.is_file()) < 10_000_000


# -- arguments ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}, torch.device("cpu")])
def test_one_device_is_taken(saved, device_map) -> None:
    model = LLMRecModel.from_pretrained(saved[0], device_map=device_map)
    assert model.device == torch.device("cpu")


@pytest.mark.parametrize("device_map", ["auto", {"backbone": "cpu", "head": "cpu"}])
def test_several_devices_are_refused(saved, device_map) -> None:
    with pytest.raises(ValueError, match="name one device"):
        LLMRecModel.from_pretrained(saved[0], device_map=device_map)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_is_put_on_the_gpu_asked_for(saved) -> None:
    model = LLMRecModel.from_pretrained(saved[0], device_map="cuda:0")
    assert {parameter.device for parameter in model.parameters()} == {torch.device("cuda:0")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperatur": 2.0}, "temperatur=2.0"),
        ({"use_safetensors": False}, "use_safetensors=False"),
        ({"max_memory": {0: "1GB"}}, "max_memory="),
        ({"key_mapping": {"a": "b"}}, "key_mapping="),
    ],
)
def test_arguments_that_would_be_dropped_are_errors(saved, arguments: dict, message: str) -> None:
    with pytest.raises(TypeError, match=f"does not take {message}"):
        LLMRecModel.from_pretrained(saved[0], **arguments)


def test_arguments_that_transformers_takes_are_taken(saved) -> None:
    model, info = LLMRecModel.from_pretrained(
        saved[0],
        use_safetensors=True,
        variant=None,
        low_cpu_mem_usage=True,
        output_loading_info=True,
        temperature=0.5,
        revision=None,
    )
    assert model.config.temperature == 0.5 and isinstance(info, dict)


def test_a_full_model_takes_no_backbone(saved, tmp_path: Path) -> None:
    model, processor = load_model(saved[0])
    save_model(model, processor, tmp_path / "full", form="merged")
    with pytest.raises(TypeError, match="holds all weights itself"):
        LLMRecModel.from_pretrained(tmp_path / "full", backbone="someone/tiny")
    with pytest.raises(TypeError, match="Pickled weights are refused"):
        LLMRecModel.from_pretrained(tmp_path / "full", use_safetensors=False)
    assert torch.allclose(_scores(*load_model(tmp_path / "full")), saved[1], atol=1e-5)
