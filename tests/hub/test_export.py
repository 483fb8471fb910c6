"""A saved folder, loaded as a stranger does: another process, another directory, none of our packages."""

import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from llmrec.hub.export import save_model
from modeling_llmrec import LLMRecModel, LLMRecProcessor
from modeling_llmrec.checkpoint import code_files
from tests.modeling.families import FAMILIES, backbone_folder

HISTORIES = [["Espresso Beans 1 kg", "Burr Grinder", "Milk Jug"], ["Guitar Strings"]]
ITEMS = ["Electric Guitar", "Coffee Machine", "Barista's Handbook"]
FORMS = ("full", "merged", "adapter")


def _lora(model: LLMRecModel, seed: int = 0) -> PeftModel:
    """LoRA over every linear layer, and the head where it has weights; none of them zero, as if trained."""
    config = LoraConfig(
        r=4,
        target_modules="all-linear",
        exclude_modules=["head.projection"],
        modules_to_save=["head"] if list(model.head.parameters()) else None,
        init_lora_weights=False,
    )
    peft_model = get_peft_model(model, config)
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


def _strangers(jobs: list[dict], elsewhere: Path) -> list[dict]:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_HOME")}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(elsewhere / "hf"), "OMP_NUM_THREADS": "1"}
    # An editable installation puts the project on the path through site-packages; a stranger has the
    # dependencies only, so finders of our packages are taken out before anything else runs.
    script = (
        "import runpy, sys\n"
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in f'{f!r}'.lower()]\n"
        f"sys.path = [p for p in sys.path if p not in ('', {str(Path.cwd())!r})]\n"
        f"runpy.run_path({str(Path(__file__).with_name('stranger.py'))!r}, run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(jobs), capture_output=True, text=True, cwd=elsewhere, env=environment, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


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
            before = _vectors(model, processor)
            folder = root / f"{family}-{form}"
            kept = save_model(model, processor, folder, form="adapter" if form == "adapter" else "full")
            after = _vectors(kept, processor)
            # Merging adds the two factors of each adapter in another order.
            torch.testing.assert_close(after, before, atol=1e-5 if form == "merged" else 0, rtol=0)
            cases[family, form] = {"folder": folder, "vectors": after, "resave": root / f"{family}-{form}-again"}
    jobs = [
        {"folder": str(case["folder"]), "histories": HISTORIES, "items": ITEMS, "resave": str(case["resave"])}
        for case in cases.values()
    ]
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for case, result in zip(cases.values(), _strangers(jobs, elsewhere), strict=True):
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
def test_a_stranger_can_save_it_again(saved: dict, family: str, form: str) -> None:
    case = saved[family, form]
    first = {str(p.relative_to(case["folder"])) for p in case["folder"].rglob("*") if p.is_file()}
    again = {str(p.relative_to(case["resave"])) for p in case["resave"].rglob("*") if p.is_file()}
    assert first == again
    for name in code_files():
        assert (case["folder"] / name).read_bytes() == (case["resave"] / name).read_bytes()
    model = LLMRecModel.from_pretrained(case["resave"])
    processor = LLMRecProcessor.from_pretrained(case["resave"])
    torch.testing.assert_close(_vectors(model, processor)[0], case["vectors"][0], atol=1e-6, rtol=0)


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
    peft_model = _lora(model)
    config = LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False)
    torch.manual_seed(1)
    peft_model.add_adapter("books", config)
    expected = {}
    for name in ("default", "books"):
        peft_model.set_adapter(name)
        expected[name] = _vectors(peft_model.eval(), processor)[0]
    save_model(peft_model, processor, tmp_path / "m", form="adapter")

    again = LLMRecModel.from_pretrained(tmp_path / "m")
    assert again.config.default_adapter == "default"
    for name in ("books", "default"):
        again.set_adapter(name)
        torch.testing.assert_close(_vectors(again, processor)[0], expected[name], atol=1e-6, rtol=0)
    assert (expected["default"] - expected["books"]).abs().max() > 1e-3


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


def test_an_adapter_of_another_backbone_is_refused(minilm: str, tmp_path: Path) -> None:
    model, processor = _small(minilm)
    save_model(_lora(model), processor, tmp_path / "m", form="adapter")
    path = tmp_path / "m" / "config.json"
    config = json.loads(path.read_text())
    config["text_config"]["num_hidden_layers"] = 3
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="does not fit the backbone"):
        LLMRecModel.from_pretrained(tmp_path / "m")


def test_a_missing_adapter_file_is_named_and_nothing_pickled_is_read(minilm: str, tmp_path: Path) -> None:
    model, processor = _small(minilm)
    save_model(_lora(model), processor, tmp_path / "m", form="adapter")
    weights = tmp_path / "m" / "adapters" / "default" / "adapter_model.safetensors"
    torch.save({}, weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(OSError, match="adapter_model.safetensors"):
        LLMRecModel.from_pretrained(tmp_path / "m")


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
    allowed = {"torch", "transformers", *sys.stdlib_module_names}
    for name, path in code_files().items():
        for line in path.read_text().splitlines():
            words = line.split()
            if not line.startswith(("import ", "from ")):
                continue
            module = words[1]
            assert module.startswith(".") or module.split(".")[0] in allowed, f"{name}: {line}"
            # A folder on the Hub is flat: one dot, one name.
            assert not module.startswith(".") or module.removeprefix(".").isidentifier(), f"{name}: {line}"


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
