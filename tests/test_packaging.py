"""What the package says about itself is true, and what it needs travels with it."""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from llmrec.version import __version__

PACKAGES = ("configuration_llmrec", "modeling_llmrec", "llmrec")
CORE = {
    "torch", "transformers", "peft", "accelerate", "datasets", "evaluate", "safetensors", "huggingface_hub",
    "polars", "numpy",
}  # fmt: skip


@pytest.fixture(scope="module")
def setup_cfg(repository: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(repository / "setup.cfg", encoding="utf-8")
    return parser


def requirements(text: str) -> dict[str, str]:
    """Name → version specifier of each line of a list of requirements."""
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    return {
        match["name"]: match["specifier"]
        for line in lines
        if line and (match := re.fullmatch(r"(?P<name>[\w.-]+)\s*(?P<specifier>.*)", line))
    }


def extras(setup_cfg: configparser.ConfigParser) -> dict[str, dict[str, str]]:
    return {extra: requirements(text) for extra, text in setup_cfg["options.extras_require"].items()}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def tracked_files(repository: Path) -> list[Path]:
    listing = subprocess.run(
        ["git", "-C", str(repository), "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        capture_output=True,
        text=True,
    )
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    return [file for name in listing.stdout.split("\0") if name and (file := repository / name).is_file()]


def test_one_version_everywhere(repository: Path, setup_cfg: configparser.ConfigParser) -> None:
    import llmrec

    assert llmrec.__version__ == __version__
    assert setup_cfg["metadata"]["version"] == "attr: llmrec.version.__version__"
    citation = yaml.safe_load((repository / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    changelog = (repository / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[(.+?)\]", changelog, re.MULTILINE)
    assert newest and newest[1] == __version__


def test_the_citation_names_the_paper(repository: Path) -> None:
    citation = yaml.safe_load((repository / "CITATION.cff").read_text(encoding="utf-8"))
    paper = citation["preferred-citation"]
    assert paper["doi"] == "10.1145/3705727"
    assert len(paper["authors"]) == 9
    assert any("2310.14304" in identifier["value"] for identifier in paper["identifiers"])


def test_the_core_needs_the_card_s_libraries_and_no_more(setup_cfg: configparser.ConfigParser) -> None:
    assert set(requirements(setup_cfg["options"]["install_requires"])) == CORE


def test_requirements_have_lower_bounds_only(setup_cfg: configparser.ConfigParser) -> None:
    groups = [requirements(setup_cfg["options"]["install_requires"]), *extras(setup_cfg).values()]
    for group in groups:
        for name, specifier in group.items():
            assert re.fullmatch(r">=[\d.]+", specifier), f"{name}{specifier}"


def test_constraints_pin_all_that_is_required(repository: Path, setup_cfg: configparser.ConfigParser) -> None:
    text = (repository / "constraints.txt").read_text(encoding="utf-8")
    pinned = requirements(text)
    assert "://" not in text
    assert all(re.fullmatch(r"==[\w.]+", specifier) for specifier in pinned.values())
    required = requirements(setup_cfg["options"]["install_requires"])
    for extra in extras(setup_cfg).values():
        required |= extra
    assert {normalised(name) for name in required} <= {normalised(name) for name in pinned}


def test_every_folder_of_code_is_a_package(repository: Path) -> None:
    folders = {file.parent for package in PACKAGES for file in (repository / package).rglob("*.py")}
    without = sorted(
        str(folder.relative_to(repository)) for folder in folders if not (folder / "__init__.py").is_file()
    )
    assert not without, "setuptools would leave these out of the wheel"


def test_no_file_holds_a_path_of_some_machine(repository: Path) -> None:
    # The tests of what keeps such paths from being published need some that are nobody's.
    nobody_s = r"(?!somebody\b|me/|x\b|data/x\b)"
    somebody_s_folder = re.compile(rf"(?<![\w.~$}}>-])/(?:home|Users|root|opt|work|mnt|srv)/{nobody_s}\w")
    found = []
    for file in tracked_files(repository):
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            if str(repository) in line or somebody_s_folder.search(line):
                found.append(f"{file.relative_to(repository)}:{number}: {line.strip()}")
    assert not found, "\n".join(found)


@pytest.mark.slow
def test_the_wheel_holds_three_typed_packages_and_imports_alone(repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    # Built from a copy, since setuptools writes build/ and *.egg-info beside the sources.
    source = tmp_path / "source"
    for file in tracked_files(repository):
        copy = source / file.relative_to(repository)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)], check=True
    )
    (wheel,) = tmp_path.glob("llmrec-*.whl")
    assert wheel.name == f"llmrec-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name.split("/")[0] for name in names} == {*PACKAGES, f"llmrec-{__version__}.dist-info"}
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert f"llmrec-{__version__}.dist-info/licenses/LICENSE" in names
    expected = {
        str(file.relative_to(repository)) for package in PACKAGES for file in (repository / package).rglob("*.py")
    }
    assert expected <= names

    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    program = (
        "import configuration_llmrec, modeling_llmrec, llmrec, importlib.metadata as metadata\n"
        "print(metadata.version('llmrec'), [e.name for e in metadata.distribution('llmrec').entry_points])\n"
        "print(configuration_llmrec.__file__, modeling_llmrec.__file__, llmrec.__file__)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    told, origins = result.stdout.splitlines()
    assert told == f"{__version__} ['llmrec']"
    assert origins.split() == [str(site / package / "__init__.py") for package in PACKAGES]
