"""`push_to_hub.py`: what is sent, when nothing is, and what it says when it cannot."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import HfApi

from llmrec.data.catalogue import Catalogue
from llmrec.hub import publish as publish_module
from llmrec.hub.contents import UnpublishableError
from llmrec.hub.hub_errors import PublishError
from llmrec.hub.publish import PublishReport, publish, size_text
from tests.hub.clients import run_client, succeeded
from tests.hub.loopback_hub import LoopbackHub, hub_environment
from tests.hub.made_up_run import make_run
from tests.hub.saved_models import save_as
from tests.modeling.families import backbone_folder

pytestmark = pytest.mark.slow  # together they take most of a minute

REPO = "org/llmrec-llama"


@pytest.fixture(scope="module")
def made(minilm: str, shared_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A Llama backbone, and models over it: "adapter", "books" (another adapter), "multi", "full", and a run."""
    root = tmp_path_factory.mktemp("publish")
    folders = {"backbone": Path(backbone_folder("llama", minilm, shared_weights, root))}
    for form in ("adapter", "multi", "full"):
        folders[form] = root / form
        save_as("llama", form, str(folders["backbone"]), folders[form])
    folders["books"] = root / "books"
    save_as("llama", "adapter", str(folders["backbone"]), folders["books"], seed=7)
    folders["run"] = make_run(root / "run")
    shutil.rmtree(folders["run"] / "model")
    shutil.copytree(folders["adapter"], folders["run"] / "model")
    return folders


@pytest.fixture
def llama_hub(hub: LoopbackHub, client: HfApi, made: dict[str, Path]) -> LoopbackHub:
    """The stand-in, with the backbone in its own repository."""
    hub.seed("backbones/llama", made["backbone"])
    hub.requests.clear()
    return hub


def push(source: Path, repo_id: str = REPO, **options: Any) -> PublishReport:
    return publish(source, repo_id, **{"verify": False, "quiet": True, **options})


def commits(hub: LoopbackHub, revision: str = "main") -> int:
    """How many commits there are, the empty repository's first one left out."""
    return len(hub.history(REPO, revision)) - 1


def test_a_dry_run_lists_everything_and_asks_nobody(
    llama_hub: LoopbackHub, made: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    report = push(made["run"], dry_run=True, quiet=False)
    assert llama_hub.requests == []
    assert (report.commit, report.form) == (None, "adapter")
    out = capsys.readouterr().out
    for entry in report.entries:
        assert f"{entry.path} " in out and size_text(entry.size) in out and entry.about in out
    assert f"{len(report.entries)} files" in out and size_text(report.total_bytes) in out
    assert "nothing was sent" in out
    assert not list(made["run"].glob(".publish-*"))


def test_a_run_is_published_in_one_commit_with_card_results_and_plots(
    llama_hub: LoopbackHub, made: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    report = push(made["run"], quiet=False)
    files = llama_hub.files(REPO)
    assert commits(llama_hub) == 1 and report.commit == llama_hub.history(REPO)[0].oid
    assert set(files) == {entry.path for entry in report.entries} | {".gitattributes"}
    assert {entry.path: entry.size for entry in report.entries} == {
        path: len(data) for path, data in files.items() if path != ".gitattributes"
    }
    assert b"base_model: backbones/llama" in files["README.md"]
    assert any(path.startswith("plots/") for path in files)
    # The command of the run named folders of its machine.
    command = json.loads(files["results.json"])["command"]
    assert "shop" in command and not any("/somewhere" in part or "C:" in part for part in command)
    assert f"published: {report.url}" in capsys.readouterr().out


def test_the_backbone_is_pinned_to_its_commit(llama_hub: LoopbackHub, made: dict[str, Path]) -> None:
    push(made["adapter"])
    config = json.loads(llama_hub.files(REPO)["config.json"])
    assert config["backbone_name_or_path"] == "backbones/llama"
    assert config["backbone_revision"] == llama_hub.history("backbones/llama")[0].oid
    adapter = json.loads(llama_hub.files(REPO)["adapters/default/adapter_config.json"])
    assert adapter["base_model_name_or_path"] == "backbones/llama"
    # One that is pinned stays so.
    first = config["backbone_revision"]
    llama_hub.seed("backbones/llama", {"NOTES.md": b"a later commit"})
    model = made["adapter"].with_name("pinned")
    shutil.copytree(made["adapter"], model)
    (model / "config.json").write_text(json.dumps(config))
    push(model)
    assert json.loads(llama_hub.files(REPO)["config.json"])["backbone_revision"] == first


def test_a_backbone_with_a_path_for_a_name_needs_one(
    llama_hub: LoopbackHub, made: dict[str, Path], tmp_path: Path
) -> None:
    model = shutil.copytree(made["adapter"], tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config |= {"backbone_name_or_path": str(made["backbone"]), "backbone_fingerprint": None}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnpublishableError, match="--backbone org/name.*--merge"):
        push(model)
    assert llama_hub.requests == []
    push(model, backbone="backbones/llama")
    published = json.loads(llama_hub.files(REPO)["config.json"])
    assert published["backbone_name_or_path"] == "backbones/llama"
    # From the folder that the adapters were trained over.
    expected = json.loads((made["adapter"] / "config.json").read_text())["backbone_fingerprint"]
    assert published["backbone_fingerprint"] == expected is not None
    # Another model of the same name is found out before anything is sent.
    weights = bytearray((made["backbone"] / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    llama_hub.seed("backbones/llama", {"model.safetensors": bytes(weights)})
    with pytest.raises(PublishError, match="is not the file that the adapters were trained over"):
        push(model, backbone="backbones/llama")
    push(model, backbone="backbones/llama", backbone_revision=published["backbone_revision"])


def test_nothing_new_makes_no_commit(llama_hub: LoopbackHub, made: dict[str, Path]) -> None:
    first, again = push(made["run"]), push(made["run"])
    assert first.changed and not again.changed
    assert (again.commit, commits(llama_hub)) == (first.commit, 1)


def test_another_form_takes_the_place_of_the_former_in_the_same_commit(
    llama_hub: LoopbackHub, made: dict[str, Path]
) -> None:
    push(made["full"])
    llama_hub.seed(REPO, {"my-notes.txt": b"mine", "adapter_config.json": b"{}", "examples/x.py": b"1"})
    report = push(made["multi"])
    assert report.deleted == ("adapter_config.json", "model.safetensors")
    files = llama_hub.files(REPO)
    assert {"my-notes.txt", "examples/x.py", "adapters/books/adapter_model.safetensors"} <= set(files)
    assert not {"adapter_config.json", "model.safetensors"} & set(files)
    # Between the two there is no commit with both, or neither.
    assert commits(llama_hub) == 3
    report = push(made["full"])
    assert len(report.deleted) == 4 and all(path.startswith("adapters/") for path in report.deleted)


def test_an_index_goes_away_with_its_weights_only(llama_hub: LoopbackHub, made: dict[str, Path]) -> None:
    push(made["adapter"])
    llama_hub.seed(REPO, {"index/index.json": b"{}", "index/catalogue.parquet": b"PAR1"})
    assert push(made["adapter"], card={"license": "mit"}).deleted == ()
    assert push(made["books"]).deleted == ("index/catalogue.parquet", "index/index.json")


def test_several_adapters_come_together(llama_hub: LoopbackHub, made: dict[str, Path]) -> None:
    report = push(made["run"], name="groceries", also={"books": made["books"]}, default="books")
    assert report.form == "adapter"
    config = json.loads(llama_hub.files(REPO)["config.json"])
    assert config["adapters"] == {"groceries": "adapters/groceries", "books": "adapters/books"}
    assert config["default_adapter"] == "books"
    assert "those of the adapter `groceries`" in llama_hub.files(REPO)["README.md"].decode()
    for name, source in (("groceries", "adapter"), ("books", "books")):
        weights = (made[source] / "adapters" / "default" / "adapter_model.safetensors").read_bytes()
        assert llama_hub.files(REPO)[f"adapters/{name}/adapter_model.safetensors"] == weights
    with pytest.raises(UnpublishableError, match="several adapters already"):
        push(made["multi"], also={"books": made["books"]})
    with pytest.raises(UnpublishableError, match="two adapters are called 'default'"):
        push(made["adapter"], also={"default": made["books"]})
    with pytest.raises(UnpublishableError, match="its adapters are books, groceries"):
        push(made["multi"], default="music")


def test_branches_tags_and_pull_requests(llama_hub: LoopbackHub, made: dict[str, Path]) -> None:
    first = push(made["adapter"], tags=["v1", "v1.0"])
    assert llama_hub.repos["model", REPO].tags == {"v1": first.commit, "v1.0": first.commit}
    push(made["adapter"], tags=["v1"])  # a rerun finds its own
    branch = push(made["books"], revision="experiment")
    assert branch.revision == "experiment" and branch.commit == llama_hub.history(REPO, "experiment")[0].oid
    with pytest.raises(PublishError, match="has a tag v1 already"):
        push(made["books"], tags=["v1"])
    pull = push(made["full"], create_pr=True)
    assert pull.revision == "refs/pr/1" and str(pull.url).endswith("/discussions/1")
    assert "model.safetensors" in llama_hub.files(REPO, "refs/pr/1")
    assert llama_hub.history(REPO)[0].oid == first.commit  # main is as it was
    with pytest.raises(PublishError, match="merge the pull request first"):
        push(made["full"], create_pr=True, tags=["v2"])
    with pytest.raises(PublishError, match="is no name for a tag"):
        push(made["full"], tags=["two words"])


def test_private_repositories(llama_hub: LoopbackHub, made: dict[str, Path]) -> None:
    push(made["adapter"], private=True)
    assert llama_hub.repos["model", REPO].private
    push(made["books"], private=True)
    llama_hub.seed("org/public", {"a.txt": b"a"})
    with pytest.raises(PublishError, match="exists and is public"):
        push(made["adapter"], "org/public", private=True)
    assert set(llama_hub.files("org/public")) == {".gitattributes", "a.txt"}


def test_an_interrupted_upload_leaves_nothing_and_the_rerun_completes(
    llama_hub: LoopbackHub, made: dict[str, Path]
) -> None:
    llama_hub.drop_upload("/commit/", after=2000)
    with pytest.raises(PublishError, match="nothing was published.*run it again"):
        push(made["full"])
    assert set(llama_hub.files(REPO)) == {".gitattributes"} and commits(llama_hub) == 0
    sent = [line for line in llama_hub.requests if line.startswith("PUT /lfs-upload")]
    assert sent
    llama_hub.requests.clear()
    report = push(made["full"])
    assert commits(llama_hub) == 1 and report.changed
    assert "model.safetensors" in llama_hub.files(REPO)
    # What had arrived was not sent again.
    assert not [line for line in llama_hub.requests if line.startswith("PUT /lfs-upload")]


def test_a_server_that_stumbles_once(llama_hub: LoopbackHub, made: dict[str, Path]) -> None:
    llama_hub.error_once(503, "PUT /lfs-upload")  # the client repeats it by itself
    push(made["adapter"])
    llama_hub.error_once(500, f"POST /api/models/{REPO}/commit")
    with pytest.raises(PublishError, match="status 500.*nothing was published: run it again later"):
        push(made["books"])
    assert commits(llama_hub) == 1
    push(made["books"])
    assert commits(llama_hub) == 2


def test_somebody_else_commits_meanwhile(
    llama_hub: LoopbackHub, made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    push(made["adapter"])
    real = HfApi.create_commit

    def late(self: HfApi, *arguments: Any, **options: Any) -> Any:
        llama_hub.seed(REPO, {"notes.txt": b"theirs"})
        return real(self, *arguments, **options)

    monkeypatch.setattr(HfApi, "create_commit", late)
    with pytest.raises(PublishError, match="somebody else changed it meanwhile"):
        push(made["full"])
    assert "model.safetensors" not in llama_hub.files(REPO)


def test_who_may_not_publish_is_told_what_to_do(
    llama_hub: LoopbackHub, made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PublishError, match="write access.*--create-pr"):
        push(made["adapter"], "others/model")
    llama_hub.seed("org/theirs", {"README.md": b"---\nlicense: mit\n---\n"})
    monkeypatch.setenv("HF_TOKEN", llama_hub.reading_token)
    with pytest.raises(PublishError, match="write access.*--create-pr"):
        push(made["full"], "org/theirs")
    assert push(made["full"], "org/theirs", create_pr=True).revision == "refs/pr/1"
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    with pytest.raises(PublishError, match="token is not valid.*hf auth login"):
        push(made["full"])
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PublishError, match="needs a token.*hf auth login"):
        push(made["full"])


def test_no_network(llama_hub: LoopbackHub, made: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    with llama_hub.offline(), pytest.raises(PublishError, match="cannot be reached.*check the network"):
        push(made["full"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PublishError, match="HF_HUB_OFFLINE is set.*unset it"):
        push(made["full"])


def test_a_backbone_that_is_not_on_the_hub(llama_hub: LoopbackHub, made: dict[str, Path]) -> None:
    with pytest.raises(PublishError, match="backbone backbones/elsewhere failed: there is no such repository"):
        push(made["adapter"], backbone="backbones/elsewhere")
    assert ("model", REPO) not in llama_hub.repos


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("full", {"form": "adapter"}, "no adapters: leave out --adapter-only"),
        ("full", {"also": {"x": "y"}}, "are for adapters"),
        ("nowhere", {}, "there is no such folder"),
        ("backbone", {}, "model_type is 'llama'"),
        ("empty", {}, "neither a run"),
        ("unfinished", {}, "unfinished: finish it with --resume true"),
        ("adapter", {"backbone": "/home/me/llama"}, "a repository is called org/name"),
    ],
)
def test_what_cannot_be_published(
    llama_hub: LoopbackHub, made: dict[str, Path], tmp_path: Path, source: str, options: dict, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.yaml").write_text("seed: 42\n")
    shutil.copytree(made["adapter"], tmp_path / "unfinished" / "model")
    with pytest.raises((UnpublishableError, PublishError), match=message):
        push(made.get(source, tmp_path / source), **options)
    assert llama_hub.requests == []


def test_a_folder_with_a_secret_is_not_sent(llama_hub: LoopbackHub, made: dict[str, Path], tmp_path: Path) -> None:
    model = shutil.copytree(made["adapter"], tmp_path / "model")
    (model / "LICENSE").write_text("hf_" + "x" * 34)
    (model / "optimizer.pt").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(UnpublishableError, match="2 problems"):
        push(model)
    assert llama_hub.requests == []


# -- the whole way, in processes of their own ----------------------------------------------------------------------


def test_the_command_publishes_verifies_and_explains(hub: LoopbackHub, made: dict[str, Path], tmp_path: Path) -> None:
    hub.seed("backbones/llama", made["backbone"])
    broken = shutil.copytree(made["adapter"], tmp_path / "broken")
    (broken / "optimizer.pt").write_bytes(b"\x80\x04K\x01.")
    run, full = str(made["run"]), str(made["full"])

    def command(*arguments: str, **environment: str) -> dict:
        return {"do": "command", "arguments": arguments, "environment": environment}

    titles = tmp_path / "prepared"
    _catalogue(titles)
    jobs = {
        "several": command(
            run, REPO, "--name", "a", "--also", f"books={made['books']}", "--default", "books", "--tag", "v1",
            "--license", "mit", "--catalogue", str(titles),
        ),
        "merged": command(run, "org/merged", "--merge"),
        "nothing new": command(full, "org/full", "--no-verify"),
        "again": command(full, "org/full", "--no-verify"),
        "no token": command(full, "org/full", HF_TOKEN=""),
        "others": command(full, "others/full"),
        "no such run": command(str(tmp_path / "nothing"), "org/full"),
        "a pickle": command(str(broken), "org/broken"),
        "dry": command(run, "org/dry", "--dry-run", "--merge"),
    }  # fmt: skip
    home = hub_environment(hub, tmp_path / "home")
    answers = dict(zip(jobs, succeeded(run_client("publisher", list(jobs.values()), home)), strict=True))
    for name in ("several", "merged"):
        answer = answers[name]
        assert answer["status"] == 0, answer["err"]
        assert "largest difference of a score" in answer["out"]
        assert float(answer["out"].split()[-1]) < 1e-5
        assert f"published: {hub.endpoint}/org/" in answer["out"]
    assert hub.repos["model", REPO].tags == {"v1": hub.history(REPO)[0].oid}
    assert {"index/index.json", "index/item_embeddings.safetensors"} <= set(hub.files(REPO))
    assert "model.safetensors" in hub.files("org/merged")
    assert "nothing had changed" in answers["again"]["out"]
    assert ("model", "org/dry") not in hub.repos and ("model", "org/broken") not in hub.repos
    for name, message in (
        ("no token", "hf auth login"),
        ("others", "write access"),
        ("no such run", "there is no such folder"),
        ("a pickle", "optimizer.pt: a pickle"),
    ):
        assert answers[name]["status"] == 1
        assert answers[name]["err"].splitlines()[-1].startswith("push_to_hub.py: error:"), answers[name]["err"]
        assert message in answers[name]["err"] and "Traceback" not in answers[name]["err"]


def test_a_model_that_others_load_differently_is_found_out(
    llama_hub: LoopbackHub, made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = publish_module.expected_scores

    def another(*arguments: Any, **options: Any) -> Any:
        expected = real(*arguments, **options)
        expected.scores[""][0, 0] += 1e-3
        return expected

    monkeypatch.setattr(publish_module, "expected_scores", another)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    for name, value in hub_environment(llama_hub, tmp_path).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(PublishError, match="in a fresh process than the local model: they differ by up to") as error:
        push(made["full"], verify=True)
    commit = llama_hub.history(REPO)[0].oid
    assert f"The commit stands at {llama_hub.endpoint}/{REPO}/commit/{commit}" in str(error.value)


def _catalogue(folder: Path) -> None:
    titles = [f"{word} {number}" for word in ("Guitar", "Kettle", "Canvas") for number in range(8)]
    ids = [f"i{n}" for n in range(len(titles))]
    catalogue = Catalogue(ids, titles, ["Shop"] * len(titles), np.zeros(len(titles), dtype=np.int64))
    folder.mkdir()
    catalogue.save(folder / "catalogue.parquet")
