"""The stand-in for the Hub answers the real client as the Hub does, as far as the other tests rely on it."""

from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub.loopback_hub import LoopbackHub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "up" / "a" / "b").mkdir(parents=True)
    (tmp_path / "up" / "a" / "b" / "w.safetensors").write_bytes(bytes(range(256)) * 1000)
    (tmp_path / "up" / "README.md").write_text("---\nlicense: mit\ntags:\n- x\n---\n# A card\n")
    (tmp_path / "up" / "empty.txt").write_text("")
    return tmp_path / "up"


@pytest.mark.parametrize("lfs", [True, False])
@pytest.mark.parametrize("kind", ["model", "dataset", "space"])
def test_what_goes_up_comes_down(
    hub: LoopbackHub, client: HfApi, folder: Path, tmp_path: Path, kind: str, lfs: bool
) -> None:
    hub.lfs = lfs
    sdk = {"space_sdk": "gradio"} if kind == "space" else {}
    for _ in range(2):
        url = client.create_repo("org/x", repo_type=kind, exist_ok=True, **sdk)
    assert url.repo_id == "org/x" and url.repo_type == kind
    first = client.upload_folder(repo_id="org/x", folder_path=folder, repo_type=kind)
    second = client.upload_folder(repo_id="org/x", folder_path=folder, repo_type=kind)
    assert first.oid == second.oid  # no empty commit
    assert any("PUT /lfs-upload/" in line for line in hub.requests) is lfs
    down = snapshot_download(
        "org/x", repo_type=kind, local_dir=tmp_path / "down", endpoint=hub.endpoint, token=hub.token
    )
    sent = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert {name: (Path(down) / name).read_bytes() for name in sent} == sent
    assert client.list_repo_files("org/x", repo_type=kind) == [".gitattributes", *sorted(sent)]


def test_branches_tags_and_pull_requests(hub: LoopbackHub, client: HfApi, folder: Path) -> None:
    client.create_repo("org/x")
    first = client.upload_folder(repo_id="org/x", folder_path=folder).oid
    client.create_tag("org/x", tag="v1")
    client.create_branch("org/x", branch="dev")
    dev = client.create_commit(
        "org/x", [CommitOperationAdd("n.txt", b"n"), CommitOperationDelete("empty.txt")],
        commit_message="dev", revision="dev",
    )  # fmt: skip
    pull = client.create_commit("org/x", [CommitOperationAdd("p.txt", b"p")], commit_message="p", create_pr=True)
    assert (pull.pr_revision, pull.pr_num) == ("refs/pr/1", 1)
    refs = client.list_repo_refs("org/x", include_pull_requests=True)
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": first, "dev": dev.oid}
    assert {ref.name: ref.target_commit for ref in refs.tags} == {"v1": first}
    assert [ref.ref for ref in refs.pull_requests] == ["refs/pr/1"]
    assert "n.txt" in client.list_repo_files("org/x", revision="dev")
    assert "p.txt" in client.list_repo_files("org/x", revision="refs/pr/1")
    for revision in ("main", "v1", first):
        assert "empty.txt" in client.list_repo_files("org/x", revision=revision)
    # Cut from main at the time: old revisions stay readable.
    assert [commit.commit_id for commit in client.list_repo_commits("org/x")][0] == first
    with pytest.raises(HfHubHTTPError) as error:
        client.create_commit(
            "org/x", [CommitOperationAdd("q.txt", b"q")], commit_message="q", revision="dev", parent_commit=first
        )
    assert error.value.response.status_code == 412


def test_who_may_see_and_write_what(hub: LoopbackHub, client: HfApi) -> None:
    hub.seed("org/private", {"a.txt": b"a"}, private=True)
    hub.seed("org/public", {"a.txt": b"a"})
    hub.seed("org/gated", {"config.json": b"{}"}, gated=True)
    assert client.whoami()["name"] == "tester"
    assert client.model_info("org/private").private
    for token in (False, hub.reading_token):
        with pytest.raises(RepositoryNotFoundError):
            client.model_info("org/private", token=token)
        assert [model.id for model in client.list_models(token=token)] == ["org/public", "org/gated"]
        with pytest.raises(GatedRepoError):
            client.hf_hub_download("org/gated", "config.json", token=token, local_dir=hub.blob_path("x"))
    with pytest.raises(HfHubHTTPError, match="403"):
        client.upload_file(repo_id="org/public", path_in_repo="b", path_or_fileobj=b"b", token=hub.reading_token)
    with pytest.raises(HfHubHTTPError, match="403"):
        client.create_repo("others/x")
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        client.whoami(token="hf_wrong")
    with pytest.raises(ValueError, match="Invalid metadata"):
        client.upload_file(repo_id="org/public", path_in_repo="README.md", path_or_fileobj=b"---\na: [\n---\n")


def test_what_is_not_there_is_said_in_the_clients_words(hub: LoopbackHub, client: HfApi, tmp_path: Path) -> None:
    hub.seed("org/x", {"a.txt": b"a"})
    with pytest.raises(RepositoryNotFoundError):
        client.model_info("org/y")
    with pytest.raises(RevisionNotFoundError):
        client.model_info("org/x", revision="gone")
    with pytest.raises(RemoteEntryNotFoundError):
        client.hf_hub_download("org/x", "b.txt", local_dir=tmp_path)


def test_ranges(hub: LoopbackHub, client: HfApi) -> None:
    from huggingface_hub.utils import get_session

    hub.seed("org/x", {"a.bin": bytes(range(100))})
    url = f"{hub.endpoint}/org/x/resolve/main/a.bin"
    for asked, expected in (("bytes=10-19", (10, 20)), ("bytes=90-", (90, 100)), ("bytes=-5", (95, 100))):
        answer = get_session().get(url, headers={"Range": asked})
        assert answer.status_code == 206 and answer.content == bytes(range(*expected))
    assert get_session().get(url, headers={"Range": "bytes=200-"}).status_code == 416


def test_faults(hub: LoopbackHub, client: HfApi) -> None:
    hub.seed("org/x", {"a.txt": b"a"})
    hub.error_once(503, "GET /api/models/org/x")
    with pytest.raises(HfHubHTTPError, match="503"):
        client.model_info("org/x")
    assert client.model_info("org/x").id == "org/x"
    hub.fail_after(1)
    client.model_info("org/x")
    with pytest.raises(Exception, match="[Dd]isconnected|reset"):
        client.model_info("org/x")
    hub.recover()
    with hub.offline(), pytest.raises(Exception, match="[Rr]efused|[Dd]isconnected"):
        client.model_info("org/x")
    hub.drop_upload("/commit/", after=10)
    with pytest.raises(Exception, match="[Dd]isconnected|reset|[Pp]ipe"):
        client.upload_file(repo_id="org/x", path_in_repo="b.txt", path_or_fileobj=b"b" * 10_000)
    assert client.list_repo_files("org/x") == [".gitattributes", "a.txt"]
    hub.refuse_writes = True
    with pytest.raises(HfHubHTTPError, match="403"):
        client.upload_file(repo_id="org/x", path_in_repo="b.txt", path_or_fileobj=b"b")
