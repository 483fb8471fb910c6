"""The requests that the stand-in for the Hub answers, one method each."""

import base64
import contextlib
import hashlib
import json
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from tests.hub.loopback_store import Blob, Commit, Repo

CHUNK = 1 << 16


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


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: Any  # the LoopbackHub

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
