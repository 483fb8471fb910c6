"""`llmrec export`: what other servers run, compared with the model it was made of."""

import argparse
import importlib.util
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from peft import LoraConfig, get_peft_model

from llmrec.data.catalogue import Catalogue
from llmrec.hub.export import save_model
from llmrec.hub.formats import FORMATS, Check, ExportRefusedError, check, command, export_model
from llmrec.hub.formats.layout import LayoutTokenizer
from modeling_llmrec import LLMRecModel, LLMRecProcessor
from tests.modeling.families import FAMILIES, backbone_folder

pytestmark = pytest.mark.slow  # together they take most of a minute

TEI = "text-embeddings-inference"
SERVED = ("bert", "modernbert", "qwen3")


@pytest.fixture(scope="module")
def saved(minilm: str, shared_weights: Path, tmp_path_factory: pytest.TempPathFactory):
    """A saved model of a family, each made once; adapters over the backbone but where `full` is asked for."""
    root = tmp_path_factory.mktemp("models")
    made: dict[tuple, Path] = {}

    def get(family: str, form: str = "adapter", **fields) -> Path:
        key = (family, form, *sorted(fields.items()))
        if key not in made:
            source = backbone_folder(family, minilm, shared_weights, root / f"backbone-{family}")
            model = LLMRecModel.from_backbone(source, **fields)
            processor = LLMRecProcessor.from_backbone(source, config=model.config)
            if form == "adapter":
                torch.manual_seed(0)
                lora = LoraConfig(
                    r=2,
                    target_modules="all-linear",
                    exclude_modules=["head.projection"],
                    modules_to_save=["head"],
                    init_lora_weights=False,
                )
                model = get_peft_model(model, lora)
            made[key] = root / f"{family}-{len(made)}"
            save_model(model, processor, made[key], form=form)
        return made[key]

    return get


# -- the check itself --------------------------------------------------------------------------------


def test_the_check_counts_common_titles_and_refuses_beyond_its_bounds() -> None:
    scores = torch.arange(40.0).repeat(2, 1)
    other = scores.clone()
    other[0, :5] += 100  # five others are best in the first row
    assert check.top_overlap(scores, scores) == 1
    assert check.top_overlap(scores, other) == pytest.approx(0.75)
    good = Check(100, 10, "made up", 1e-4, 1.0)
    good.refuse_beyond(1e-3, 0.99)
    for bad, message in (
        (Check(100, 10, "made up", 2e-3, 1.0), "differ by up to 0.002"),
        (Check(100, 10, "made up", float("nan"), 1.0), "differ by up to nan"),
        (Check(100, 10, "made up", 1e-4, 1.0, shapes_difference=0.5), "differ by up to 0.5"),
        (Check(100, 10, "made up", 1e-4, 0.98), "0.9800 of the ten best"),
        (Check(100, 10, "made up", 1e-4, 1.0, other_ids={"titles": 6, "histories": 0}), "6 of 100 titles are longer"),
    ):
        with pytest.raises(ExportRefusedError, match=message):
            bad.refuse_beyond(1e-3, 0.99)


def test_vectors_that_are_off_are_found(saved) -> None:
    folder = saved("qwen3", "full")
    model = LLMRecModel.from_pretrained(folder)
    processor = LLMRecProcessor.from_pretrained(folder)
    reference = check.Reference(model, processor, check.sample_texts(model.config))
    assert reference.sample.source == "built-in titles"
    shapes = [(len(batch), max(map(len, batch))) for batch in reference.shapes]
    assert (1, 1) in shapes and (1, model.config.max_history_tokens) in shapes and max(shapes)[0] == 32

    def encode(ids: list[list[int]]) -> np.ndarray:
        with torch.no_grad():
            return model.get_item_embeddings(**processor.pad(ids)).numpy()

    assert reference.check(encode).largest_difference < 1e-6
    one_number_off = reference.check(lambda ids: encode(ids) + np.eye(len(ids), 32, dtype=np.float32) * 0.01)
    assert one_number_off.largest_difference == pytest.approx(0.01, abs=1e-5)
    assert np.isnan(reference.check(lambda ids: encode(ids) * np.nan).largest_difference)
    with pytest.raises(ExportRefusedError, match="shape"):
        reference.check(lambda ids: encode(ids)[:, :8])
    with pytest.raises(ValueError, match="more than 10"):
        check.sample_texts(model.config, ["Tea"] * 50)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tokenizer_file_lays_out_titles_as_the_processor_does(
    family: str, minilm: str, shared_weights: Path, shared_data: Path, tmp_path: Path
) -> None:
    source = backbone_folder(family, minilm, shared_weights, tmp_path)
    config = LLMRecModel.config_for_backbone(source)
    processor = LLMRecProcessor.from_backbone(source, config=config)
    layout = LayoutTokenizer(processor)
    titles = pl.read_parquet(shared_data / "food_kitchen" / "items.parquet")["title"].head(1500).to_list()
    titles = [title for title in titles if title and title.strip()]
    ids = [processor.layout_item(one) for one in processor.tokenize_titles(titles)]
    too_long = layout.too_long(titles)
    assert (layout.equal(titles, ids) | too_long).all()
    assert too_long.sum() < len(titles)
    short = [title for title, long in zip(titles, too_long, strict=True) if not long]
    histories = [short[start : start + 4] for start in range(0, min(len(short), 400), 4)]
    laid_out = [processor.layout_history(processor.tokenize_titles(history)) for history in histories]
    equal = layout.equal([layout.join(history) for history in histories], laid_out)
    # A Llama-like tokenizer marks the start of a text, not of a line; the report of an export says so.
    assert equal.all() or family == "llama"


# -- text-embeddings-inference -----------------------------------------------------------------------


@pytest.mark.parametrize("family", SERVED)
def test_a_text_embeddings_inference_folder_gives_the_models_vectors(saved, family: str, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers", reason="needs the extra demo")
    found = export_model(saved(family, projection_dim=8), tmp_path / "out", TEI)
    assert found.largest_difference < 2e-5 and found.top_10_overlap == 1.0
    assert found.other_ids == {"titles": 0, "histories": 0}
    out = tmp_path / "out"
    kinds = [module["type"].removeprefix("sentence_transformers.models.") for module in _json(out / "modules.json")]
    assert kinds == ["Transformer", "Pooling", "Dense", "Normalize"]
    config = _json(out / "config.json")
    assert config["model_type"] == family and "auto_map" not in config
    assert not list(out.rglob("*.py")) and not list(out.rglob("adapter*"))
    facts = _json(out / "export.json")
    assert facts["check"]["largest_difference"] == found.largest_difference and facts["adapter"] == "default"
    assert str(tmp_path) not in (out / "export.json").read_text() + (out / "README.md").read_text()
    assert _json(out / "sentence_bert_config.json")["max_seq_length"] == facts["layout"]["max_history_tokens"]


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in SERVED])
def test_families_that_the_server_does_not_know_are_refused(saved, family: str, tmp_path: Path) -> None:
    with pytest.raises(ExportRefusedError, match="does not run"):
        export_model(saved(family, "full"), tmp_path / "out", TEI)
    assert list(tmp_path.iterdir()) == []


def test_a_pooling_that_the_server_does_not_know_is_refused(saved, tmp_path: Path) -> None:
    with pytest.raises(ExportRefusedError, match="no pooling='last'"):
        export_model(saved("modernbert", "full", pooling="last"), tmp_path / "out", TEI)


def test_a_refused_export_leaves_nothing_and_an_old_one_stands(saved, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers", reason="needs the extra demo")
    folder = saved("modernbert", "full")
    with pytest.raises(ExportRefusedError, match="more than the bound of 0"):
        export_model(folder, tmp_path / "out", TEI, bound=0.0)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match="--overwrite"):
        export_model(folder, tmp_path / "out", TEI)
    with pytest.raises(ExportRefusedError):
        export_model(folder, tmp_path / "out", TEI, bound=0.0, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else real(name))
    with pytest.raises(ModuleNotFoundError, match=r"openvino is missing: `pip install 'llmrec\[export\]'`"):
        export_model("whatever", tmp_path / "out", "openvino")
    with pytest.raises(ValueError, match="'coreml' is none of"):
        export_model("whatever", tmp_path / "out", "coreml")


def test_the_command_checks_with_a_catalogue_and_prints_what_it_found(saved, tmp_path: Path, capsys) -> None:
    pytest.importorskip("sentence_transformers", reason="needs the extra demo")
    assert tuple(FORMATS) == command.NAMES
    cups = [f"Cup number {n}, blue" for n in range(40)]
    Catalogue([f"i{n}" for n in range(40)], cups, ["Kitchen"] * 40, np.zeros(40, dtype=np.int64)).save(
        tmp_path / "catalogue.parquet"
    )
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    arguments = [str(saved("modernbert", "full")), "--format", TEI, "--output", str(tmp_path / "out")]
    args = parser.parse_args([*arguments, "--catalogue", str(tmp_path / "catalogue.parquet")])
    assert command.run(args) == 0
    printed = capsys.readouterr().out
    assert "40 titles, 200 histories (catalogue of 40 items)" in printed and "largest difference" in printed


# -- onnx and openvino -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["opt", "t5"])
def test_an_onnx_graph_gives_the_models_vectors(saved, family: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra export")
    found = export_model(saved(family, projection_dim=8), tmp_path / "out", "onnx")
    assert found.largest_difference < 2e-5 and found.top_10_overlap == 1.0
    assert found.shapes_difference is not None and found.shapes_difference < 2e-5
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"model.onnx", "tokenizer.json", "tokenizer_config.json", "export.json", "README.md"}
    # As its README says, with nothing but the two files.
    from tokenizers import Tokenizer

    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    ids = [Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json")).encode("Espresso Beans 1 kg").ids]
    vectors = session.run(["embeddings"], {"input_ids": ids, "attention_mask": [[1] * len(ids[0])]})[0]
    model = LLMRecModel.from_pretrained(saved(family, projection_dim=8))
    processor = LLMRecProcessor.from_pretrained(saved(family, projection_dim=8))
    with torch.no_grad():
        expected = model(**processor(items=["Espresso Beans 1 kg"])).item_embeds
    torch.testing.assert_close(torch.tensor(vectors), expected, atol=2e-5, rtol=0)


def test_openvino_gives_minilms_vectors(saved, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="needs the extra export")
    found = export_model(saved("bert", "full"), tmp_path / "out", "openvino")
    assert found.largest_difference < 2e-5 and found.top_10_overlap == 1.0
    assert {"openvino_model.xml", "openvino_model.bin"} < {path.name for path in (tmp_path / "out").iterdir()}


def _json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))
