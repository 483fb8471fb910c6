"""What must not travel: secrets, paths of this machine, and files that run code when they are read."""

from __future__ import annotations

import getpass
import io
import json
import pickletools
import re
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# What it is, a word that is in every one of them, and how it looks. The word is there for speed: vocabularies are long.
_SECRETS = [
    (what, word.encode(), re.compile(pattern))
    for what, word, pattern in (
        ("a Hugging Face token", "hf_", rb"(?<![A-Za-z0-9_])hf_[A-Za-z0-9]{30,}"),
        ("a GitHub token", "gh", rb"(?<![A-Za-z0-9_])gh[pousr]_[A-Za-z0-9]{36,}"),
        ("a GitHub token", "github_pat_", rb"github_pat_[A-Za-z0-9_]{22,}"),
        ("a GitLab token", "glpat-", rb"glpat-[\w-]{20,}"),
        ("an API key", "sk-", rb"(?<![A-Za-z0-9_-])sk-(?:[a-z]+-)?[A-Za-z0-9_-]{20,}"),
        ("an AWS access key", "AKIA", rb"AKIA[0-9A-Z]{16}(?![A-Za-z0-9])"),
        ("a Google API key", "AIza", rb"AIza[0-9A-Za-z_-]{35}"),
        ("a Slack token", "xox", rb"xox[abprs]-[0-9A-Za-z-]{10,}"),
        ("a private key", "PRIVATE KEY", rb"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"),
        ("a password in an address", "://", rb"://[^\s/:@\"'<>]+:[^\s/@\"'<>]+@"),
    )
]
_SECRET_NAME = re.compile(r"(?:.*_)?(?:token|password|passwd|secret|api_?key|access_key|credentials?)", re.IGNORECASE)

# Anywhere in a text: folders that every machine has, and `C:\…`.
_ROOTS = (
    "home|Users|root|tmp|var|mnt|opt|srv|usr|private|Volumes|workspace|content|kaggle|scratch|media|nfs|gpfs|lustre"
)
_EMBEDDED = re.compile(
    rf"(?<![\w/.:~<-])(?:/(?:{_ROOTS})/[\w.~-][^\s\"'<>|,;)\]]*|~/[\w.][^\s\"'<>|,;)\]]*|[A-Za-z]:\\+\w[^\s\"'<>|,;)\]]*"
    rf"|file:///[^\s\"'<>]+)"
)
# A value that is a path and nothing else.
_WHOLE = re.compile(r"/[^/\s][^\n]*/[^\n]*|~/[^\n]*|[A-Za-z]:[\\/][^\n]*|\\\\[^\\\n]+\\[^\n]*|file:[^\n]*")

PICKLE_SUFFIXES = (
    ".pkl",
    ".pickle",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".joblib",
    ".dill",
    ".npy",
    ".npz",
    ".h5",
    ".msgpack",
)
_RUNNING_OPCODES = {"GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "REDUCE", "BUILD"}
_SAMPLE = 1 << 20


def find_secrets(data: bytes) -> list[str]:
    """Secrets in the bytes of a file, each in words that do not repeat it."""
    found = []
    for what, word, pattern in _SECRETS:
        match = pattern.search(data) if word in data else None
        if match:
            line = data.count(b"\n", 0, match.start()) + 1
            start = match[0][:4].decode(errors="replace")
            found.append(f"line {line} holds {what} ({start}…): remove it, and revoke it")
    return found


def find_named_secrets(value: Any) -> list[str]:
    """Fields of a JSON file that are called token, password, … and are filled in."""
    return [
        f"{place} is filled in: remove it, and revoke it if it was real"
        for place, name, text in _strings(value)
        if _SECRET_NAME.fullmatch(name) and len(text) >= 8 and not re.search(r"\s", text) and not text.startswith("<")
    ]


def find_paths(text: str) -> list[str]:
    """Paths of a machine inside a text (code, prose, a command line)."""
    found = []
    for pattern in (_EMBEDDED, _of_this_machine()):
        for match in pattern.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(f"line {line} holds the path {_shortened(match[0])}")
    return _unique(found)


def find_paths_in_json(value: Any) -> list[str]:
    """Strings of a JSON file that are a path of a machine, or have one in them."""
    found, here = [], _of_this_machine()
    for place, _, text in _strings(value):
        if "/" not in text and "\\" not in text and not text.startswith("file:"):
            continue
        match = _WHOLE.fullmatch(text) or _EMBEDDED.search(text) or here.search(text)
        if match:
            found.append(f"{place} holds the path {_shortened(match[0])}")
    return _unique(found)


def without_paths(value: Any) -> Any:
    """A JSON value in which paths of a machine are cut down to their last part."""

    def name_only(path: str) -> str:
        return re.split(r"[\\/]", path.rstrip("\\/"))[-1]

    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    if not isinstance(value, str):
        return value
    if _WHOLE.fullmatch(value):
        return name_only(value)
    for pattern in (_EMBEDDED, _of_this_machine()):
        value = pattern.sub(lambda match: name_only(match[0]), value)
    return value


def pickle_inside(path: Path) -> str | None:
    """Why reading a file in the usual way would run code, or None; nothing is unpickled to find out."""
    with path.open("rb") as stream:
        data = stream.read(_SAMPLE)
    if data[:4] == b"PK\x03\x04":
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except zipfile.BadZipFile:
            return "a damaged zip archive, perhaps of pickles"
        if any(name.endswith((".pkl", ".pickle")) for name in names):
            return "a PyTorch archive of pickles"
        return "a NumPy archive, which may hold pickles" if any(name.endswith(".npy") for name in names) else None
    if data[:6] == b"\x93NUMPY":
        return "a NumPy file with pickled objects" if b"'O'" in data[:1024] or b"|O" in data[:1024] else None
    if data[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05") or _is_text_pickle(data):
        return "a pickle"
    return None


def _is_text_pickle(data: bytes) -> bool:
    """Protocols 0 and 1 have no mark at the beginning: only reading their instructions tells."""
    running = False
    try:
        for opcode, _, _ in pickletools.genops(io.BytesIO(data)):
            running = running or opcode.name in _RUNNING_OPCODES
            if opcode.name == "STOP":
                return running
    except ValueError:  # no such instruction, or cut off: not a pickle
        return False
    return False


def _strings(value: Any, place: str = "", name: str = "") -> Iterator[tuple[str, str, str]]:
    """(place, name of the field, string) of every string in a JSON value."""
    if isinstance(value, str):
        yield place or "the file", name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _strings(item, f"{place}.{key}" if place else str(key), str(key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _strings(item, f"{place}[{index}]", name)


def _of_this_machine() -> re.Pattern[str]:
    """Folders of whoever runs this: home, current and temporary one."""
    folders = {str(Path.home()), str(Path.cwd()), tempfile.gettempdir(), f"/home/{_user()}"}
    long_enough = sorted(folder for folder in folders if len(Path(folder).parts) > 2)
    if not long_enough:
        return re.compile(r"(?!)")
    return re.compile(rf"(?:{'|'.join(map(re.escape, long_enough))})(?![\w-])[^\s\"'<>|,;)\]]*")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without a user of this number
        return "nobody"


def _shortened(path: str) -> str:
    return repr(path if len(path) <= 60 else f"{path[:57]}…")


def _unique(lines: list[str]) -> list[str]:
    return list(dict.fromkeys(lines))


def read_json(path: Path) -> Any:
    """A JSON file; a `ValueError` says why it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text ({error.reason} at byte {error.start})") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
