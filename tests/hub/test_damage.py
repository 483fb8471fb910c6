"""Ways of damaging a repository, each answered by an error that names the file or the place, and what to do."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModel

from llmrec.hub.export import save_model
from llmrec.hub.loading import load_model
from modeling_llmrec import LLMRecModel, LLMRecProcessor
from modeling_llmrec.fingerprint import DamagedFileError
from tests.hub.stranger import ask_strangers

HISTORIES, ITEMS = [["once upon a time", "the cat"]], ["a little girl", "the dog"]
ADAPTER = "adapters/default/adapter_model.safetensors"
ADAPTER_CONFIG = "adapters/default/adapter_config.json"


@pytest.fixture(scope="module")
def whole(shared_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One small model, saved whole, in shards, and as an adapter over a backbone in a folder of its own."""
    root = tmp_path_factory.mktemp("whole")
    folders = {name: root / name for name in ("backbone", "full", "sharded", "adapter")}
    folders["backbone"].mkdir()
    for file in (shared_weights / "stories260K").iterdir():
        (folders["backbone"] / file.name).write_bytes(file.read_bytes())  # the source may be read-only
    model = LLMRecModel.from_backbone(folders["backbone"], projection_dim=8)
    processor = LLMRecProcessor.from_backbone(folders["backbone"], config=model.config)
    save_model(model, processor, folders["full"])
    model.save_pretrained(folders["sharded"], max_shard_size="300KB")
    processor.save_pretrained(folders["sharded"])
    config = LoraConfig(
        r=4, target_modules="all-linear", exclude_modules=["head.projection"], modules_to_save=["head"],
        init_lora_weights=False,
    )  # fmt: skip
    save_model(get_peft_model(model, config), processor, folders["adapter"], form="adapter")
    assert len(list(folders["sharded"].glob("model-*.safetensors"))) == 4
    for form in ("full", "sharded", "adapter"):
        load_model(folders[form])  # undamaged, each of them loads
    return folders


@pytest.fixture
def copy_of(whole: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """Copies a form into a folder to be damaged; an adapter's backbone stands beside it, as `backbone`."""

    def copy(form: str) -> Path:
        folder = tmp_path / form
        shutil.copytree(whole[form], folder)
        if form == "adapter":
            shutil.copytree(whole["backbone"], tmp_path / "backbone")
            _edit(folder / "config.json", backbone_name_or_path=str(tmp_path / "backbone"))
        return folder

    return copy


def _edit(file: Path, *path: str, **values) -> None:
    """Change entries of a JSON file; `...` takes one out."""
    content = json.loads(file.read_text())
    inner = content
    for name in path:
        inner = inner[name]
    inner |= values
    for name in [name for name, value in inner.items() if value is ...]:
        del inner[name]
    file.write_text(json.dumps(content))


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def _shard(folder: Path) -> Path:
    return folder / "model-00002-of-00004.safetensors"


def _rename_in_index(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00002", "model-00077"))


def _other_backbone(folder: Path) -> None:
    """Another language model in the place of the one that the adapter was trained over."""
    _edit(folder / "config.json", "text_config", num_hidden_layers=4)


def _trained_further(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = folder.with_name("backbone") / "model.safetensors"
    save_file({name: tensor * 1.01 for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})


# What is done to which form; the error, and words of its message.
DAMAGES: dict[str, tuple[str, Callable[[Path], object], type[Exception], str]] = {
    "weights cut short": (
        "full", lambda f: _cut(f / "model.safetensors"),
        DamagedFileError, r"full/model\.safetensors is damaged: its header promises \d+ bytes.*Fetch it again",
    ),
    "weights overwritten": (
        "full", lambda f: (f / "model.safetensors").write_bytes(b"\0garbage" * 99),
        DamagedFileError, r"full/model\.safetensors is no whole safetensors file.*fetch it again",
    ),
    "weights empty": (
        "full", lambda f: (f / "model.safetensors").write_bytes(b""),
        DamagedFileError, r"full/model\.safetensors is no whole safetensors file \(0 bytes\)",
    ),
    "weights missing": (
        "full", lambda f: (f / "model.safetensors").unlink(),
        OSError, r"weights of '.*full' cannot be had: they must be model\.safetensors.*Fetch or save",
    ),
    "shard cut short": (
        "sharded", lambda f: _cut(_shard(f)),
        DamagedFileError, r"model-00002-of-00004\.safetensors is damaged.*Fetch it again",
    ),
    "shard missing": (
        "sharded", lambda f: _shard(f).unlink(),
        OSError, r"cannot be had.*every file that this names.*Fetch or save.*model-00002-of-00004\.safetensors",
    ),
    "index names a missing file": (
        "sharded", _rename_in_index,
        OSError, r"cannot be had.*every file that this names.*Fetch or save.*model-00077-of-00004\.safetensors",
    ),
    "index broken": (
        "sharded", lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": 3}'),
        DamagedFileError, r"model\.safetensors\.index\.json is not the index.*fetch it again",
    ),
    "adapter cut short": (
        "adapter", lambda f: _cut(f / ADAPTER),
        DamagedFileError, r"default/adapter_model\.safetensors is damaged.*Fetch it again",
    ),
    "adapter missing": (
        "adapter", lambda f: (f / ADAPTER).unlink(),
        OSError, r"Adapter 'default' of '.*adapter' has no adapters/default/adapter_model\.safetensors.*save the adap",
    ),
    "adapter without a configuration": (
        "adapter", lambda f: (f / ADAPTER_CONFIG).unlink(),
        OSError, r"Adapter 'default' of '.*' has no adapters/default/adapter_config\.json.*save the adapter again",
    ),
    "adapter configuration broken": (
        "adapter", lambda f: (f / ADAPTER_CONFIG).write_text('{"peft_type": "LORA"'),
        ValueError, r"default/adapter_config\.json is no configuration of an adapter.*fetch or save it again",
    ),
    "adapter of an unknown kind": (
        "adapter", lambda f: _edit(f / ADAPTER_CONFIG, peft_type="MAGIC"),
        ValueError, r"adapter_config\.json is of the type 'MAGIC'.*does not know.*upgrade peft",
    ),
    "adapter of another kind than LoRA-like": (
        "adapter", lambda f: (f / ADAPTER_CONFIG).write_text('{"peft_type": "PROMPT_TUNING"}'),
        ValueError, r"Adapter 'default' of '.*' does not fit the backbone '.*backbone'.*prompt learning",
    ),
    "adapter for modules that are not there": (
        "adapter", lambda f: _edit(f / ADAPTER_CONFIG, target_modules=["attention.query"]),
        ValueError, r"Adapter 'default' of '.*' does not fit the backbone.*No modules were targeted",
    ),
    "adapter of another size": (
        "adapter", lambda f: _edit(f / ADAPTER_CONFIG, r=8),
        ValueError, r"Adapter 'default' of '.*' does not fit the backbone.*lora_A.*\[4, 64\].*\[8, 64\]",
    ),
    "adapter configuration that imports modules": (
        "adapter", lambda f: _edit(f / ADAPTER_CONFIG, megatron_config={"x": 1}, megatron_core="antigravity"),
        ValueError, r"adapter_config\.json has a megatron_config.*refused",
    ),
    "adapter of another backbone": (
        "adapter", _other_backbone,
        ValueError, r"Adapter 'default' of '.*' does not fit the backbone '.*backbone'.*trained over another backbone",
    ),
    "backbone trained further": (
        "adapter", _trained_further,
        ValueError, r"trained over another backbone than '.*backbone'.*fingerprint.*Pin the commit.*check_backbone=Fa",
    ),
    "backbone cut short": (
        "adapter", lambda f: _cut(f.with_name("backbone") / "model.safetensors"),
        DamagedFileError, r"backbone/model\.safetensors is damaged.*Fetch it again",
    ),
    "backbone without weights": (
        "adapter", lambda f: (f.with_name("backbone") / "model.safetensors").unlink(),
        OSError, r"'.*adapter' holds adapters over the backbone '.*backbone'.*pass backbone=.*safetensors weights",
    ),
    "backbone folder gone": (
        "adapter", lambda f: shutil.rmtree(f.with_name("backbone")),
        OSError, r"over the backbone '.*backbone', and that cannot be had.*pass backbone=.*there is no folder",
    ),
    "backbone on the Hub unknown or out of reach": (
        "adapter", lambda f: _edit(f / "config.json", backbone_name_or_path="someone/unheard-of"),
        OSError, r"backbone 'someone/unheard-of', and that cannot be had.*pass backbone=.*couldn't connect.*cached",
    ),
    "revision of the backbone vanished": (
        "adapter", lambda f: _edit(f / "config.json", backbone_name_or_path="some/one", backbone_revision="a" * 40),
        OSError, r"backbone 'some/one' at revision 'a{40}', and that cannot be had.*pass backbone=",
    ),
    "backbone not named": (
        "adapter", lambda f: _edit(f / "config.json", backbone_name_or_path=None),
        ValueError, r"config\.json of '.*adapter' has adapters but no backbone_name_or_path",
    ),
    "config.json broken": (
        "full", lambda f: (f / "config.json").write_text("{"),
        OSError, r"the config file at '.*full/config\.json' is not a valid JSON file",
    ),
    "config.json missing": (
        "full", lambda f: (f / "config.json").unlink(),
        OSError, r"'.*full' has no config\.json.*fetch or save the model again",
    ),
    "config.json of another kind": (
        "full", lambda f: (f / "config.json").write_text("[1]"),
        OSError, r"'.*full' has no config\.json, or an empty one",
    ),
    "config.json without model_type": (
        "full", lambda f: _edit(f / "config.json", model_type=...),
        ValueError, r"config\.json of '.*full' says no model_type: fetch or save",
    ),
    "config.json with a value that is none": (
        "full", lambda f: _edit(f / "config.json", pooling="max"),
        ValueError, r"config\.json of '.*full' cannot be used: pooling='max' is none of 'cls', 'last', 'mean'",
    ),
    "config.json of an unknown architecture": (
        "full", lambda f: _edit(f / "config.json", "text_config", model_type="nonesuch"),
        ValueError, r"config\.json of '.*full' cannot be used: Unrecognized model identifier: nonesuch",
    ),
    "default adapter unknown": (
        "adapter", lambda f: _edit(f / "config.json", default_adapter="books"),
        ValueError, r"config\.json of '.*adapter' cannot be used: default_adapter='books' is not among .*'default'",
    ),
    "adapter folder outside the repository": (
        "adapter", lambda f: _edit(f / "config.json", adapters={"default": "../secrets"}),
        ValueError, r"config\.json puts adapter 'default' into '\.\./secrets': it must be a folder inside the reposit",
    ),
    "adapter folder absolute": (
        "adapter", lambda f: _edit(f / "config.json", adapters={"default": "/etc"}),
        ValueError, r"config\.json puts adapter 'default' into '/etc': it must be a folder inside the repository",
    ),
    "adapter name that is a path": (
        "adapter", lambda f: _edit(f / "config.json", adapters={"a/b": "adapters/default"}, default_adapter=None),
        ValueError, r"adapter name 'a/b' in config\.json may hold letters",
    ),
    "adapter named as a module": (
        "adapter", lambda f: _edit(f / "config.json", adapters={"layers": "adapters/default"}, default_adapter=None),
        ValueError, r"cannot be called 'layers': the backbone has a module of that name.*another name",
    ),
    "other size of the projection": (
        "full", lambda f: _edit(f / "config.json", projection_dim=16),
        ValueError, r"weights in '.*full' belong to another configuration.*head\.projection\.weight.*\(8, 64\).*\(16, ",
    ),
    "no projection": (
        "full", lambda f: _edit(f / "config.json", projection_dim=None),
        ValueError, r"weights in '.*full' belong to another configuration: 1 unexpected keys.*head\.projection\.weight",
    ),
    "other size of an adapter's projection": (
        "adapter", lambda f: _edit(f / "config.json", projection_dim=16),
        ValueError, r"Adapter 'default' of '.*' does not fit.*\[8, 64\].*\[16, 64\].*projection_dim in config\.json",
    ),
    "other width of the backbone": (
        "adapter", lambda f: _edit(f / "config.json", "text_config", hidden_size=128),
        ValueError, r"weights in '.*backbone' belong to another configuration.*embed_tokens\.weight.*config\.json",
    ),
    "fewer embeddings": (
        "full", lambda f: _edit(f / "config.json", "text_config", vocab_size=100),
        ValueError, r"weights in '.*full' belong to another configuration.*\(512, 64\) and not \(100, 64\)",
    ),
    "tokenizer missing": (
        "full", lambda f: [(f / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")],
        OSError, r"tokenizer of '.*full' cannot be read: tokenizer\.json or tokenizer_config\.json is missing.*Fetch",
    ),
    "tokenizer broken": (
        "full", lambda f: _cut(f / "tokenizer.json"),
        OSError, r"tokenizer of '.*full' cannot be read: tokenizer\.json or .* damaged. Fetch or save the model again",
    ),
    "special token unknown": (
        "full", lambda f: _edit(f / "config.json", suffix_tokens=["<end>"]),
        ValueError, r"suffix_tokens of the config names '<end>', which the tokenizer .*full does not have",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(copy_of: Callable[[str], Path], damage: str) -> None:
    form, do, kind, message = DAMAGES[damage]
    folder = copy_of(form)
    do(folder)
    with pytest.raises(kind, match=f"(?s){message}"):
        load_model(folder)


def test_a_tokenizer_with_more_ids_than_embeddings_is_refused(
    copy_of: Callable[[str], Path], shared_weights: Path
) -> None:
    folder = copy_of("full")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        source = shared_weights / "tokenizers" / "opt" / name
        (folder / name).write_bytes(source.read_bytes())
    with pytest.raises(ValueError, match=r"has ids up to 50264, and the model has 512 embeddings.*another model"):
        load_model(folder)


# -- pickles -----------------------------------------------------------------------------------------


class _Touch:
    """Unpickled, it leaves a file."""

    def __init__(self, file: Path) -> None:
        self.file = str(file)

    def __reduce__(self) -> tuple:
        return (Path.touch, (Path(self.file),))


def _pickle(file: Path, marker: Path) -> None:
    with file.open("wb") as stream:
        pickle.dump(_Touch(marker), stream)


def _replace_full(folder: Path, marker: Path) -> None:
    (folder / "model.safetensors").unlink()
    _pickle(folder / "pytorch_model.bin", marker)


def _replace_adapter(folder: Path, marker: Path) -> None:
    (folder / ADAPTER).unlink()
    _pickle((folder / ADAPTER).with_suffix(".bin"), marker)


def _replace_backbone(folder: Path, marker: Path) -> None:
    backbone = folder.with_name("backbone")
    (backbone / "model.safetensors").unlink()
    _pickle(backbone / "pytorch_model.bin", marker)


def _beside_everything(folder: Path, marker: Path) -> None:
    for name in ("pytorch_model.bin", "training_args.bin", "adapter_model.bin", "optimizer.pt", "tokenizer.pkl"):
        _pickle(folder / name, marker)
    _pickle(folder / "model.safetensors", marker)


PICKLES = {
    "weights": ("full", _replace_full, "pickled weights are refused"),
    "adapter": ("adapter", _replace_adapter, "pickled ones are refused"),
    "backbone": ("adapter", _replace_backbone, "pickled weights are refused"),
    "under a safe name": ("full", _beside_everything, r"model\.safetensors is no whole safetensors file"),
}


def test_the_pickles_of_these_tests_would_do_harm(tmp_path: Path) -> None:
    _pickle(tmp_path / "weights.bin", tmp_path / "touched")
    with (tmp_path / "weights.bin").open("rb") as stream:
        pickle.load(stream)
    assert (tmp_path / "touched").exists()


@pytest.mark.parametrize("what", PICKLES)
def test_nothing_is_unpickled(copy_of: Callable[[str], Path], tmp_path: Path, what: str) -> None:
    form, do, message = PICKLES[what]
    folder, marker = copy_of(form), tmp_path / "touched"
    do(folder, marker)
    for load in (load_model, AutoModel.from_pretrained):
        with pytest.raises(OSError, match=message):
            load(folder)
    assert not marker.exists()


# -- a stranger --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_stranger_is_told_the_same(copy_of: Callable[[str], Path], tmp_path: Path) -> None:
    """Each of these in a process without our package; and no code runs there that was not asked for."""
    touched = tmp_path / "touched"
    jobs, messages = [], []

    def ask(form: str, do: Callable[[Path], object], message: str, **arguments) -> None:
        where = tmp_path / f"{len(jobs)}"
        where.mkdir()
        shutil.copytree(copy_of(form), where / form)
        shutil.rmtree(tmp_path / form)
        if form == "adapter":
            (tmp_path / "backbone").rename(where / "backbone")
            _edit(where / form / "config.json", backbone_name_or_path=str(where / "backbone"))
        do(where / form)
        jobs.append(
            {"folder": str(where / form), "histories": HISTORIES, "items": ITEMS, "fails": True, "arguments": arguments}
        )
        messages.append(message)

    def touch_on_import(folder: Path) -> None:
        for file in folder.glob("*.py"):
            file.write_text(f"open({str(touched)!r}, 'w').close()\n{file.read_text()}")

    # Before any class is loaded from a folder: afterwards transformers knows it, and looks for no file.
    ask("full", touch_on_import, "contains custom code which must be executed", trust_remote_code=False)
    ask("full", touch_on_import, "contains custom code which must be executed", trust_remote_code=None)
    ask("full", lambda f: (f / "pooling.py").unlink(), "pooling.py")
    ask("full", lambda f: _edit(f / "config.json", "auto_map", AutoConfig="elsewhere.LLMRecConfig"), "elsewhere.py")
    ask("full", lambda f: (f / "config.json").unlink(), "Should have a `model_type` key in its config.json")
    ask("full", lambda f: _cut(f / "model.safetensors"), "model.safetensors is damaged")
    ask("sharded", lambda f: _shard(f).unlink(), "model-00002-of-00004.safetensors")
    ask("adapter", lambda f: (f / ADAPTER).unlink(), "has no adapters/default/adapter_model.safetensors")
    ask("adapter", _trained_further, "trained over another backbone than")
    ask("adapter", lambda f: None, "default_adapter='books' is not among", default_adapter="books")
    ask("adapter", lambda f: _edit(f / "config.json", adapters={"default": "../x"}), "inside the repository")
    for form, do, message in PICKLES.values():
        ask(form, lambda f, do=do: do(f, touched), message.replace("\\", ""))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    results = ask_strangers(jobs, elsewhere)
    for job, result, message in zip(jobs, results, messages, strict=True):
        assert message in result.get("message", "no error"), f"{job}: {result}"
    assert not touched.exists()


def test_an_adapter_without_the_projection_is_refused_at_saving_and_at_loading(minilm: str, tmp_path: Path) -> None:
    model = LLMRecModel.from_backbone(minilm, projection_dim=8)
    processor = LLMRecProcessor.from_backbone(minilm, config=model.config)
    headless = get_peft_model(model, LoraConfig(r=2, target_modules=["query"], init_lora_weights=False))
    with pytest.raises(ValueError, match=r"'default' lacks the weights of the head.*modules_to_save"):
        save_model(headless, processor, tmp_path / "never", form="adapter")
    assert list(tmp_path.iterdir()) == []

    model = LLMRecModel.from_backbone(minilm)
    plain = get_peft_model(model, LoraConfig(r=2, target_modules=["query"], init_lora_weights=False))
    save_model(plain, processor.__class__(processor.tokenizer, config=model.config), tmp_path / "m", form="adapter")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, "projection_dim": 8}))
    with pytest.raises(ValueError, match="would be random"):
        LLMRecModel.from_pretrained(tmp_path / "m")
