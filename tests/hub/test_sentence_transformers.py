"""One folder, four ways in: our model, `pipeline`, `SentenceTransformer`, and no copy of our packages."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from llmrec.hub.export import save_model
from modeling_llmrec import LLMRecModel, LLMRecProcessor
from tests.modeling.families import FAMILIES, backbone_folder

sentence_transformers = pytest.importorskip("sentence_transformers", reason="needs the extra demo")

HISTORIES = [
    ["Espresso Beans 1 kg", "Burr Grinder", "Milk Jug, 600 ml"],
    ["Guitar Strings"],
    ["Barista's Handbook", "Cups"],
]
# One much longer than the others, and one that is cut.
ITEMS = ["Electric Guitar", "Coffee Machine", "Milk Jug, 600 ml", "Handbook of " + "very " * 60 + "good coffee", "Tea"]
FORMS = ("full", "adapter")


def lora(model: LLMRecModel) -> torch.nn.Module:
    """LoRA over every linear layer, none of it zero, as if trained."""
    torch.manual_seed(0)
    config = LoraConfig(
        r=4, target_modules="all-linear", exclude_modules=["head.projection"], modules_to_save=["head"],
        init_lora_weights=False,
    )  # fmt: skip
    return get_peft_model(model, config).eval()


def strangers(script: Path, jobs: list[dict], elsewhere: Path) -> list[dict]:
    """What `script` says about the jobs in a process without our packages, in another folder."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_HOME")}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(elsewhere / "hf"), "OMP_NUM_THREADS": "1"}
    # An editable installation puts the project on the path through site-packages.
    start = (
        "import runpy, sys\n"
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in f'{f!r}'.lower()]\n"
        f"sys.path = [p for p in sys.path if p not in ('', {str(Path.cwd())!r})]\n"
        f"runpy.run_path({str(script)!r}, run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", start],
        input=json.dumps(jobs), capture_output=True, text=True, cwd=elsewhere, env=environment, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def found(minilm: str, shared_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What a stranger found out about every family in every form."""
    root = tmp_path_factory.mktemp("ecosystem")
    jobs = {}
    for family in FAMILIES:
        source = backbone_folder(family, minilm, shared_weights, root / "backbones")
        for form in FORMS:
            model = LLMRecModel.from_backbone(source, projection_dim=8)
            processor = LLMRecProcessor.from_backbone(source, config=model.config)
            folder = root / f"{family}-{form}"
            save_model(lora(model) if form == "adapter" else model, processor, folder, form=form)
            jobs[family, form] = {
                "folder": str(folder), "items": ITEMS, "histories": HISTORIES, "resave": f"{folder}-again",
            }  # fmt: skip
    script = Path(__file__).with_name("stranger_ecosystem.py")
    results = strangers(script, list(jobs.values()), tmp_path_factory.mktemp("elsewhere"))
    return {case: {**job, **result} for (case, job), result in zip(jobs.items(), results, strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_strangers_sentence_transformer_gives_our_vectors(found: dict, family: str, form: str) -> None:
    case = found[family, form]
    assert case["dimension"] == [8, 8]
    assert max(case["items"], case["histories"], case["similarity"]) <= 1e-6, case


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_strangers_pipeline_gives_our_scores_in_order(found: dict, family: str, form: str) -> None:
    case = found[family, form]
    assert case["order"] and case["scores"] <= 1e-6, case


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_pipeline_saves_the_folder_it_came_from(found: dict, family: str) -> None:
    first, again = (Path(found[family, "adapter"][name]) for name in ("folder", "resave"))
    files = sorted(str(path.relative_to(first)) for path in first.rglob("*") if path.is_file())
    assert files == sorted(str(path.relative_to(again)) for path in again.rglob("*") if path.is_file())
    assert [name for name in files if (first / name).read_bytes() != (again / name).read_bytes()] == []


@pytest.fixture(scope="module")
def loaded(minilm: str, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    folder = tmp_path_factory.mktemp("plain") / "m"
    model = LLMRecModel.from_backbone(minilm)
    processor = LLMRecProcessor.from_backbone(minilm, config=model.config)
    save_model(model, processor, folder)
    sentences = sentence_transformers.SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    return sentences, model, processor, folder


def test_texts_are_items_and_dicts_of_titles_are_histories(loaded: tuple) -> None:
    sentences, model, processor, _ = loaded
    with torch.no_grad():
        output = model(**processor(histories=HISTORIES, items=ITEMS))
    torch.testing.assert_close(torch.tensor(sentences.encode(ITEMS)), output.item_embeds, atol=1e-6, rtol=0)
    users = sentences.encode([{"text": history} for history in HISTORIES])
    torch.testing.assert_close(torch.tensor(users), output.user_embeds, atol=1e-6, rtol=0)
    assert sentences.similarity_fn_name == "dot"
    # Or one title a line.
    assert (sentences.encode(["\n".join(history) for history in HISTORIES]) == users).all()
    # A batch may hold both; a history of one is an item.
    mixed = sentences.encode([ITEMS[0], {"text": [ITEMS[0]]}])
    assert (mixed[0] == mixed[1]).all()


def test_options_that_would_change_the_layout_are_refused(loaded: tuple) -> None:
    sentences, _, processor, _ = loaded
    with pytest.raises(TypeError, match="max_length=5: the layout comes from"):
        sentences.encode(ITEMS, processing_kwargs={"text": {"max_length": 5}})
    with pytest.raises(ValueError, match="Title 0 is ''"):
        sentences.encode("")
    assert processor(text="Tea")["input_ids"].shape[0] == 1


def test_it_is_loaded_as_one_module_that_holds_the_head(loaded: tuple) -> None:
    sentences, _, _, folder = loaded
    assert [type(module).__name__ for module in sentences] == ["Transformer"]
    settings = json.loads((folder / "sentence_bert_config.json").read_text())
    assert settings["modality_config"]["text"]["method_output_name"] == "embeddings"
    assert settings["unpad_inputs"] is False
