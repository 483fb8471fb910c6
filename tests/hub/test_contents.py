"""What a folder holds, and every reason why it must not travel."""

import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from llmrec.hub.contents import UnpublishableError, check_folder, inspect_folder
from llmrec.hub.leaks import find_paths, find_paths_in_json, find_secrets, pickle_inside, without_paths
from modeling_llmrec import LLMRecModel, LLMRecProcessor
from modeling_llmrec.checkpoint import code_files
from tests.hub.saved_models import save_as
from tests.modeling.families import backbone_folder

TOKEN = "hf_" + "x" * 34
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (1200).to_bytes(4, "big") + (800).to_bytes(4, "big") + bytes(8)


@pytest.fixture(scope="module")
def models(minilm: str, shared_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved models of the OPT family by form: "full", "adapter", "sharded"."""
    root = tmp_path_factory.mktemp("contents")
    source = backbone_folder("opt", minilm, shared_weights, root)
    for form in ("full", "adapter"):
        save_as("opt", form, source, root / form)
    model = LLMRecModel.from_pretrained(root / "full")
    model.save_pretrained(root / "sharded", max_shard_size="200kB")
    LLMRecProcessor.from_pretrained(root / "full").save_pretrained(root / "sharded")
    return {form: root / form for form in ("full", "adapter", "sharded")}


@pytest.fixture
def model(models: dict[str, Path], tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy to damage, of the form that the test is parametrised with; "adapter" by default."""
    return shutil.copytree(models[getattr(request, "param", "adapter")], tmp_path / "model")


@pytest.mark.parametrize("model", ["full", "adapter", "sharded"], indirect=True)
def test_a_saved_model_may_travel_and_says_what_it_holds(model: Path) -> None:
    (model / "plots").mkdir()
    (model / "plots" / "ndcg.png").write_bytes(PNG)
    entries = {entry.path: entry for entry in check_folder(model)}
    assert entries == {entry.path: entry for entry in inspect_folder(model)}
    files = [path for path in model.rglob("*") if path.is_file()]
    assert {path: entry.size for path, entry in entries.items()} == {
        path.relative_to(model).as_posix(): path.stat().st_size for path in files
    }
    assert {path for path, entry in entries.items() if entry.kind == "code"} == set(code_files())
    assert entries["plots/ndcg.png"].about == "plot 1200×800"
    assert entries["tokenizer.json"].about.startswith("tokenizer, 50,2")
    weights = [entry for entry in entries.values() if entry.kind in ("weights", "adapter")]
    found = load_file(model / weights[0].path)
    assert f"{len(found)} tensors, " in weights[0].about and weights[0].about.endswith("float32")


def _pickle(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))


def _hidden_pickle(folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(pickle.dumps({"a": 1}, protocol=4))


def _torch_archive(folder: Path) -> None:
    torch.save({"a": torch.zeros(2)}, folder / "README.md")


def _numpy_objects(folder: Path) -> None:
    np.save(folder / "vectors.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)


def _unknown(folder: Path) -> None:
    (folder / "notes.docx").write_text("mine")


def _git_folder(folder: Path) -> None:
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("[remote]")


def _foreign_code(folder: Path) -> None:
    (folder / "extra.py").write_text("import torch\n")


def _own_import(folder: Path) -> None:
    path = folder / "heads.py"
    path.write_text("from llmrec.data import catalogue\n" + path.read_text())


def _strange_import(folder: Path) -> None:
    path = folder / "heads.py"
    path.write_text("import faiss\n" + path.read_text())


def _nested_import(folder: Path) -> None:
    path = folder / "heads.py"
    path.write_text("from .a.b import c\n" + path.read_text())


def _broken_code(folder: Path) -> None:
    (folder / "heads.py").write_text("def f(:\n")


def _missing_code(folder: Path) -> None:
    (folder / "pooling.py").unlink()


def _secret(folder: Path) -> None:
    (folder / "README.md").write_text(f"# A card\n\nHF_TOKEN={TOKEN}\n")


def _named_secret(folder: Path) -> None:
    _edit(folder / "config.json", {"hub_token": "correct-horse-battery"})


def _private_key(folder: Path) -> None:
    (folder / "LICENSE").write_text("-----BEGIN OPENSSH " + "PRIVATE KEY-----\nabc\n")


def _posix_path(folder: Path) -> None:
    _edit(folder / "tokenizer_config.json", {"name_or_path": "/home/somebody/models/opt"})


def _windows_path(folder: Path) -> None:
    _edit(folder / "tokenizer_config.json", {"name_or_path": "C:\\Users\\somebody\\opt"})


def _path_in_prose(folder: Path) -> None:
    (folder / "README.md").write_text("# A card\nTrained in /home/somebody/project.\n")


def _link_out(folder: Path) -> None:
    (folder.parent / "secret.txt").write_text("secret")
    (folder / "LICENSE").symlink_to(folder.parent / "secret.txt")


def _link_to_folder_out(folder: Path) -> None:
    (folder.parent / "elsewhere").mkdir()
    (folder / "plots").symlink_to(folder.parent / "elsewhere")


def _no_auto_map(folder: Path) -> None:
    _edit(folder / "config.json", {"auto_map": None})


def _foreign_auto_map(folder: Path) -> None:
    _edit(folder / "config.json", {"auto_map": {"AutoConfig": "others/x--configuration_llmrec.LLMRecConfig",
                                                "AutoModel": "modeling_llmrec.LLMRecModel"}})  # fmt: skip


def _local_backbone(folder: Path) -> None:
    (folder.parent / "backbone").mkdir()
    _edit(folder / "config.json", {"backbone_name_or_path": str(folder.parent / "backbone")})


def _not_json(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text("{")


def _other_model(folder: Path) -> None:
    _edit(folder / "config.json", {"model_type": "bert"})


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _truncated_adapter(folder: Path) -> None:
    _cut(folder / "adapters" / "default" / "adapter_model.safetensors")


def _untrained_adapter(folder: Path) -> None:
    path = folder / "adapters" / "default" / "adapter_model.safetensors"
    save_file({k: torch.zeros_like(v) if ".lora_B." in k else v for k, v in load_file(path).items()}, path)


def _missing_adapter(folder: Path) -> None:
    (folder / "adapters" / "default" / "adapter_config.json").unlink()


def _extra_adapter(folder: Path) -> None:
    shutil.copytree(folder / "adapters" / "default", folder / "adapters" / "other")


def _root_adapter(folder: Path) -> None:
    shutil.copyfile(folder / "adapters" / "default" / "adapter_config.json", folder / "adapter_config.json")


def _weights_beside(folder: Path) -> None:
    save_file({"a": torch.zeros(1)}, folder / "model.safetensors")


def _no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _no_picture(folder: Path) -> None:
    (folder / "plots").mkdir()
    (folder / "plots" / "a.png").write_text("<svg/>")


def _no_results(folder: Path) -> None:
    (folder / "results.json").write_text("{}")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_pickle, "pytorch_model.bin: a pickle: it could run code"),
        (_hidden_pickle, "tokenizer.json: a pickle under the name of a tokenizer"),
        (_torch_archive, "README.md: a PyTorch archive of pickles"),
        (_numpy_objects, "vectors.npy: a NumPy file with pickled objects"),
        (_unknown, "notes.docx: not a file of a published model"),
        (_git_folder, ".git/config: not a file of a published model"),
        (_foreign_code, "extra.py: code that nothing in the folder uses"),
        (_own_import, "heads.py: imports llmrec, which only this project has"),
        (_strange_import, "heads.py: imports faiss, which a stranger may not have"),
        (_nested_import, "heads.py: line 1: the Hub's folders are flat"),
        (_broken_code, "heads.py: not Python: line 1"),
        (_missing_code, "pooling.py is missing, which modeling_llmrec.py needs"),
        (_secret, "README.md: line 3 holds a Hugging Face token (hf_x…)"),
        (_named_secret, "config.json: hub_token is filled in"),
        (_private_key, "LICENSE: line 1 holds a private key"),
        (_posix_path, "tokenizer_config.json: name_or_path holds the path '/home/somebody/models/opt'"),
        (_windows_path, "tokenizer_config.json: name_or_path holds the path 'C:"),
        (_path_in_prose, "README.md: line 2 holds the path '/home/somebody/project."),
        (_link_out, "LICENSE: a link that leads out of the folder"),
        (_link_to_folder_out, "plots: a link that leads out of the folder"),
        (_no_auto_map, "config.json has no auto_map"),
        (_foreign_auto_map, "AutoConfig takes its code from another repository"),
        (_local_backbone, "name its repository with --backbone org/name, or publish all weights with --merge"),
        (_not_json, "tokenizer_config.json: not JSON"),
        (_other_model, "config.json: model_type is 'bert', not 'llmrec'"),
        (_no_config, "config.json is missing: this is no model folder"),
        (_truncated_adapter, "adapters/default/adapter_model.safetensors is damaged: its header promises"),
        (_untrained_adapter, "adapters/default/adapter_model.safetensors: all its lora_B are zero"),
        (_missing_adapter, "adapters/default/adapter_config.json is missing"),
        (_extra_adapter, "adapters/other/adapter_model.safetensors: an adapter that config.json does not name"),
        (_root_adapter, "adapter_config.json: an adapter at the root of the folder"),
        (_weights_beside, "model.safetensors: full weights beside adapters"),
        (_no_tokenizer, "the tokenizer is missing"),
        (_no_picture, "plots/a.png: not a PNG image"),
        (_no_results, "results.json: no results.json of `llmrec evaluate`"),
    ],
)
def test_what_must_not_travel_is_refused(model: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(model)
    with pytest.raises(UnpublishableError) as error:
        check_folder(model)
    assert message in str(error.value)
    assert "xxxxxx" not in str(error.value)  # a secret is not repeated


@pytest.mark.parametrize("model", ["sharded"], indirect=True)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: _shard(f).unlink(), "which model.safetensors.index.json names"),
        (lambda f: _cut(_shard(f)), "is damaged: its header promises"),
        (lambda f: save_file({"a": torch.zeros(1)}, _shard(f)), "tensors that model.safetensors.index.json promises"),
        (lambda f: shutil.copyfile(_shard(f), f / "model-00009-of-00009.safetensors"), "does not name"),
        (lambda f: (f / "model.safetensors.index.json").unlink(), "part of a sharded model whose"),
        (lambda f: (f / "model.safetensors.index.json").write_text("[]"), "is not the index of a sharded model"),
    ],
)
def test_shards_must_be_those_of_the_index(model: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(model)
    with pytest.raises(UnpublishableError, match=message):
        check_folder(model)


@pytest.mark.parametrize("model", ["full"], indirect=True)
def test_weights_must_be_there(model: Path) -> None:
    (model / "model.safetensors").unlink()
    with pytest.raises(UnpublishableError, match="model.safetensors is missing: there are no weights"):
        check_folder(model)


def test_every_problem_is_listed_at_once(model: Path) -> None:
    for damage in (_pickle, _secret, _posix_path, _unknown, _missing_code):
        damage(model)
    with pytest.raises(UnpublishableError, match="cannot be published: 5 problems") as error:
        check_folder(model)
    assert len(error.value.problems) == 5
    # Nothing is refused by looking.
    assert {"unknown", "a pickle"} <= {entry.about for entry in inspect_folder(model)}


def test_what_a_run_saved_may_still_lack_what_is_added_on_the_way(model: Path) -> None:
    for damage in (_posix_path, _missing_code, _local_backbone):
        damage(model)
    check_folder(model, complete=False)
    _secret(model)
    with pytest.raises(UnpublishableError) as error:
        check_folder(model, complete=False)
    assert len(error.value.problems) == 1


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        check_folder(tmp_path / "nothing")


@pytest.mark.parametrize(
    "text",
    [
        f"x {TOKEN}", "ghp_" + "a" * 36, "github_pat_" + "a" * 30, "glpat-" + "a" * 20, "key sk-proj-" + "a" * 30,
        "AKIA" + "A" * 16, "AIza" + "a" * 35, "xoxb-" + "1" * 12, "-----BEGIN RSA " + "PRIVATE KEY-----",
        "postgres://user:password@host/db",
    ],
)  # fmt: skip
def test_secrets_are_found_and_not_repeated(text: str) -> None:
    (found,) = find_secrets(f"one\n{text}\n".encode())
    assert found.startswith("line 2 holds a") and text[-8:] not in found


@pytest.mark.parametrize(
    "text", ["hf_short", "desk-top and task-oriented-something-very-long", "https://host:80/a@b", "[MASK] sky-blue"]
)
def test_what_is_no_secret(text: str) -> None:
    assert find_secrets(text.encode()) == []


@pytest.mark.parametrize(
    "text",
    ["/home/me/x", "see /tmp/run-3/model for it", "--data=/mnt/data/x", "C:\\data\\x", "~/runs/x", "file:///etc/x"],
)
def test_paths_are_found_and_cut_down(text: str) -> None:
    assert find_paths(text)
    assert find_paths_in_json({"a": [text]}) == [f"a[0] {find_paths(text)[0].removeprefix('line 1 ')}"]
    assert find_paths_in_json(without_paths({"a": [text]})) == []


@pytest.mark.parametrize(
    "text",
    [
        "org/name",
        "https://huggingface.co/home/x",
        "24/7 kitchen/home/garden",
        "and/or",
        "runs/x/model",
        "</home/x>",
        "a: b",
    ],
)
def test_what_is_no_path(text: str) -> None:
    assert find_paths(text) == []
    assert find_paths_in_json([text]) == []
    assert without_paths(text) == text


def test_pickles_are_known_without_being_loaded(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return (print, ("this must not be printed",))

    for protocol in range(6):
        (tmp_path / "f").write_bytes(pickle.dumps(Bomb(), protocol=protocol))
        assert pickle_inside(tmp_path / "f") == "a pickle"
    np.savez(tmp_path / "f.npz", a=np.zeros(2))
    assert "NumPy archive" in str(pickle_inside(tmp_path / "f.npz"))
    np.save(tmp_path / "f.npy", np.zeros(2))
    assert pickle_inside(tmp_path / "f.npy") is None
    (tmp_path / "f").write_bytes(b"PK\x03\x04 cut off")
    assert "damaged" in str(pickle_inside(tmp_path / "f"))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.txt", "a")
    (tmp_path / "f").write_bytes(packed.getvalue())
    assert pickle_inside(tmp_path / "f") is None
    for text in (b"", b".", b"# A card\n", b'{"a": 1}', b"import torch\n"):
        (tmp_path / "f").write_bytes(text)
        assert pickle_inside(tmp_path / "f") is None


def _edit(path: Path, changes: dict) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _shard(folder: Path) -> Path:
    return sorted(folder.glob("model-*.safetensors"))[0]
