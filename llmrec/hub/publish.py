"""A run, or a model folder, to the Hub: staged, looked through, uploaded in one commit, loaded back by a stranger."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from llmrec.hub.contents import Entry, check_folder
from llmrec.hub.file_kinds import kind_of
from llmrec.hub.hub_errors import LOGIN, PublishError, explain
from llmrec.hub.staging import (
    Source,
    add_card,
    add_index,
    add_results,
    find_source,
    local_backbone,
    local_backbone_files,
    stage,
)
from llmrec.hub.verify import Expected, expected_scores, verify
from modeling_llmrec import LLMRecConfig

# Kinds of files that a former form leaves behind in the repository. Others stay: they may be somebody's.
_REPLACED_KINDS = {"weights", "weights index", "adapter", "adapter configuration", "index"}
_ROOT_ADAPTER = {"adapter_config.json", "adapter_model.safetensors"}  # would load as the bare backbone
_WEIGHT_KINDS = {"weights", "adapter"}


@dataclass(frozen=True)
class PublishReport:
    """What was, or would be, published.

    Attributes:
        repo_id: the repository.
        form: "adapter", "merged" or "full".
        entries: the files, with what is inside.
        commit: the commit that holds them; None for a dry run.
        url: of that commit, or of the pull request.
        revision: branch or `refs/pr/<number>`.
        changed: whether there was anything new.
        deleted: files of the repository that went away in the same commit.
        tags: names given to the commit.
        difference: largest difference of a stranger's scores; None where it was not looked at.
    """

    repo_id: str
    form: str
    entries: list[Entry]
    commit: str | None = None
    url: str | None = None
    revision: str = "main"
    changed: bool = True
    deleted: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    difference: float | None = None

    @property
    def total_bytes(self) -> int:
        """Size of all files."""
        return sum(entry.size for entry in self.entries)

    def table(self) -> str:
        """The files: path, size, what is inside; and their total."""
        rows = [(entry.path, size_text(entry.size), entry.about) for entry in self.entries]
        rows.append((f"{len(self.entries)} files", size_text(self.total_bytes), f"form: {self.form}"))
        wide, narrow = max(len(row[0]) for row in rows), max(len(row[1]) for row in rows)
        lines = [f"{path:<{wide}}  {size:>{narrow}}  {about}" for path, size, about in rows]
        return "\n".join([*lines[:-1], "-" * max(map(len, lines)), lines[-1]])


def publish(
    source: str | os.PathLike[str],
    repo_id: str,
    *,
    form: str = "auto",
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    dry_run: bool = False,
    backbone: str | None = None,
    backbone_revision: str | None = None,
    also: Mapping[str, str | os.PathLike[str]] | None = None,
    name: str | None = None,
    default: str | None = None,
    tags: Sequence[str] = (),
    catalogue: str | os.PathLike[str] | None = None,
    verify: bool = True,
    commit_message: str | None = None,
    card: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> PublishReport:
    """Publish a model. Everything becomes visible in one commit, or nothing does.

    Args:
        source: a run folder, or a model folder.
        repo_id: such as `org/name`; made if it does not exist.
        form: "auto" (as saved), "adapter", "merged" or "full".
        private: make the repository private. One that is public already is refused, not changed.
        revision: branch to commit to; made if it does not exist.
        create_pr: propose a pull request instead.
        dry_run: stage and check, show the files, and ask no network for anything.
        backbone: Hub id of the backbone, where the model names a folder.
        backbone_revision: commit of the backbone to pin; its newest where the model has none.
        also: further adapters by name, each a run or model folder.
        name: of the model's own adapter.
        default: adapter that is active after loading.
        tags: names for the commit.
        catalogue: prepared folder or Parquet file of items to publish with their vectors.
        verify: load the model from the Hub in a fresh process afterwards, and compare scores.
        commit_message: says what changed.
        card: arguments of `write_model_card` (`license`, `datasets`, `language`, …).
        quiet: print nothing.

    Returns:
        What was published.

    Raises:
        UnpublishableError: the folder holds what must not travel, or cannot take this form.
        PublishError: no token, no permission, no network, … or the published model is not the local one.
        CardError, CombineError, OSError, ValueError: from making the card, combining adapters, loading the model.
    """
    say = (lambda *_: None) if quiet else print
    _check_names(repo_id, backbone, tags, create_pr)
    found = find_source(source)
    if not dry_run and get_token() is None:
        raise PublishError(f"publishing to {repo_id} needs a token: {LOGIN} (a token with write access)")
    with tempfile.TemporaryDirectory(dir=_scratch(found), prefix=".publish-") as beside:
        target = Path(beside) / repo_id.split("/")[-1]
        done = stage(found, target, form=form, backbone=backbone, also=also, name=name, default=default)
        api = HfApi()
        if not dry_run:
            _pin_backbone(api, found, target, backbone_revision)
        if catalogue is not None:
            add_index(found, target, catalogue, repo_id)
        add_results(found, target)
        add_card(found, target, repo_id, name, **(card or {}))
        report = PublishReport(repo_id, done, check_folder(target), revision=revision or "main", tags=tuple(tags))
        say(report.table())
        if dry_run:
            say(f"A dry run: nothing was sent. Without --dry-run these files go to {repo_id}.")
            return report
        expected = _expected(found, target, done, also, name, catalogue) if verify else None
        report = _upload(api, report, target, private, revision, create_pr, commit_message or f"Publish ({done})")
        for path in report.deleted:
            say(f"removed {path}")
        say(f"{'published' if report.changed else 'nothing had changed'}: {report.url}")
        if expected is not None and report.commit is not None:
            report = _verified(report, expected)
            say(
                f"loaded in a fresh process without this project: largest difference of a score {report.difference:.1e}"
            )
    return report


def size_text(size: int) -> str:
    """Bytes in the unit that suits them, decimal as on the Hub."""
    if size < 1000:
        return f"{size} B"
    return f"{size / 1e3:.1f} kB" if size < 1e6 else f"{size / 1e6:.2f} MB" if size < 1e9 else f"{size / 1e9:.2f} GB"


# -- before --------------------------------------------------------------------------------------------------------


def _check_names(repo_id: str, backbone: str | None, tags: Sequence[str], create_pr: bool) -> None:
    try:
        validate_repo_id(repo_id)
        if backbone is not None:
            validate_repo_id(backbone)
    except HFValidationError as error:
        raise PublishError(f"{error}: a repository is called org/name") from error
    for tag in tags:
        if not re.fullmatch(r"[\w][\w.-]*", tag) or re.fullmatch(r"[0-9a-f]{40}", tag):
            raise PublishError(f"{tag!r} is no name for a tag: use letters, digits, '.', '_' and '-', such as v1.0")
    if tags and create_pr:
        raise PublishError("--tag names a commit of a branch: merge the pull request first, then tag it")


def _scratch(source: Source) -> Path | None:
    """Beside the model, where links instead of copies of its weights are possible; elsewhere if that is read-only."""
    beside = source.model.resolve().parent
    return beside if os.access(beside, os.W_OK) else None


def _pin_backbone(api: HfApi, source: Source, target: Path, revision: str | None) -> None:
    """Write the commit of the backbone's repository into the configuration, once it is known to be the same one."""
    config = LLMRecConfig.from_pretrained(target)
    if not config.adapters or (config.backbone_revision and revision is None):
        return
    backbone = config.backbone_name_or_path
    with explain("asking for the backbone", backbone):
        info = api.model_info(backbone, revision=revision, files_metadata=True)
    remote = {file.rfilename: file for file in info.siblings or ()}
    for file in local_backbone_files(source.model):
        there = remote.get(file.name)
        if there is None or there.lfs is None:
            continue  # cut into other files, perhaps; the fingerprint is compared when it is loaded
        if there.size != file.stat().st_size or there.lfs.sha256 != _sha256(file):
            raise PublishError(
                f"{file.name} of {backbone} at {info.sha} is not the file that the adapters were trained over: name "
                "the right commit with --backbone-revision, or the right repository with --backbone"
            )
    config.backbone_revision = info.sha
    config.save_pretrained(target)


def _expected(
    source: Source,
    target: Path,
    form: str,
    also: Mapping[str, str | os.PathLike[str]] | None,
    name: str | None,
    catalogue: str | os.PathLike[str] | None,
) -> Expected:
    """Scores of what was saved, and not of what was staged: combining and merging are checked too."""
    titles = _titles(catalogue)
    config = LLMRecConfig.from_pretrained(source.model)
    active = str(config.default_adapter or next(iter(config.adapters or {}), ""))
    mine = expected_scores(
        source.model, titles=titles, only=active if form == "merged" else None, backbone=local_backbone(source.model)
    )
    if form != "adapter":
        return mine
    scores = {name or active: mine.scores[active]} if also or name else dict(mine.scores)
    for other, folder in (also or {}).items():
        model = find_source(folder).model
        theirs = expected_scores(model, titles=titles, backbone=local_backbone(model))
        scores[other] = theirs.scores[theirs.default_adapter or next(iter(theirs.scores))]
    return replace(mine, scores=scores, default_adapter=LLMRecConfig.from_pretrained(target).default_adapter)


def _titles(catalogue: str | os.PathLike[str] | None) -> list[str]:
    if catalogue is None:
        return []
    from llmrec.data.catalogue import Catalogue

    path = Path(catalogue)
    return list(Catalogue.load(path / "catalogue.parquet" if path.is_dir() else path).titles)


# -- the upload ----------------------------------------------------------------------------------------------------


def _upload(
    api: HfApi,
    report: PublishReport,
    folder: Path,
    private: bool,
    revision: str | None,
    create_pr: bool,
    message: str,
) -> PublishReport:
    repo_id = report.repo_id
    with explain("creating the repository", repo_id):
        _create_repo(api, repo_id, private)
        if revision is not None and revision != "main" and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
    with explain("looking at", repo_id):
        head = api.model_info(repo_id, revision=revision).sha
        present = {
            file.path: file for file in api.list_repo_tree(repo_id, recursive=True, revision=head) if _is_file(file)
        }
        taken = {tag.name: tag.target_commit for tag in api.list_repo_refs(repo_id).tags} if report.tags else {}
    deleted = _stale(report.entries, present, folder)
    operations: list[Any] = [CommitOperationDelete(path) for path in deleted]
    operations += [CommitOperationAdd(entry.path, folder / entry.path) for entry in report.entries]
    for tag in report.tags:
        # Before anything is sent. A rerun finds its own tag, and that is fine.
        same = taken.get(tag) == head and not deleted and _all_same(report.entries, present, folder)
        if tag in taken and not same:
            raise PublishError(f"{repo_id} has a tag {tag} already, at {taken[tag][:10]}: choose another name")
    with explain("uploading to", repo_id):
        info = api.create_commit(
            repo_id,
            operations,
            commit_message=message,
            revision=revision,
            create_pr=create_pr,
            # Refused if somebody committed since `head`: what is deleted was chosen by its files.
            parent_commit=head,
        )
    changed = info.oid != head
    for tag in report.tags:
        with explain(f"tagging {info.oid[:10]} of", repo_id):
            api.create_tag(repo_id, tag=tag, revision=info.oid, exist_ok=True)
    return replace(
        report,
        commit=info.oid,
        url=info.pr_url or str(info.commit_url),
        revision=info.pr_revision or revision or "main",
        changed=changed,
        deleted=tuple(deleted) if changed else (),
    )


def _create_repo(api: HfApi, repo_id: str, private: bool) -> None:
    try:
        present = api.model_info(repo_id)
    except RepositoryNotFoundError:
        api.create_repo(repo_id, private=private, exist_ok=True)
        return
    if private and not present.private:
        raise PublishError(
            f"{repo_id} exists and is public, so --private cannot keep the model secret: make it private in its "
            "settings, or choose another name"
        )


def _is_file(entry: Any) -> bool:
    return hasattr(entry, "blob_id")


def _stale(entries: Iterable[Entry], present: Mapping[str, Any], folder: Path) -> list[str]:
    """Files of a former form or of former weights, which would be read, or be wrong, beside the new ones."""
    names = {entry.path for entry in entries}
    stale = [
        path for path in present if path not in names and (kind_of(path) in _REPLACED_KINDS or path in _ROOT_ADAPTER)
    ]
    weights = [entry for entry in entries if entry.kind in _WEIGHT_KINDS]
    lost_weights = any(kind_of(path) in _WEIGHT_KINDS for path in stale)
    if not lost_weights and any(kind_of(path) == "index" for path in stale):
        if _all_same(weights, present, folder):
            stale = [path for path in stale if kind_of(path) != "index"]  # its vectors are still this model's
    return sorted(stale)


def _all_same(entries: Iterable[Entry], present: Mapping[str, Any], folder: Path) -> bool:
    return all(_same(present.get(entry.path), folder / entry.path) for entry in entries)


def _same(remote: Any, file: Path) -> bool:
    """Whether a file of the repository is this one: large ones are known by their sha256, others as git knows them."""
    if remote is None or remote.size != file.stat().st_size:
        return False
    if remote.lfs is not None:
        return bool(remote.lfs.sha256 == _sha256(file))
    data = file.read_bytes()
    return bool(remote.blob_id == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest())


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _verified(report: PublishReport, expected: Expected) -> PublishReport:
    assert report.commit is not None
    try:
        return replace(report, difference=verify(report.repo_id, report.commit, expected))
    except PublishError as error:
        raise PublishError(
            f"{error}\nThe commit stands at {report.url}: publish a corrected model over it, or revert it there."
        ) from error
