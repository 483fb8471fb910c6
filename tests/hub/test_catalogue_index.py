"""A catalogue with its vectors beside a model: loaded instead of encoded, and refused for another model."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertConfig, BertModel

from llmrec.cli import main
from llmrec.data.catalogue import Catalogue
from llmrec.hub.catalogue_index import CatalogueIndexError, fingerprint, load_index, save_index
from llmrec.hub.export import save_model
from llmrec.retrieval import encoding
from llmrec.retrieval import recommender as recommender_module
from llmrec.retrieval.recommender import Recommender
from modeling_llmrec import LLMRecModel, LLMRecProcessor
from tests.hub.loopback_hub import hub_environment

WORDS = ("Espresso", "Guitar", "Burr", "Acoustic", "Milk", "Steel", "Cedar", "Linen")
THINGS = ("Machine", "Strings", "Grinder", "Jug", "Tuner", "Kettle")
TITLES = [f"{word} {thing}" for word in WORDS for thing in THINGS]
HISTORY = ["Acoustic Guitar", "Guitar Tuner"]


def _catalogue() -> Catalogue:
    domains = ["Music" if row % 2 else "Kitchen" for row in range(len(TITLES))]
    return Catalogue([f"i{row}" for row in range(len(TITLES))], TITLES, domains, np.arange(len(TITLES)))


@pytest.fixture(scope="module")
def backbone(minilm: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """BERT of 2 layers × 32 with a real vocabulary."""
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("backbone") / "bert"
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _lora(backbone: str, seed: int) -> tuple:
    model = LLMRecModel.from_backbone(backbone)
    torch.manual_seed(seed)
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).eval()
    return tuned, LLMRecProcessor.from_backbone(backbone, config=model.config)


@pytest.fixture(scope="module")
def published(backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with adapters, and the index of its catalogue."""
    folder = tmp_path_factory.mktemp("published") / "model"
    save_model(*_lora(backbone, 0), folder, form="adapter")
    save_index(folder, Recommender.from_pretrained(folder, _catalogue(), progress=False), name="org/shop")
    return folder


@pytest.fixture
def copy(published: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    return Path(shutil.copytree(published, tmp_path / "model"))


def test_nothing_is_encoded_and_recommendations_are_the_same(published: Path, monkeypatch) -> None:
    fresh = Recommender.from_pretrained(published, _catalogue(), progress=False)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("items were encoded")

    with monkeypatch.context() as patched:
        patched.setattr(recommender_module, "encode_titles", never)
        patched.setattr(encoding, "encode_titles", never)
        loaded = Recommender.from_pretrained(published, progress=False)
    torch.testing.assert_close(loaded.item_embeds, fresh.item_embeds, atol=1e-6, rtol=0)
    for domain in (None, "Music"):
        assert loaded.recommend(HISTORY, 12, domain=domain) == fresh.recommend(HISTORY, 12, domain=domain)
    loaded.add_items(["Guitar Capo"], ["new"], ["Music"])
    assert "new" in [item.item_id for item in loaded.recommend(HISTORY, 49)]


def test_what_is_written(published: Path) -> None:
    about = json.loads((published / "index" / "index.json").read_text())
    assert (about["model"], about["items"], about["embedding_dim"]) == ("org/shop", len(TITLES), 32)
    assert (about["dtype"], about["weights"]) == ("float32", "float32")
    assert about["fingerprint"] == fingerprint(LLMRecModel.from_pretrained(published))
    assert str(published) not in json.dumps(about)
    index = load_index(published)
    assert index.catalogue.titles == TITLES and index.item_embeds.dtype == torch.float32


def test_the_same_model_in_other_forms_is_known(published: Path, backbone: str, tmp_path: Path) -> None:
    save_model(*_lora(backbone, 0), tmp_path / "merged")
    (tmp_path / "merged" / "index").symlink_to(published / "index")
    merged = Recommender.from_pretrained(tmp_path / "merged", progress=False)
    assert fingerprint(merged.model) != load_index(published).about["fingerprint"]
    half = Recommender.from_pretrained(published, progress=False, dtype=torch.bfloat16)
    assert half.model.backbone.dtype == torch.bfloat16
    for one in (merged, half):
        assert len(one.recommend(HISTORY, 5)) == 5


def test_half_precision_halves_the_file(published: Path, tmp_path: Path) -> None:
    recommender = Recommender.from_pretrained(published, progress=False)
    save_index(tmp_path, recommender, dtype="float16")
    index = load_index(tmp_path)
    torch.testing.assert_close(index.item_embeds, recommender.item_embeds, atol=2e-3, rtol=1e-3)
    with pytest.raises(CatalogueIndexError, match="'int8' is none of float32, float16"):
        save_index(tmp_path, recommender, dtype="int8")
    recommender.item_embeds[3, 3] = torch.inf
    with pytest.raises(CatalogueIndexError, match="not finite"):
        save_index(tmp_path, recommender)
    assert load_index(tmp_path).about["dtype"] == "float16"  # what was there is still there


def test_the_index_of_another_model_is_refused_by_name(published: Path, backbone: str, tmp_path: Path) -> None:
    save_model(*_lora(backbone, 1), tmp_path / "other", form="adapter")
    (tmp_path / "other" / "index").symlink_to(published / "index")
    with pytest.raises(CatalogueIndexError, match="is of org/shop and does not belong to .*other: .*allowed are 1e-04"):
        Recommender.from_pretrained(tmp_path / "other", progress=False)
    model = LLMRecModel.from_backbone(backbone, projection_dim=8)
    save_model(model, LLMRecProcessor.from_backbone(backbone, config=model.config), tmp_path / "narrow")
    (tmp_path / "narrow" / "index").symlink_to(published / "index")
    with pytest.raises(CatalogueIndexError, match="of org/shop, with vectors of 32 numbers; .*narrow has 8"):
        Recommender.from_pretrained(tmp_path / "narrow", progress=False)


def test_damage_is_named(copy: Path) -> None:
    index = copy / "index"
    described = (index / "index.json").read_text()
    about, whole = json.loads(described), (index / "item_embeddings.safetensors").read_bytes()

    def refuse(message: str) -> None:
        with pytest.raises(CatalogueIndexError, match=message):
            load_index(copy)

    (index / "item_embeddings.safetensors").write_bytes(whole[:-100])
    refuse("item_embeddings.safetensors: changed or cut short")
    (index / "item_embeddings.safetensors").unlink()
    refuse("item_embeddings.safetensors: no such file")
    (index / "item_embeddings.safetensors").write_bytes(whole)
    for change, message in (
        ({"format": 2}, "format 2"),
        ({"items": 3}, "speaks of 3 items"),
        ({"sha256": {}}, "not the"),
    ):
        (index / "index.json").write_text(json.dumps({**about, **change}))
        refuse(f"index.json: {message}")
    (index / "index.json").write_text(described[:40])
    refuse("index.json: not the description")
    (index / "index.json").unlink()
    refuse("index.json: no such file, so the model has no index: pass a catalogue")
    with pytest.raises(CatalogueIndexError, match="no such folder, and no name"):
        load_index(copy / "nowhere")


def test_a_file_of_other_tensors_is_refused_though_its_hash_fits(copy: Path) -> None:
    path = copy / "index" / "item_embeddings.safetensors"
    save_file({"other": load_file(path)["item_embeds"]}, path)
    about = json.loads((copy / "index" / "index.json").read_text())
    about["sha256"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    (copy / "index" / "index.json").write_text(json.dumps(about))
    with pytest.raises(CatalogueIndexError, match="not the vectors of an index"):
        load_index(copy)


def test_the_command_needs_no_catalogue(published: Path, copy: Path, capsys) -> None:
    assert main(["recommend", "--model", str(published), "-k", "2", "--json", *HISTORY]) == 0
    printed = [json.loads(line)["title"] for line in capsys.readouterr().out.splitlines()]
    expected = Recommender.from_pretrained(published, _catalogue(), progress=False).recommend(HISTORY, 2)
    assert printed == [item.title for item in expected]
    (copy / "index" / "index.json").unlink()
    assert main(["recommend", "--model", str(copy), *HISTORY]) == 2
    assert "has no index: pass a catalogue" in capsys.readouterr().err


_STRANGER = """
import json, sys
from llmrec.hub.catalogue_index import load_index, CatalogueIndexError
from llmrec.retrieval import recommender as module

def never(*_, **__):
    raise AssertionError("items were encoded")

module.encode_titles = never
repo, revision, history, fail = json.loads(sys.argv[1])
found = module.Recommender.from_pretrained(repo, revision=revision, progress=False).recommend(history, 5)
errors = []
for options in fail:
    try:
        load_index(**options)
    except CatalogueIndexError as error:
        errors.append(str(error))
print(json.dumps([[item.title for item in found], [item.score for item in found], errors]))
"""


@pytest.mark.slow
def test_from_the_hub_by_revision_and_then_from_its_cache(published: Path, hub, tmp_path: Path) -> None:
    first = hub.seed("org/shop", published)
    hub.seed("org/bare", {"config.json": b"{}"})
    expected = Recommender.from_pretrained(published, progress=False).recommend(HISTORY, 5)
    environment = hub_environment(hub, tmp_path / "home")

    def run(revision: str | None, fail: list[dict], **extra: str) -> list:
        arguments = json.dumps(["org/shop", revision, HISTORY, fail])
        done = subprocess.run(
            [sys.executable, "-c", _STRANGER, arguments],
            capture_output=True, text=True, env=environment | extra, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    titles, scores, errors = run(first, [{"name_or_path": "org/bare"}])
    assert titles == [item.title for item in expected]
    assert scores == pytest.approx([item.score for item in expected], abs=1e-6)
    assert "org/bare has no index/index.json: pass a catalogue" in errors[0]
    with hub.offline():
        titles, _, errors = run(first, [{"name_or_path": "org/unseen"}], HF_HUB_OFFLINE="1")
    assert titles == [item.title for item in expected]
    assert "of org/unseen is not in the Hugging Face cache and the Hub cannot be reached" in errors[0]
