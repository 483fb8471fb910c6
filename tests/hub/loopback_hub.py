"""A stand-in for the Hub: as much of its protocol, on 127.0.0.1, as huggingface_hub needs. It is not the Hub.

Models, datasets and Spaces; public, private and gated repositories; branches, tags, pull requests; one commit per
upload, each with an id of its own, and every old revision readable. Files come back as they went in, with the headers
that the client's cache lives on. What the Hub does beyond that (Xet, CDN, pagination, search, scanning) it does not.

By hand: `python -m tests.hub.loopback_hub` prints the variables to set and serves until interrupted.
"""

import base64
import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

KINDS = ("model", "dataset", "space")
LFS_SUFFIXES = (".safetensors", ".parquet", ".arrow", ".png", ".jpg", ".onnx", ".bin", ".xml", ".npy", ".pkl", ".zip")
LFS_BYTES = 10 << 20
HASH = re.compile(r"[0-9a-f]{40}")
CHUNK = 1 << 16


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


class LoopbackHub:
    """The server, with its repositories and its faults. A context manager.

    Attributes:
        endpoint: `http://127.0.0.1:<port>`, the value of HF_ENDPOINT.
        token: may read and write under the user `tester` and the organisation `org`.
        reading_token: of another user, who may read what is public.
        repos: (kind, id) to `Repo`.
        requests: "METHOD path" of everything that was asked, in order.
        lfs: whether weights and other binaries go up through LFS, as on the Hub, or inside the commit.
    """

    def __init__(self, *, lfs: bool = True, port: int = 0) -> None:
        self.lfs = lfs
        self.token, self.reading_token = "hf_" + "a" * 34, "hf_" + "b" * 34
        self.users = {self.token: ("tester", ["org"]), self.reading_token: ("reader", [])}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.requests: list[str] = []
        self.lock = threading.RLock()
        self._port = port
        self._server: ThreadingHTTPServer | None = None
        self._scratch = tempfile.TemporaryDirectory(prefix="loopback-hub-")
        self._open: set[socket.socket] = set()
        self.recover()

    # -- life ------------------------------------------------------------------------------------------------------

    def __enter__(self) -> "LoopbackHub":
        self._listen()
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        self._scratch.cleanup()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def _listen(self) -> None:
        server = ThreadingHTTPServer(("127.0.0.1", self._port), _Handler)
        server.daemon_threads = True
        server.hub = self  # type: ignore[attr-defined]
        self._server, self._port = server, server.server_address[1]
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()

    def _close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    # -- faults ----------------------------------------------------------------------------------------------------

    def recover(self) -> None:
        """Switch every fault off."""
        self._left: int | None = None
        self._drops: list[tuple[str, int]] = []
        self._errors: list[tuple[int, str]] = []
        self.refuse_writes = False

    def fail_after(self, n: int) -> None:
        """Answer `n` more requests; afterwards close every connection without a word, until `recover()`."""
        self._left = n

    def drop_upload(self, matching: str = "", after: int = 1000, times: int = 1) -> None:
        """Close the connection after `after` bytes of the body of the next `times` uploads whose path has `matching`.

        The client itself repeats a dropped PUT (five times, over 23 seconds), but not a dropped commit.
        """
        self._drops += [(matching, after)] * times

    def error_once(self, status: int, matching: str = "", times: int = 1) -> None:
        """Answer `status` to the next `times` requests whose "METHOD path" has `matching` in it."""
        self._errors += [(status, matching)] * times

    @contextlib.contextmanager
    def offline(self) -> Iterator[None]:
        """Nothing listens at the endpoint inside this block."""
        self._close()
        try:
            yield
        finally:
            self._listen()

    # -- content, from Python --------------------------------------------------------------------------------------

    def seed(self, repo_id: str, content: str | Path | dict[str, bytes], kind: str = "model", **settings: Any) -> str:
        """Commit a folder, or paths with bytes, without a client; returns the commit id."""
        if not isinstance(content, dict):
            root = Path(content)
            files = {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
        else:
            files = content
        with self.lock:
            repo = self.repos.get((kind, repo_id)) or self.create(repo_id, kind, **settings)
            tree = dict(repo.commits[repo.branches["main"]].files)
            tree |= {path: self.store(data, self.is_lfs(path, len(data))) for path, data in files.items()}
            return self.commit(repo, "main", tree, "Seed").oid

    def create(self, repo_id: str, kind: str = "model", *, private: bool = False, gated: bool = False) -> Repo:
        repo = self.repos[kind, repo_id] = Repo(kind, repo_id, private, gated)
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
        self.commit(repo, "main", {".gitattributes": self.store(attributes.encode(), False)}, "initial commit")
        return repo

    def files(self, repo_id: str, revision: str = "main", kind: str = "model") -> dict[str, bytes]:
        """Every file of a revision, by its path."""
        commit = self.repos[kind, repo_id].resolve(revision)
        assert commit is not None, f"{repo_id} has no revision {revision}"
        return {path: self.read(blob) for path, blob in sorted(commit.files.items())}

    def history(self, repo_id: str, revision: str = "main", kind: str = "model") -> list[Commit]:
        """The commits of a revision, newest first."""
        repo, found = self.repos[kind, repo_id], []
        commit = repo.resolve(revision)
        while commit is not None:
            found.append(commit)
            commit = repo.commits.get(commit.parent or "")
        return found

    def commit(self, repo: Repo, ref: str, files: dict[str, Blob], title: str, parent: str | None = None) -> Commit:
        """Put a tree on top of a branch, or of a pull request where `ref` is its number."""
        with self.lock:
            heads: dict[Any, str] = repo.pulls if ref.isdigit() else repo.branches
            key: Any = int(ref) if ref.isdigit() else ref
            parent = parent or heads.get(key)
            now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z")
            names = sorted((path, blob.git) for path, blob in files.items())
            seed = json.dumps([repo.kind, repo.id, len(repo.commits), parent, title, names])
            oid = hashlib.sha1(seed.encode()).hexdigest()
            repo.commits[oid] = Commit(oid, parent, title, now, dict(files))
            heads[key] = oid
            return repo.commits[oid]

    @staticmethod
    def _git(data: bytes) -> str:
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def is_lfs(self, path: str, size: int) -> bool:
        return self.lfs and size > 0 and (path.endswith(LFS_SUFFIXES) or size > LFS_BYTES)

    def blob_path(self, sha256: str) -> Path:
        return Path(self._scratch.name) / sha256

    def store(self, data: bytes, lfs: bool) -> Blob:
        sha256 = hashlib.sha256(data).hexdigest()
        if not self.blob_path(sha256).exists():
            self.blob_path(sha256).write_bytes(data)
        if not lfs:
            return Blob(sha256, self._git(data), len(data), False)
        return self.pointer(sha256, len(data))

    def pointer(self, sha256: str, size: int) -> Blob:
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
        return Blob(sha256, self._git(text.encode()), size, True)

    def read(self, blob: Blob) -> bytes:
        return self.blob_path(blob.sha256).read_bytes()

    # -- called by the handler, per request ------------------------------------------------------------------------

    def fault(self, line: str) -> int | None:
        """0 to close the connection, a status to answer, or None."""
        with self.lock:
            self.requests.append(line)
            if self._left is not None:
                if self._left <= 0:
                    return 0
                self._left -= 1
            for position, (status, matching) in enumerate(self._errors):
                if matching in line:
                    del self._errors[position]
                    return status
        return None

    def drop(self, line: str) -> int | None:
        """After how many bytes of the body to close the connection, or None."""
        with self.lock:
            for position, (matching, after) in enumerate(self._drops):
                if matching in line:
                    del self._drops[position]
                    return after
        return None


class _Answer(Exception):
    """Ends a request with an error, in the Hub's words."""

    def __init__(self, status: int, message: str, code: str | None = None, commit: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = {"X-Error-Message": message}
        if code:
            self.headers["X-Error-Code"] = code
        if commit:
            self.headers["X-Repo-Commit"] = commit


class _Dropped(Exception):
    """The connection is to be closed without an answer."""


NAME = r"(?P<id>[\w.-]+(?:/[\w.-]+)?)"
API = rf"/api/(?P<kind>model|dataset|space)s/{NAME}"
PREFIX = rf"/(?:(?P<kind>dataset|space)s/)?{NAME}"
ROUTES = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("POST", r"/api/repos/create", "create_repo"),
    ("DELETE", r"/api/repos/delete", "delete_repo"),
    ("GET", r"/api/(?P<kind>model|dataset|space)s", "list_repos"),
    ("GET", rf"{API}/revision/(?P<revision>.+)", "info"),
    ("GET", rf"{API}/refs", "refs"),
    ("GET", rf"{API}/auth-check", "auth_check"),
    ("GET", rf"{API}/commits/(?P<revision>[^/]+)", "commits"),
    ("GET", rf"{API}/tree/(?P<revision>[^/]+)(?:/(?P<path>.*))?", "tree"),
    ("POST", rf"{API}/paths-info/(?P<revision>[^/]+)", "paths_info"),
    ("POST", rf"{API}/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", rf"{API}/commit/(?P<revision>[^/]+)", "add_commit"),
    ("POST|DELETE", rf"{API}/branch/(?P<name>[^/]+)", "branch"),
    ("POST|DELETE", rf"{API}/tag/(?P<name>[^/]+)", "tag"),
    ("PUT", rf"{API}/settings", "settings"),
    ("GET", rf"{API}/discussions/(?P<number>\d+)", "discussion"),
    ("POST", rf"{API}/discussions/(?P<number>\d+)/merge", "merge"),
    ("GET", API, "info"),
    ("POST", rf"{PREFIX}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", r"/lfs-upload/(?P<sha256>[0-9a-f]{64})", "lfs_put"),
    ("GET|HEAD", rf"{PREFIX}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "file"),
    ("GET|HEAD", rf"/api/resolve-cache/(?P<kind>model|dataset|space)s/{NAME}/(?P<revision>[^/]+)/(?P<path>.+)", "file"),
]
COMPILED = [(methods.split("|"), re.compile(pattern), name) for methods, pattern, name in ROUTES]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: LoopbackHub

    def setup(self) -> None:
        super().setup()
        self.hub = self.server.hub  # type: ignore[attr-defined]
        self.hub._open.add(self.connection)

    def finish(self) -> None:
        self.hub._open.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:  # the client went away, which is its right
            self.close_connection = True

    def _dispatch(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        line = f"{self.command} {self.path}"
        try:
            status = self.hub.fault(line)
            if status == 0:
                raise _Dropped
            # Before any answer: on a connection that is kept, what is left unread would pass for the next request.
            self.body = self._read_body(self.hub.drop(line))
            if status is not None:
                raise _Answer(status, "This stand-in was told to fail once.")
            for methods, pattern, name in COMPILED:
                match = pattern.fullmatch(url.path)
                if match and self.command in methods:
                    arguments = {k: unquote(v) for k, v in match.groupdict().items() if v is not None}
                    getattr(self, f"_{name}")(**arguments)
                    return
            raise _Answer(404, f"This stand-in does not know {line}.")
        except _Dropped:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
        except _Answer as answer:
            self._json({"error": answer.message}, answer.status, answer.headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _dispatch

    def _read_body(self, drop_after: int | None) -> bytes:
        parts, total = [], 0

        def take(size: int) -> None:
            nonlocal total
            while size:
                part = self.rfile.read(min(size, CHUNK, drop_after - total if drop_after is not None else CHUNK))
                if not part:
                    raise _Dropped
                parts.append(part)
                total, size = total + len(part), size - len(part)
                if drop_after is not None and total >= drop_after:
                    raise _Dropped

        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                take(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            take(int(self.headers.get("Content-Length") or 0))
        if drop_after is not None:  # the whole body was shorter
            raise _Dropped
        return b"".join(parts)

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # -- who is asking ---------------------------------------------------------------------------------------------

    def _user(self) -> tuple[str, list[str]] | None:
        header = self.headers.get("Authorization", "")
        if not header:
            return None
        user = self.hub.users.get(header.removeprefix("Bearer "))
        if user is None:
            raise _Answer(401, "Invalid credentials in Authorization header")
        return user

    def _owns(self, repo_id: str) -> bool:
        user = self._user()
        return user is not None and repo_id.split("/")[0] in (user[0], *user[1])

    def _repo(self, kind: str, repo_id: str) -> Repo:
        user = self._user()
        repo = self.hub.repos.get((kind, repo_id))
        if repo is None or (repo.private and not self._owns(repo_id)):
            # The Hub does not tell strangers whether a private repository exists.
            # The client takes any 401 of an https Hub for a missing repository; over http it needs to be told.
            if user is None:
                raise _Answer(401, "Invalid username or password.", "RepoNotFound")
            raise _Answer(404, "Repository not found", "RepoNotFound")
        return repo

    def _commit(self, repo: Repo, revision: str) -> Commit:
        commit = repo.resolve(revision)
        if commit is None:
            raise _Answer(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def _writable(self, kind: str, repo_id: str) -> Repo:
        repo = self._repo(kind, repo_id)
        if self._user() is None:
            raise _Answer(401, "Invalid username or password.")
        if self.hub.refuse_writes or not self._owns(repo_id):
            raise _Answer(403, "Forbidden: you must use a write token to upload to a repository.")
        return repo

    # -- users and repositories ------------------------------------------------------------------------------------

    def _whoami(self) -> None:
        user = self._user()
        if user is None:
            raise _Answer(401, "Invalid username or password.")
        name, organisations = user
        role = "write" if organisations else "read"
        self._json(
            {
                "type": "user", "id": hashlib.sha1(name.encode()).hexdigest()[:24], "name": name, "fullname": name,
                "orgs": [{"type": "org", "name": organisation} for organisation in organisations],
                "auth": {"type": "access_token", "accessToken": {"displayName": "loopback", "role": role}},
            }
        )  # fmt: skip

    def _validate_yaml(self) -> None:
        """A few of the Hub's own checks: YAML that parses into a mapping, and the shape of model-index."""
        content, errors, warned = json.loads(self.body)["content"], [], []
        match = re.match(r"---\s*\n(.*?)\n---", content, re.DOTALL)
        try:
            metadata = yaml.safe_load(match[1]) if match else None
            if metadata is None:
                warned.append({"message": "empty or missing yaml metadata in repo card"})
            elif not isinstance(metadata, dict):
                errors.append({"message": '"metadata" must be an object'})
            else:
                for index, model in enumerate(metadata.get("model-index") or []):
                    for result in model.get("results", [None]):
                        if not isinstance(result, dict) or not {"task", "dataset", "metrics"} <= set(result):
                            errors.append({"message": f'"model-index[{index}].results" needs task, dataset, metrics'})
        except yaml.YAMLError as error:
            errors.append({"message": f"invalid YAML: {error}"})
        self._json({"errors": errors, "warnings": warned}, 400 if errors else 200)

    def _create_repo(self) -> None:
        wanted = json.loads(self.body)
        user = self._user()
        if user is None:
            raise _Answer(401, "Invalid username or password.")
        kind, namespace = wanted.get("type") or "model", wanted.get("organization") or user[0]
        repo_id = f"{namespace}/{wanted['name']}"
        if self.hub.refuse_writes or not self._owns(repo_id):
            raise _Answer(403, f'You don\'t have the rights to create a {kind} under the namespace "{namespace}".')
        if kind == "space" and not wanted.get("sdk"):
            raise _Answer(400, "A Space needs an sdk.")
        url = f"{self.hub.endpoint}/{'' if kind == 'model' else kind + 's/'}{repo_id}"
        with self.hub.lock:
            if (kind, repo_id) in self.hub.repos:
                self._json({"error": f"You already created this {kind} repo", "url": url}, 409)
                return
            self.hub.create(repo_id, kind, private=wanted.get("visibility") == "private" or bool(wanted.get("private")))
        self._json({"url": url, "name": repo_id})

    def _delete_repo(self) -> None:
        wanted = json.loads(self.body)
        kind = wanted.get("type") or "model"
        repo = self._writable(kind, f"{wanted['organization']}/{wanted['name']}")
        del self.hub.repos[kind, repo.id]
        self._json({})

    def _settings(self, kind: str, id: str) -> None:
        wanted, repo = json.loads(self.body), self._writable(kind, id)
        repo.private = wanted.get("private", wanted.get("visibility") == "private")
        self._json({"private": repo.private})

    def _auth_check(self, kind: str, id: str) -> None:
        self._repo(kind, id)
        self._json({})

    def _list_repos(self, kind: str) -> None:
        self._user()
        author, search = self.query.get("author", [""])[0], self.query.get("search", [""])[0]
        found = [
            self._describe(repo, repo.commits[repo.branches["main"]], False)
            for (its_kind, repo_id), repo in self.hub.repos.items()
            if its_kind == kind
            and (not repo.private or self._owns(repo_id))
            and repo_id.startswith(f"{author}/" if author else "")
            and search in repo_id
        ]
        self._json(found)

    def _describe(self, repo: Repo, commit: Commit, blobs: bool) -> dict[str, Any]:
        card: dict[str, Any] = {}
        if "README.md" in commit.files:
            text = self.hub.read(commit.files["README.md"]).decode()
            match = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
            card = (yaml.safe_load(match[1]) if match else None) or {}
        siblings = []
        for path, blob in sorted(commit.files.items()):
            sibling: dict[str, Any] = {"rfilename": path}
            if blobs:
                sibling |= {"size": blob.size, "blobId": blob.git}
                if blob.lfs:
                    sibling["lfs"] = {"sha256": blob.sha256, "size": blob.size, "pointerSize": 130}
            siblings.append(sibling)
        described: dict[str, Any] = {
            "_id": hashlib.sha1(repo.id.encode()).hexdigest()[:24], "id": repo.id, "author": repo.id.split("/")[0],
            "sha": commit.oid, "lastModified": commit.date, "createdAt": commit.date, "private": repo.private,
            "gated": "manual" if repo.gated else False, "disabled": False, "downloads": 0, "likes": 0,
            "tags": list(card.get("tags") or []), "siblings": siblings, "cardData": card,
        }  # fmt: skip
        if repo.kind == "model":
            described |= {"modelId": repo.id, "spaces": [], "model-index": card.get("model-index")}
            described |= {key: card[key] for key in ("library_name", "pipeline_tag") if key in card}
        if repo.kind == "space":
            described["sdk"] = card.get("sdk")
        return described

    def _info(self, kind: str, id: str, revision: str = "main") -> None:
        repo = self._repo(kind, id)
        self._json(self._describe(repo, self._commit(repo, revision), "blobs" in self.query))

    # -- revisions -------------------------------------------------------------------------------------------------

    def _refs(self, kind: str, id: str) -> None:
        repo = self._repo(kind, id)

        def listed(prefix: str, names: dict[Any, str]) -> list[dict[str, str]]:
            return [{"name": str(n), "ref": f"{prefix}{n}", "targetCommit": oid} for n, oid in names.items()]

        answer = {"branches": listed("refs/heads/", repo.branches), "tags": listed("refs/tags/", repo.tags)}
        if "include_prs" in self.query:
            answer["pullRequests"] = listed("refs/pr/", repo.pulls)
        self._json(answer | {"converts": []})

    def _commits(self, kind: str, id: str, revision: str) -> None:
        repo = self._repo(kind, id)
        self._commit(repo, revision)
        self._json(
            [
                {"id": c.oid, "title": c.title, "message": "", "date": c.date, "authors": [{"user": "tester"}]}
                for c in self.hub.history(id, revision, kind)
            ]
        )

    def _branch(self, kind: str, id: str, name: str) -> None:
        repo = self._writable(kind, id)
        if self.command == "DELETE":
            repo.branches.pop(name, None)
        elif name in repo.branches:
            raise _Answer(409, f"Reference already exists: refs/heads/{name}")
        else:
            start = json.loads(self.body or b"{}").get("startingPoint") or "main"
            repo.branches[name] = self._commit(repo, start).oid
        self._json({})

    def _tag(self, kind: str, id: str, name: str) -> None:
        repo = self._writable(kind, id)
        if self.command == "DELETE":
            if repo.tags.pop(name, None) is None:
                raise _Answer(404, f"Invalid rev id: {name}", "RevisionNotFound")
        else:
            tag = json.loads(self.body)["tag"]
            if tag in repo.tags:
                raise _Answer(409, f"Tag reference exists already: {tag}")
            repo.tags[tag] = self._commit(repo, name).oid
        self._json({})

    def _discussion(self, kind: str, id: str, number: str) -> None:
        repo = self._repo(kind, id)
        if int(number) not in repo.pulls:
            raise _Answer(404, "No such discussion")
        commit = repo.commits[repo.pulls[int(number)]]
        self._json(
            {
                "num": int(number), "title": commit.title, "status": "open", "isPullRequest": True,
                "createdAt": commit.date, "author": {"name": "tester"}, "events": [], "filesWithConflicts": [],
                "changes": {"base": "refs/heads/main"}, "repo": {"name": id, "type": kind},
            }
        )  # fmt: skip

    def _merge(self, kind: str, id: str, number: str) -> None:
        repo = self._writable(kind, id)
        files = repo.commits[repo.pulls[int(number)]].files
        self.hub.commit(repo, "main", files, f"Merge pull request #{number}")
        self._json({})

    # -- reading ---------------------------------------------------------------------------------------------------

    def _entry(self, path: str, blob: Blob, commit: Commit) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "oid": blob.git, "size": blob.size, "path": path}
        if blob.lfs:
            entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": 130}
        if self.query.get("expand", ["false"])[0].lower() == "true":
            entry["lastCommit"] = {"id": commit.oid, "title": commit.title, "date": commit.date}
        return entry

    def _tree(self, kind: str, id: str, revision: str, path: str = "") -> None:
        commit = self._commit(self._repo(kind, id), revision)
        prefix = f"{path.rstrip('/')}/" if path else ""
        below = {name: blob for name, blob in sorted(commit.files.items()) if name.startswith(prefix)}
        if prefix and not below:
            raise _Answer(404, f"{path} does not exist on {revision}", "EntryNotFound", commit.oid)
        recursive = self.query.get("recursive", ["false"])[0].lower() == "true"
        entries: list[dict[str, Any]] = []
        folders = set()
        for name, blob in below.items():
            inside = PurePosixPath(name[len(prefix) :])
            for parent in reversed(inside.parents[:-1]):
                folder = f"{prefix}{parent}"
                if folder not in folders and (recursive or len(parent.parts) == 1):
                    folders.add(folder)
                    oid = hashlib.sha1(folder.encode()).hexdigest()
                    entries.append({"type": "directory", "oid": oid, "size": 0, "path": folder})
            if recursive or len(inside.parts) == 1:
                entries.append(self._entry(name, blob, commit))
        self._json(entries)

    def _paths_info(self, kind: str, id: str, revision: str) -> None:
        commit = self._commit(self._repo(kind, id), revision)
        if self.headers.get("Content-Type", "").startswith("application/json"):
            paths = json.loads(self.body)["paths"]
        else:
            paths = parse_qs(self.body.decode())["paths"]
        answer = []
        for path in paths:
            if path in commit.files:
                answer.append(self._entry(path, commit.files[path], commit))
            elif any(name.startswith(f"{path}/") for name in commit.files):
                oid = hashlib.sha1(path.encode()).hexdigest()
                answer.append({"type": "directory", "oid": oid, "size": 0, "path": path})
        self._json(answer)

    def _file(self, id: str, revision: str, path: str, kind: str = "model") -> None:
        repo = self._repo(kind, id)
        commit = self._commit(repo, revision)
        if repo.gated and not self._owns(id):
            status = 401 if self._user() is None else 403
            raise _Answer(status, f"Access to {kind} {id} is restricted.", "GatedRepo", commit.oid)
        blob = commit.files.get(path)
        if blob is None:
            raise _Answer(404, "Entry not found", "EntryNotFound", commit.oid)
        first, last = 0, blob.size - 1
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if wanted and wanted[1]:
            first, last = int(wanted[1]), min(int(wanted[2] or last), last)
        elif wanted and wanted[2]:
            first = max(0, blob.size - int(wanted[2]))
        if wanted and first > last:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{blob.size}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if wanted else 200)
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(last - first + 1),
            "Accept-Ranges": "bytes",
            "ETag": f'"{blob.etag}"',
            "X-Repo-Commit": commit.oid,
        }
        if wanted:
            headers["Content-Range"] = f"bytes {first}-{last}/{blob.size}"
        if blob.lfs:
            headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size)}
        for name, text in headers.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command == "GET":
            with self.hub.blob_path(blob.sha256).open("rb") as stream:
                stream.seek(first)
                remaining = last - first + 1
                while remaining:
                    part = stream.read(min(remaining, 1 << 20))
                    self.wfile.write(part)
                    remaining -= len(part)

    # -- writing ---------------------------------------------------------------------------------------------------

    def _preupload(self, kind: str, id: str, revision: str) -> None:
        # Anyone signed in may propose a change to a public repository; only its owners may commit.
        repo = self._repo(kind, id) if "create_pr" in self.query else self._writable(kind, id)
        present = self._commit(repo, revision).files
        answer = []
        for file in json.loads(self.body)["files"]:
            blob = present.get(file["path"])
            mode = "lfs" if self.hub.is_lfs(file["path"], file["size"]) else "regular"
            oid = blob.etag if blob is not None else None
            answer.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": answer, "commitOid": self._commit(repo, revision).oid})

    def _lfs_batch(self, id: str, kind: str = "model") -> None:
        self._repo(kind, id)
        if self._user() is None:
            raise _Answer(401, "Invalid username or password.")
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            answer: dict[str, Any] = {"oid": wanted["oid"], "size": wanted["size"]}
            # What is there already is not sent again: an interrupted upload goes on where it stopped.
            if not self.hub.blob_path(wanted["oid"]).exists():
                answer["actions"] = {"upload": {"href": f"{self.hub.endpoint}/lfs-upload/{wanted['oid']}"}}
            objects.append(answer)
        self._json({"transfer": "basic", "objects": objects})

    def _lfs_put(self, sha256: str) -> None:
        found = hashlib.sha256(self.body).hexdigest()
        if found != sha256:
            raise _Answer(400, f"sha256 mismatch: expected {sha256}, got {found}")
        draft = self.hub.blob_path(f"{sha256}.{threading.get_ident()}")
        draft.write_bytes(self.body)
        draft.rename(self.hub.blob_path(sha256))
        self._json({})

    def _add_commit(self, kind: str, id: str, revision: str) -> None:
        propose = "create_pr" in self.query
        repo = self._repo(kind, id) if propose else self._writable(kind, id)
        if self._user() is None:
            raise _Answer(401, "Invalid username or password.")
        with self.hub.lock:
            base = self._commit(repo, revision)
            pull = re.fullmatch(r"refs/pr/(\d+)", revision)
            if not propose and not pull and revision.removeprefix("refs/heads/") not in repo.branches:
                raise _Answer(400, f"{revision} is not a branch: commits go to branches.")
            files, title = dict(base.files), ""
            for line in self.body.splitlines():
                item = json.loads(line)
                key, value = item["key"], item["value"]
                if key == "header":
                    title = value["summary"]
                    if value.get("parentCommit") not in (None, base.oid):
                        raise _Answer(412, "The expected parent commit is no longer the head of the branch.")
                elif key == "file":
                    files[value["path"]] = self.hub.store(base64.b64decode(value["content"]), False)
                elif key == "lfsFile":
                    path = self.hub.blob_path(value["oid"])
                    if not path.exists():
                        raise _Answer(400, f"Lfs object {value['oid']} was never uploaded")
                    files[value["path"]] = self.hub.pointer(value["oid"], path.stat().st_size)
                elif key == "deletedFile":
                    if files.pop(value["path"], None) is None:
                        raise _Answer(404, "A file with this name doesn't exist", "EntryNotFound")
                elif key == "deletedFolder":
                    prefix = value["path"].rstrip("/") + "/"
                    files = {path: blob for path, blob in files.items() if not path.startswith(prefix)}
                else:
                    raise _Answer(400, f"unknown operation {key}")
            prefix = "" if kind == "model" else f"{kind}s/"
            answer: dict[str, Any] = {"success": True, "hookOutput": ""}
            if propose:
                number = len(repo.pulls) + 1
                commit = self.hub.commit(repo, str(number), files, title, parent=base.oid)
                answer["pullRequestUrl"] = f"{self.hub.endpoint}/{prefix}{id}/discussions/{number}"
            else:
                ref = pull[1] if pull else revision.removeprefix("refs/heads/")
                commit = self.hub.commit(repo, ref, files, title)
            answer |= {
                "commitUrl": f"{self.hub.endpoint}/{prefix}{id}/commit/{commit.oid}",
                "commitOid": commit.oid,
            }
        self._json(answer)


def environment(hub: LoopbackHub, home: str | Path) -> dict[str, str]:
    """The variables with which a client talks to this Hub and keeps its cache in `home`."""
    return {
        "HF_ENDPOINT": hub.endpoint,
        "HF_TOKEN": hub.token,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


def hub_environment(hub: LoopbackHub, home: str | Path) -> dict[str, str]:
    """The whole environment of a subprocess that talks to `hub`, online, with its cache in `home`.

    The client reads these variables at import, so tests drive real clients in processes of their own.
    """
    inherited = {n: v for n, v in os.environ.items() if not n.startswith("HF_") and n != "TRANSFORMERS_OFFLINE"}
    return inherited | environment(hub, home) | {"OMP_NUM_THREADS": "1"}


def main() -> None:
    home = tempfile.mkdtemp(prefix="loopback-hub-home-")
    with LoopbackHub() as hub:
        print("\n".join(f"export {name}={value}" for name, value in environment(hub, home).items()))
        print("unset HF_HUB_OFFLINE   # then use the real client in that shell; Ctrl-C here ends the Hub", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
    shutil.rmtree(home)


if __name__ == "__main__":
    main()
