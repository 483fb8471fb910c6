"""A prepared folder as a data set on the Hub, and back.

In the repository the three splits are Parquet files, which `datasets.load_dataset(repo)` and the Hub's viewer read;
`pull_dataset` makes the same prepared folder of them again, with the same content hash.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from llmrec.data.assemble import TARGET_FEATURES, TRAIN, TRAIN_FEATURES
from llmrec.data.card import render_card
from llmrec.data.folders import check_output, new_folder
from llmrec.data.prepared import (
    CARD_FILE,
    CATALOGUE_FILE,
    HISTORIES_FOLDER,
    README_FILE,
    PreparedData,
    load_prepared,
)
from llmrec.hub.dataset_files import DATA_FOLDER, SPLITS, DatasetHubError, split_file, stage_dataset
from llmrec.hub.hub_errors import PublishError, explain

# Names of licences that say nothing about what others may do.
VAGUE = ("unknown", "other")


@dataclass(frozen=True)
class PushedDataset:
    """What was published, or would have been.

    Attributes:
        repo_id: where.
        files: (path in the repository, bytes) of each file.
        hash: content hash of the data.
        commit: id of the commit; None for a dry run.
        url: of the commit, or of the pull request.
    """

    repo_id: str
    files: list[tuple[str, int]]
    hash: str
    commit: str | None = None
    url: str | None = None


def push_dataset(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    license: str,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    dry_run: bool = False,
    language: Sequence[str] = (),
    tags: Sequence[str] = (),
    note: str | None = None,
    verify: bool = True,
    token: str | None = None,
    commit_message: str = "Prepared data",
) -> PushedDataset:
    """Publish a prepared folder as a data set, in one commit.

    Args:
        folder: as `llmrec prepare` wrote it.
        repo_id: repository of the data set; made if it does not exist.
        license: identifier of the licence of the data, such as cc-by-4.0. The interactions and titles are those of the
            sources, so it is for you to know whether they may be published.
        private: make the repository private.
        revision: branch to commit to; made if it does not exist.
        create_pr: open a pull request instead of changing the branch.
        dry_run: check everything, and upload nothing.
        language: codes of the languages of the titles.
        tags: further tags.
        note: where the data comes from and under which terms, in whole sentences.
        verify: fetch what was uploaded and compare its content hash.
        token: of the Hub; by default the one you are logged in with.
        commit_message: of the commit.

    Raises:
        DataError: the folder is not whole, or was changed.
        DatasetHubError: no licence that allows it, no access, no network, or what is on the Hub differs afterwards.
    """
    _check_terms(license, private, note)
    _check_name(repo_id)
    prepared = load_prepared(folder)
    with tempfile.TemporaryDirectory(prefix="llmrec-dataset-") as scratch:
        staged = Path(scratch)
        stage_dataset(prepared, staged, repo_id=repo_id, license=license, language=language, tags=tags, note=note)
        files = sorted(
            (path.relative_to(staged).as_posix(), path.stat().st_size) for path in staged.rglob("*") if path.is_file()
        )
        if dry_run:
            return PushedDataset(repo_id, files, prepared.hash)
        with _explained("pushing data to", repo_id):
            api = HfApi(token=token)
            api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
            if private and not api.repo_info(repo_id, repo_type="dataset").private:
                raise DatasetHubError(
                    f"{repo_id} exists and is public, so the data would be too: make it private first, or name another "
                    "repository"
                )
            if revision is not None and not create_pr:
                api.create_branch(repo_id, repo_type="dataset", branch=revision, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id,
                repo_type="dataset",
                folder_path=staged,
                revision=revision,
                create_pr=create_pr,
                commit_message=commit_message,
                # Shards of an earlier version would be read as rows of this one.
                delete_patterns=f"{DATA_FOLDER}/*",
            )
        pushed = PushedDataset(repo_id, files, prepared.hash, commit.oid, commit.pr_url or commit.commit_url)
        if verify:
            # Where nothing has changed there is no pull request either.
            at = commit.pr_revision or commit.oid
            with tempfile.TemporaryDirectory(prefix="llmrec-verify-") as elsewhere:
                # From the Hub and not from this machine's cache.
                again = pull_dataset(
                    repo_id, Path(elsewhere) / "data", revision=at, token=token, cache_dir=Path(elsewhere) / "cache"
                )
                if again.hash != prepared.hash:
                    raise DatasetHubError(
                        f"{repo_id} at {at} holds data with hash {again.hash[:16]}…, uploaded was "
                        f"{prepared.hash[:16]}…: the upload failed, push again"
                    )
    return pushed


def pull_dataset(
    repo_id: str,
    folder: str | os.PathLike[str],
    *,
    revision: str | None = None,
    overwrite: bool = False,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> PreparedData:
    """Make the prepared folder that was published again; it appears whole or not at all.

    Args:
        repo_id: repository of the data set.
        folder: where to.
        revision: branch, tag or commit.
        overwrite: replace a folder of prepared data.
        token, cache_dir: as for huggingface_hub.

    Returns:
        The data, loaded from `folder`, its contents checked against the hash in its card.

    Raises:
        DataError: the folder holds something else, or the contents are not those of the card.
        DatasetHubError: there is no such repository or revision, it was not written by `push_dataset`, or there is no
            network and the cache does not have it.
    """
    folder = Path(folder)
    _check_name(repo_id)
    check_output(folder, overwrite=overwrite, marker=CARD_FILE)

    hub = {"revision": revision, "token": token, "cache_dir": cache_dir}
    with new_folder(folder) as draft:
        shutil.copyfile(_fetch(repo_id, CARD_FILE, **hub), draft / CARD_FILE)
        shutil.copyfile(_fetch(repo_id, CATALOGUE_FILE, **hub), draft / CATALOGUE_FILE)
        histories = datasets.DatasetDict()
        for split in SPLITS:
            file = _fetch(repo_id, split_file(split), **hub)
            features = TRAIN_FEATURES if split == TRAIN else TARGET_FEATURES
            try:
                table = pq.read_table(file, columns=list(features))
                histories[split] = datasets.Dataset(table.cast(features.arrow_schema))
            except (pa.ArrowException, ValueError) as error:
                raise DatasetHubError(
                    f"{repo_id}: {split_file(split)} does not hold histories ({error}): ask its owner to push it again"
                ) from error
        histories.save_to_disk(str(draft / HISTORIES_FOLDER))
        prepared = load_prepared(draft)
        (draft / README_FILE).write_text(render_card(prepared.card), encoding="utf-8")
        del prepared, histories
    return load_prepared(folder)


def _check_terms(license: str, private: bool, note: str | None) -> None:
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license or ""):
        raise DatasetHubError(f"license {license!r} is no identifier such as cc-by-4.0, cc0-1.0 or other")
    if license in VAGUE and not private and not note:
        raise DatasetHubError(
            f"license {license!r} does not say whether others may use the data: say under which terms it is published "
            "(note, --note), or push it privately (--private)"
        )


def _check_name(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise DatasetHubError(f"{repo_id!r} is no name of a repository ({error}): give one such as org/name") from error


@contextmanager
def _explained(doing: str, repo_id: str) -> Iterator[None]:
    """Turn what the Hub's client raises into words about this data set."""
    try:
        with explain(doing, repo_id):
            yield
    except PublishError as error:
        raise DatasetHubError(str(error)) from error


def _fetch(repo_id: str, file: str, **hub: Any) -> Path:
    """Where a file of the repository lies on this machine, downloaded first if need be."""
    with _explained("fetching data from", repo_id):
        try:
            return Path(hf_hub_download(repo_id, file, repo_type="dataset", **hub))
        except LocalEntryNotFoundError as error:
            raise DatasetHubError(
                f"the Hub cannot be reached, and the cache does not hold {repo_id}: try again with a network"
            ) from error
        except EntryNotFoundError as error:
            raise DatasetHubError(f"{repo_id} has no {file}, so it was not published by `llmrec push-data`") from error
