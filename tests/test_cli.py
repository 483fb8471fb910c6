"""The command line: lazy, and polite about what the user did wrong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from llmrec import cli
from llmrec.version import __version__


@pytest.fixture
def failing_subcommand(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Put a subcommand `fail` in place, whose `run` is the body given, in a module of the name given."""

    def install(body: str, module_name: str) -> None:
        module = ModuleType(module_name)
        source = f"def add_arguments(parser): pass\ndef run(args):\n    {body}\n"
        exec(compile(source, f"{module_name}.py", "exec"), module.__dict__)
        monkeypatch.setitem(sys.modules, module_name, module)
        monkeypatch.setitem(cli.SUBCOMMANDS, "fail", cli.Subcommand(module_name, "fails"))

    return install


def run_llmrec(*arguments: str, code: str = "pass") -> subprocess.CompletedProcess[str]:
    program = f"import sys; from llmrec.cli import main; status = main(sys.argv[1:]); {code}; sys.exit(status)"
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)


def test_version_is_told_without_torch() -> None:
    program = (
        "import sys\nfrom llmrec.cli import main\n"
        "try:\n    main(['--version'])\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "heavy = {'torch', 'transformers', 'polars', 'numpy'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == f"llmrec {__version__}"


def test_demo_data_needs_no_torch(tmp_path: Path) -> None:
    result = run_llmrec(
        "demo-data", str(tmp_path / "shop"), "--users", "3", code="assert 'torch' not in sys.modules, 'torch'"
    )
    assert result.returncode == 0, result.stderr
    assert sorted(file.name for file in (tmp_path / "shop").iterdir()) == ["interactions.csv", "items.csv"]


@pytest.mark.parametrize("subcommand", list(cli.SUBCOMMANDS))
def test_every_subcommand_has_help(subcommand: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([subcommand, "--help"])
    assert stop.value.code == 0
    assert f"usage: llmrec {subcommand}" in capsys.readouterr().out


def test_help_lists_every_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = capsys.readouterr().out
    assert all(subcommand in text for subcommand in cli.SUBCOMMANDS)


def test_without_a_subcommand_the_usage_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([])
    assert stop.value.code == 2
    assert "usage: llmrec" in capsys.readouterr().err


def test_a_value_that_is_called_like_a_subcommand_is_no_subcommand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo-data", "evaluate", "--users", "2"]) == 0
    assert (tmp_path / "evaluate" / "items.csv").is_file()


def test_an_error_of_ours_is_one_line(
    failing_subcommand: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    failing_subcommand("raise ValueError('items.csv, line 3: no title')", "llmrec.made_up")
    assert cli.main(["fail"]) == 2
    assert capsys.readouterr().err == "llmrec: error: items.csv, line 3: no title\n"


def test_the_message_of_a_key_error_is_not_quoted(
    failing_subcommand: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    failing_subcommand("raise KeyError('no item B01 in the catalogue')", "llmrec.made_up")
    assert cli.main(["fail"]) == 2
    assert capsys.readouterr().err == "llmrec: error: no item B01 in the catalogue\n"


def test_the_traceback_is_kept_on_request(
    failing_subcommand: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_subcommand("raise ValueError('bad')", "llmrec.made_up")
    monkeypatch.setenv(cli.TRACEBACK_VARIABLE, "1")
    with pytest.raises(ValueError, match="bad"):
        cli.main(["fail"])


def test_an_error_that_a_library_raised_keeps_its_traceback(
    failing_subcommand: Callable[[str, str], None],
) -> None:
    failing_subcommand("raise ValueError('shapes differ')", "some_library")
    with pytest.raises(ValueError, match="shapes differ"):
        cli.main(["fail"])


def test_an_error_of_another_kind_keeps_its_traceback(failing_subcommand: Callable[[str, str], None]) -> None:
    failing_subcommand("raise AssertionError('cannot happen')", "llmrec.made_up")
    with pytest.raises(AssertionError, match="cannot happen"):
        cli.main(["fail"])


def test_an_output_that_is_there_is_one_line_too(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    result = run_llmrec("demo-data", str(tmp_path))
    assert result.returncode == 2
    assert result.stderr.startswith("llmrec: error: ") and str(tmp_path) in result.stderr
    assert result.stderr.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]
