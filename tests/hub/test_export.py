"""A saved folder, loaded as a stranger does: another process, another directory, none of our packages."""

import ast
import json
import subprocess
import sys
import warnings
from pathlib import Path

import polars as pl
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModel

from llmrec.hub.export import merge_adapter, save_model
from modeling_llmrec import LLMRecModel, LLMRecProcessor
from modeling_llmrec.checkpoint import code_files, write_code
from tests.hub.stranger import ask_strangers
from tests.modeling.families import FAMILIES, backbone_folder

HISTORIES = [["Espresso Beans 1 kg", "Burr Grinder", "Milk Jug"], ["Guitar Strings"]]
ITEMS = ["Electric Guitar", "Coffee Machine", "Barista's Handbook"]
FORMS = ("full", "merged", "adapter", "adapters")


def _lora_config(model: LLMRecModel, **settings) -> LoraConfig:
    """LoRA over every linear layer, and the head where it has weights; none of them zero, as if trained."""
    has_head = bool(list(model.head.parameters()))
    return LoraConfig(
        **{"r": 4, **settings},
        target_modules="all-linear",
        exclude_modules=["head.projection"] if has_head else None,
        modules_to_save=["head"] if has_head else None,
        init_lora_weights=False,
    )


def _lora(model: LLMRecModel, seed: int = 0) -> PeftModel:
    peft_model = get_peft_model(model, _lora_config(model))
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in peft_model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    return peft_model.eval()


def _vectors(model, processor) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        output = model(**processor(histories=HISTORIES, items=ITEMS))
    return output.user_embeds, output.item_embeds


def _saved_again(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-again")


@pytest.fixture(scope="module")
def saved(minilm: str, shared_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Every family saved in every form, with the vectors it had, and what a stranger got from it."""
    root = tmp_path_factory.mktemp("saved")
    cases = {}
    for family in FAMILIES:
        source = backbone_folder(family, minilm, shared_weights, root / "backbones")
        for form in FORMS:
            model = LLMRecModel.from_backbone(source, projection_dim=8)
            processor = LLMRecProcessor.from_backbone(source, config=model.config)
            if form != "full":
                model = _lora(model)
            if form == "adapters":
                model.add_adapter("books", _lora_config(model.get_base_model(), r=2))
                model.set_adapter("books")
                model.eval()
            before = _vectors(model, processor)
            folder = root / f"{family}-{form}"
            if form == "adapters":
                kept = save_model(model, processor, folder, form="adapter", adapter="books")
            else:
                kept = save_model(model, processor, folder, form=form)
            after = _vectors(kept, processor)
            # Merging adds the two factors of each adapter in another order.
            torch.testing.assert_close(after, before, atol=1e-5 if form == "merged" else 0, rtol=0)
            cases[family, form] = {"folder": folder, "vectors": after}
    jobs = [
        {
            "folder": str(case["folder"]),
            "histories": HISTORIES,
            "items": ITEMS,
            "resave": str(_saved_again(case["folder"])),
        }
        for case in cases.values()
    ]
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for case, result in zip(cases.values(), ask_strangers(jobs, elsewhere, timeout=600), strict=True):
        case["stranger"] = result
    return cases


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_stranger_gets_the_same_vectors(saved: dict, family: str, form: str) -> None:
    case = saved[family, form]
    stranger = case["stranger"]
    assert stranger["model_type"] == "llmrec"
    assert stranger["classes"] == ["LLMRecModel", "LLMRecProcessor"]
    for ours, theirs in zip(case["vectors"], (stranger["user_embeds"], stranger["item_embeds"]), strict=True):
        torch.testing.assert_close(torch.tensor(theirs), ours, atol=1e-6, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_stranger_who_saves_it_again_writes_the_same_files(saved: dict, family: str, form: str) -> None:
    case = saved[family, form]
    first, again = _contents(case["folder"]), _contents(_saved_again(case["folder"]))
    assert first.keys() == again.keys()
    assert code_files().keys() <= first.keys()
    assert [name for name in first if first[name] != again[name]] == []


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_an_adapter_checkpoint_holds_no_backbone(saved: dict) -> None:
    folder = saved["bert", "adapter"]["folder"]
    weights = [p for p in folder.rglob("*") if p.suffix in (".safetensors", ".bin", ".pt", ".pkl")]
    assert [str(p.relative_to(folder)) for p in weights] == ["adapters/default/adapter_model.safetensors"]
    assert not (folder / "adapter_config.json").exists()
    assert weights[0].stat().st_size < 2_000_000


def _small(minilm: str) -> tuple[LLMRecModel, LLMRecProcessor]:
    model = LLMRecModel.from_backbone(minilm)
    return model, LLMRecProcessor.from_backbone(minilm, config=model.config)


def test_several_adapters_share_a_folder_and_are_switched(minilm: str, tmp_path: Path) -> None:
    model, processor = _small(minilm)
    peft_model, expected = _two_adapters(model, processor)
    save_model(peft_model, processor, tmp_path / "m", form="adapter")

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Already found a `peft_config`")
        again = LLMRecModel.from_pretrained(tmp_path / "m")
    assert again.config.default_adapter == "default"
    for name in ("books", "default"):
        again.set_adapter(name)
        torch.testing.assert_close(_vectors(again, processor)[0], expected[name], atol=1e-6, rtol=0)
    chosen = AutoModel.from_pretrained(tmp_path / "m", default_adapter="books")
    assert chosen.active_adapters() == ["books"]
    torch.testing.assert_close(_vectors(chosen, processor)[0], expected["books"], atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="default_adapter='toys' is not among the adapters"):
        LLMRecModel.from_pretrained(tmp_path / "m", default_adapter="toys")


def _two_adapters(model: LLMRecModel, processor: LLMRecProcessor) -> tuple[PeftModel, dict[str, torch.Tensor]]:
    """Adapters `default` and `books`, and the user vectors of each."""
    peft_model = _lora(model)
    torch.manual_seed(1)
    peft_model.add_adapter("books", LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False))
    expected = {}
    for name in ("default", "books"):
        peft_model.set_adapter(name)
        expected[name] = _vectors(peft_model.eval(), processor)[0]
    assert (expected["default"] - expected["books"]).abs().max() > 1e-3
    return peft_model, expected


def test_an_adapter_is_not_called_as_a_module_of_the_backbone(minilm: str, tmp_path: Path) -> None:
    # PEFT would leave out every tensor of `default` under `encoder.layer`.
    model, processor = _small(minilm)
    peft_model = _lora(model)
    peft_model.add_adapter("layer", LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False))
    with pytest.raises(ValueError, match=r"cannot be called 'layer'.*encoder.layer.0.*another name"):
        save_model(peft_model, processor, tmp_path / "m", form="adapter")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("adapter", [None, "books"])
def test_an_adapter_is_merged_from_a_loaded_checkpoint_too(minilm: str, tmp_path: Path, adapter: str | None) -> None:
    model, processor = _small(minilm)
    peft_model, expected = _two_adapters(model, processor)
    save_model(peft_model, processor, tmp_path / "m", form="adapter")
    loaded = LLMRecModel.from_pretrained(tmp_path / "m")
    kept = save_model(loaded, processor, tmp_path / "merged", form="merged", adapter=adapter)
    assert not [name for name, _ in kept.named_parameters() if "lora" in name]
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["adapters"] is None and config["default_adapter"] is None
    assert not (tmp_path / "merged" / "adapters").exists()
    again = LLMRecModel.from_pretrained(tmp_path / "merged")
    vectors = expected[adapter or "default"]
    torch.testing.assert_close(_vectors(again, processor)[0], vectors, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="no adapters"):
        save_model(again, processor, tmp_path / "n", form="merged")


def test_what_cannot_be_merged_is_said(minilm: str) -> None:
    model, processor = _small(minilm)
    peft_model, _ = _two_adapters(model, processor)
    with pytest.raises(ValueError, match=r"adapter='toys' is not among .*'default', 'books'"):
        merge_adapter(peft_model, "toys")
    peft_model.base_model.set_adapter(["default", "books"])
    with pytest.raises(ValueError, match="2 adapters are active .default, books.: name the one to merge"):
        merge_adapter(peft_model)
    model.is_loaded_in_4bit = True
    with pytest.raises(ValueError, match="without quantization_config"):
        merge_adapter(peft_model, "books")


def test_small_changes_survive_merging_into_half_precision(minilm: str, tmp_path: Path) -> None:
    model, processor = _small(minilm)
    save_model(_lora(model), processor, tmp_path / "m", form="adapter")
    exact = LLMRecModel.from_pretrained(tmp_path / "m", dtype=torch.float32)
    half = LLMRecModel.from_pretrained(tmp_path / "m", dtype=torch.bfloat16)
    merged = merge_adapter(half)
    assert merged.backbone.dtype == torch.float32
    weight = merged.backbone.encoder.layer[0].attention.self.query.weight
    exact_layer = exact.backbone.encoder.layer[0].attention.self.query
    change = exact_layer.get_delta_weight("default")
    torch.testing.assert_close(weight, exact_layer.base_layer.weight.bfloat16().float() + change)


def test_a_bare_backbone_is_not_saved_as_if_it_were_trained(minilm: str, tmp_path: Path) -> None:
    model, processor = _small(minilm)
    save_model(_lora(model), processor, tmp_path / "m", form="adapter")
    bare = LLMRecModel.from_pretrained(tmp_path / "m", load_adapters=False)
    with pytest.raises(ValueError, match="without its adapters"):
        save_model(bare, processor, tmp_path / "n")
    assert not (tmp_path / "n").exists()


def test_nothing_of_this_machine_is_in_a_saved_folder(minilm: str, tmp_path: Path) -> None:
    model = LLMRecModel.from_backbone(minilm, backbone_name_or_path="sentence-transformers/all-MiniLM-L6-v2")
    processor = LLMRecProcessor.from_backbone(minilm, config=model.config)
    _vectors(model, processor)
    save_model(_lora(model), processor, tmp_path / "m", form="adapter")
    for path in (path for path in (tmp_path / "m").rglob("*") if path.suffix == ".json"):
        text = path.read_text(encoding="utf-8")
        for place in (minilm, str(tmp_path), str(Path.home()), str(Path.cwd())):
            assert place not in text, f"{path.name} names {place}"
    settings = json.loads((tmp_path / "m" / "adapters" / "default" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert settings["target_modules"] == sorted(settings["target_modules"])


def test_peft_users_load_the_same_adapter_their_own_way(minilm: str, tmp_path: Path) -> None:
    model, processor = _small(minilm)
    peft_model = _lora(model)
    expected = _vectors(peft_model, processor)[0]
    save_model(peft_model, processor, tmp_path / "m", form="adapter")
    bare = LLMRecModel.from_pretrained(tmp_path / "m", load_adapters=False)
    assert (_vectors(bare, processor)[0] - expected).abs().max() > 1e-3
    loaded = PeftModel.from_pretrained(bare, tmp_path / "m", subfolder="adapters/default").eval()
    torch.testing.assert_close(_vectors(loaded, processor)[0], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_adapters_load_in_the_type_asked_for(minilm: str, tmp_path: Path, name: str) -> None:
    model, processor = _small(minilm)
    save_model(_lora(model), processor, tmp_path / "m", form="adapter")
    half = LLMRecModel.from_pretrained(tmp_path / "m", **{name: torch.bfloat16})
    assert half.backbone.dtype == torch.bfloat16
    assert LLMRecModel.from_pretrained(tmp_path / "m").backbone.dtype == torch.float32


def test_saving_never_leaves_half_a_folder(minilm: str, tmp_path: Path, monkeypatch) -> None:
    model, processor = _small(minilm)

    def broken(self, folder, **kwargs) -> None:
        raise RuntimeError("disk full")

    monkeypatch.setattr(LLMRecProcessor, "save_pretrained", broken)
    with pytest.raises(RuntimeError, match="disk full"):
        save_model(model, processor, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_kept(minilm: str, tmp_path: Path) -> None:
    model, processor = _small(minilm)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="exists already"):
        save_model(model, processor, tmp_path / "m")
    assert (tmp_path / "m" / "mine.txt").read_text() == "keep"
    with pytest.raises(ValueError, match="no adapters"):
        save_model(model, processor, tmp_path / "n", form="adapter")


def test_what_travels_imports_only_what_a_stranger_has() -> None:
    everywhere = {"torch", "transformers", *sys.stdlib_module_names}
    in_functions = everywhere | {"peft", "safetensors"}
    files = code_files()
    for name, path in files.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        inside = {id(node) for function in functions for node in ast.walk(function)}
        for node in ast.walk(tree):
            allowed = in_functions if id(node) in inside else everywhere
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed, f"{name}:{node.lineno}"
            elif isinstance(node, ast.ImportFrom) and node.level:
                # A folder on the Hub is flat: one dot, one name.
                assert node.level == 1 and f"{node.module}.py" in files, f"{name}:{node.lineno}"
            elif isinstance(node, ast.ImportFrom):
                assert node.module.split(".")[0] in allowed, f"{name}:{node.lineno}"
            # Nor by a name that is made up while running, and never from a pickle.
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert called.rpartition(".")[2] not in ("__import__", "import_module", "exec", "eval_code", "run_path")
            assert called not in ("eval", "compile", "torch.load", "pickle.load", "pickle.loads"), (
                f"{name}:{node.lineno}"
            )


def test_transformers_takes_along_every_file_that_travels(minilm: str, tmp_path: Path) -> None:
    # What a stranger's copy of the code lacks, the stranger cannot save again.
    from transformers.dynamic_module_utils import get_relative_import_files

    write_code(tmp_path)
    found = {Path(file).name for file in get_relative_import_files(tmp_path / "modeling_llmrec.py")}
    assert found | {"modeling_llmrec.py"} == set(code_files())
    assert "pipeline_llmrec.py" in found


def test_a_pipeline_made_of_it_leaves_no_trace_in_the_config(minilm: str, tmp_path: Path) -> None:
    from transformers.pipelines import clean_custom_task

    model, processor = _small(minilm)
    saved = model.config.to_json_string()
    clean_custom_task(model.config.custom_pipelines["recommendation"])  # puts a class where its name was
    assert model.config.to_json_string() == saved and '"pipeline_llmrec.RecommendationPipeline"' in saved
    recommend = model.as_pipeline(processor)
    ranked = recommend({"history": HISTORIES[0], "candidates": ITEMS}, k=2)
    assert [row["title"] for row in ranked] == ["Coffee Machine", "Barista's Handbook"]


def test_the_example_recommends_from_a_saved_folder(minilm: str, tmp_path: Path) -> None:
    model, processor = _small(minilm)
    save_model(model, processor, tmp_path / "m")
    titles = ["Electric Guitar", "Burr Coffee Grinder", "Guitar Strings", "Espresso Machine"]
    pl.DataFrame({"title": titles, "domain": ["Music", "Kitchen", "Music", "Kitchen"]}).write_parquet(
        tmp_path / "catalogue.parquet"
    )
    script = Path(__file__).parents[2] / "examples" / "stranger.py"
    arguments = [str(tmp_path / "m"), str(tmp_path / "catalogue.parquet"), "Electric Guitar", "-k", "3"]
    done = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    recommended = done.stdout.split("it recommends\n")[1].splitlines()
    assert len(recommended) == 3 and recommended[0].endswith("Music     Guitar Strings")
