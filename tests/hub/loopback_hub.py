"""A stand-in for the Hub: as much of its protocol, on 127.0.0.1, as huggingface_hub needs. It is not the Hub.

Models, datasets and Spaces; public, private and gated repositories; branches, tags, pull requests; one commit per
upload, each with an id of its own, and every old revision readable. Files come back as they went in, with the headers
that the client's cache lives on. What the Hub does beyond that (Xet, CDN, pagination, search, scanning) it does not.

By hand: `python -m tests.hub.loopback_hub` prints the variables to set and serves until interrupted.
"""

import contextlib
import hashlib
import json
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from datetime import datetime, timezone
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.hub.loopback_handler import Handler
from tests.hub.loopback_store import Blob, Commit, Repo

LFS_SUFFIXES = (".safetensors", ".parquet", ".arrow", ".png", ".jpg", ".onnx", ".bin", ".xml", ".npy", ".pkl", ".zip")
LFS_BYTES = 10 << 20


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
        server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
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
