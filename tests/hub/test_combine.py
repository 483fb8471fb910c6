"""Adapters that were trained one by one, in one folder."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from llmrec.hub.combine import CombineError, combine_adapters
from llmrec.hub.export import save_model
from llmrec.hub.loading import load_model
from modeling_llmrec import LLMRecModel, LLMRecProcessor

HISTORIES, ITEMS = [["Espresso Beans", "Milk Jug"], ["Guitar Strings"]], ["Electric Guitar", "Coffee Machine"]


def _scores(model, processor) -> torch.Tensor:
    with torch.no_grad():
        return model(**processor(histories=HISTORIES, items=ITEMS)).scores


def _train(source: Path, folder: Path, seed: int, rank: int = 2, **fields) -> torch.Tensor:
    model = LLMRecModel.from_backbone(source, **{"projection_dim": 8, **fields})
    processor = LLMRecProcessor.from_backbone(source, config=model.config)
    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank, target_modules="all-linear", exclude_modules=["head.projection"], modules_to_save=["head"],
        init_lora_weights=False,
    )  # fmt: skip
    peft_model = get_peft_model(model, config).eval()
    with torch.no_grad():
        peft_model.get_base_model().head.modules_to_save["default"].projection.weight.normal_()
    save_model(peft_model, processor, folder, form="adapter")
    return _scores(peft_model, processor)


@pytest.fixture(scope="module")
def trained(shared_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Two adapters of other ranks over the same backbone, with the scores that each had."""
    root = tmp_path_factory.mktemp("trained")
    source = shared_weights / "stories260K"
    return {
        "folders": {"books": root / "b", "groceries": root / "g"},
        "scores": {"books": _train(source, root / "b", seed=0), "groceries": _train(source, root / "g", 1, rank=3)},
        "source": source,
    }


@pytest.mark.parametrize("default", [None, "groceries"])
def test_each_adapter_scores_as_it_did_alone(trained: dict, tmp_path: Path, default: str | None) -> None:
    target = combine_adapters(trained["folders"], tmp_path / "both", default=default)
    model, processor = load_model(target)
    assert model.active_adapters() == [default or "books"]
    for name, expected in trained["scores"].items():
        model.set_adapter(name)
        assert torch.equal(_scores(model, processor), expected)
    assert (trained["scores"]["books"] - trained["scores"]["groceries"]).abs().max() > 1e-3
    assert (target / "pipeline_llmrec.py").is_file() and (target / "tokenizer.json").is_file()
    config = json.loads((target / "config.json").read_text())
    assert config["adapters"] == {"books": "adapters/books", "groceries": "adapters/groceries"}


def test_a_folder_of_several_gives_its_default_one(trained: dict, tmp_path: Path) -> None:
    both = combine_adapters(trained["folders"], tmp_path / "both", default="groceries")
    again = combine_adapters({"food": both, "books": trained["folders"]["books"]}, tmp_path / "again")
    model, processor = load_model(again)
    assert torch.equal(_scores(model, processor), trained["scores"]["groceries"])


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_title_tokens": 12}, ["max_title_tokens is 12 in", "and 40 in", "max_history_tokens is"]),
        ({"pooling": "mean", "item_separator": " | "}, ["pooling is 'mean'", "item_separator is ' | '"]),
        ({"projection_dim": 4}, ["projection_dim is 4"]),
        ({"backbone_name_or_path": "someone/else"}, ["backbone_name_or_path is 'someone/else'"]),
        ({"learn_temperature": True}, ["learn_temperature is True"]),
    ],
)
def test_other_layouts_are_refused_by_name(trained: dict, tmp_path: Path, fields: dict, named: list[str]) -> None:
    _train(trained["source"], tmp_path / "other", seed=0, **fields)
    with pytest.raises(CombineError) as caught:
        combine_adapters({"books": trained["folders"]["books"], "other": tmp_path / "other"}, tmp_path / "both")
    for words in named:
        assert words in str(caught.value)
    assert str(tmp_path / "other") in str(caught.value) and not (tmp_path / "both").exists()


def test_only_the_loss_may_differ(trained: dict, tmp_path: Path) -> None:
    _train(trained["source"], tmp_path / "other", seed=0, temperature=0.2, contrastive_loss="bce")
    target = combine_adapters({"books": trained["folders"]["books"], "x": tmp_path / "other"}, tmp_path / "both")
    assert load_model(target)[0].config.temperature == 0.05


@pytest.mark.parametrize(
    ("field", "value"),
    [("backbone_fingerprint", "f" * 64), ("backbone_revision", "a" * 40), ("text_config", {"rms_norm_eps": 0.1})],
)
def test_other_weights_of_the_backbone_are_refused(trained: dict, tmp_path: Path, field: str, value) -> None:
    shutil.copytree(trained["folders"]["groceries"], tmp_path / "other")
    path = tmp_path / "other" / "config.json"
    config = json.loads(path.read_text())
    config[field] = {**config[field], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(config))
    named = f"{field}.rms_norm_eps" if isinstance(value, dict) else field
    with pytest.raises(CombineError, match=f"{named} is "):
        combine_adapters({"books": trained["folders"]["books"], "x": tmp_path / "other"}, tmp_path / "both")


def test_another_vocabulary_is_refused(trained: dict, tmp_path: Path) -> None:
    shutil.copytree(trained["folders"]["groceries"], tmp_path / "other")
    path = tmp_path / "other" / "tokenizer.json"
    path.write_text(path.read_text().replace("once", "twice").replace("and", "but"))
    with pytest.raises(CombineError, match=r"tokenizer\.json in .*other is another than in"):
        combine_adapters({"books": trained["folders"]["books"], "x": tmp_path / "other"}, tmp_path / "both")


@pytest.mark.parametrize("name", ["../books", "a/b", "a.b", "", "-x", "bücher"])
def test_names_that_are_no_plain_folder_names_are_refused(trained: dict, tmp_path: Path, name: str) -> None:
    with pytest.raises(CombineError, match="may hold letters, digits"):
        combine_adapters({name: trained["folders"]["books"]}, tmp_path / "both")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_combined_is_said(trained: dict, tmp_path: Path) -> None:
    books = trained["folders"]["books"]
    with pytest.raises(CombineError, match="no models"):
        combine_adapters({}, tmp_path / "both")
    with pytest.raises(CombineError, match="default='toys' is not among"):
        combine_adapters({"books": books}, tmp_path / "both", default="toys")
    with pytest.raises(CombineError, match=r"nowhere has no config\.json"):
        combine_adapters({"books": tmp_path / "nowhere"}, tmp_path / "both")
    with pytest.raises(CombineError, match="module of that name"):
        combine_adapters({"books": books, "layers": books}, tmp_path / "both")
    model, processor = load_model(books)
    save_model(model, processor, tmp_path / "full", form="merged")
    with pytest.raises(CombineError, match="holds no adapters"):
        combine_adapters({"books": tmp_path / "full"}, tmp_path / "both")
    shutil.copytree(books, tmp_path / "half")
    weights = tmp_path / "half" / "adapters" / "default" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(OSError, match=r"adapter_model\.safetensors is damaged"):
        combine_adapters({"books": books, "x": tmp_path / "half"}, tmp_path / "both")
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.safetensors is missing"):
        combine_adapters({"books": books, "x": tmp_path / "half"}, tmp_path / "both")
    assert not (tmp_path / "both").exists()
    (tmp_path / "both").mkdir()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        combine_adapters({"books": books}, tmp_path / "both")
    combine_adapters({"books": books}, tmp_path / "both", overwrite=True)
    assert (tmp_path / "both" / "adapters" / "books" / "adapter_config.json").is_file()
