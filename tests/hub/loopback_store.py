"""What the stand-in for the Hub keeps: files, commits, repositories."""

import re
from dataclasses import dataclass, field
from urllib.parse import unquote


@dataclass(frozen=True)
class Blob:
    """The content of one file; the bytes lie in the Hub's folder under their sha256."""

    sha256: str
    git: str  # what git would call it: sha1 of "blob <size>\0<content>"
    size: int
    lfs: bool

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.git


@dataclass(frozen=True)
class Commit:
    """A tree of files with its ancestors."""

    oid: str
    parent: str | None
    title: str
    date: str
    files: dict[str, Blob]


@dataclass
class Repo:
    """A repository of one kind."""

    kind: str
    id: str
    private: bool = False
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[int, str] = field(default_factory=dict)

    def resolve(self, revision: str) -> Commit | None:
        """The commit that a branch, tag, `refs/…` name or hash stands for."""
        revision = unquote(revision)
        pull = re.fullmatch(r"refs/pr/(\d+)", revision)
        if pull:
            return self.commits.get(self.pulls.get(int(pull[1]), ""))
        name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        oid = self.branches.get(name) or self.tags.get(name) or revision
        return self.commits.get(oid)
