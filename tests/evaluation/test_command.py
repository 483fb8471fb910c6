"""`llmrec evaluate` from prepared data and a saved model to files."""

import json
from pathlib import Path

import polars as pl
import pytest

from llmrec.cli import main
from llmrec.data.prepare import prepare
from llmrec.data.source import Source
from llmrec.evaluation import load_ranks, load_results
from modeling_llmrec import LLMRecModel, LLMRecProcessor

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning")
TITLES = {
    "Coffee": ["beans", "grinder", "kettle", "filter", "scale", "cup"],
    "Books": ["brewing", "roasting", "farms", "origins"],
}
USERS = 12


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    titles = [(domain, title) for domain, names in TITLES.items() for title in names]
    items = [{"item_id": f"i{n}", "title": title, "domain": domain} for n, (domain, title) in enumerate(titles)]
    events = [
        {"user_id": f"u{user}", "item_id": f"i{(user * 3 + step * 7) % 10}", "timestamp": step + 1,
         "domain": items[(user * 3 + step * 7) % 10]["domain"]}
        for user in range(USERS)
        for step in range(5)
    ]  # fmt: skip
    pl.DataFrame(items).write_csv(folder / "items.csv")
    pl.DataFrame(events).write_csv(folder / "interactions.csv")
    prepare([Source(folder / "interactions.csv", folder / "items.csv")], folder / "prepared", k_core=0)
    return folder / "prepared"


@pytest.fixture(scope="module")
def run_folder(shared_weights, tmp_path_factory) -> Path:
    """A run folder with a model around a tiny real backbone."""
    backbone = str(shared_weights / "stories260K")
    folder = tmp_path_factory.mktemp("run")
    model = LLMRecModel.from_backbone(backbone, projection_dim=8)
    model.save_pretrained(folder / "model")
    LLMRecProcessor.from_backbone(backbone, config=model.config).save_pretrained(folder / "model")
    return folder


def command(*arguments) -> int:
    return main(["evaluate", *map(str, arguments), "--no-progress", "--resamples", "20", "--device", "cpu"])


def test_writes_results_ranks_report_and_prints_a_table(run_folder, prepared, tmp_path, capsys):
    assert (
        command(run_folder, "--data", prepared, "--output", tmp_path / "out", "--protocols", "sampled,full,domain") == 0
    )
    printed = capsys.readouterr().out
    assert "mean of domains" in printed and "Coffee" in printed
    results = load_results(tmp_path / "out")
    assert list(dict.fromkeys(row["system"] for row in results["rows"])) == ["popularity", "untuned", "tuned"]
    assert list(results["protocol"]["protocols"]) == ["sampled", "full", "domain"]
    card = json.loads((prepared / "data_card.json").read_text())
    assert results["data"]["hash"] == card["hash"]
    assert len(load_ranks(tmp_path / "out")) == 3 * 3 * USERS
    assert (tmp_path / "out" / "report.md").is_file()


def test_same_model_evaluates_to_the_same_ranks(run_folder, prepared, tmp_path):
    for name in ("one", "two"):
        command(run_folder / "model", "--data", prepared, "--output", tmp_path / name, "--no-untuned", "--name", "mine")
    one, two = (load_ranks(tmp_path / name) for name in ("one", "two"))
    assert one.equals(two)
    assert one["system"].unique(maintain_order=True).to_list() == ["popularity", "mine"]


def test_max_users_and_split(run_folder, prepared, tmp_path):
    command(
        run_folder,
        "--data",
        prepared,
        "--output",
        tmp_path / "out",
        "--no-untuned",
        "--max-users",
        5,
        "--split",
        "validation",
    )
    protocol = load_results(tmp_path / "out")["protocol"]
    assert (protocol["split"], protocol["users"], protocol["users_in_split"]) == ("validation", 5, USERS)


def test_refusals(run_folder, prepared, tmp_path, capsys):
    def error(*arguments) -> str:
        assert command(*arguments) == 2
        return capsys.readouterr().err

    out = tmp_path / "out"
    common = ("--data", prepared, "--output", out)
    assert "--no-untuned" in error(run_folder, *common, "--baseline-backbone", tmp_path / "nothing")
    assert "unknown protocol 'half'" in error(run_folder, *common, "--protocols", "full,half")
    assert "say with --output" in error(run_folder / "model", "--data", prepared)
    assert "is the name of a baseline" in error(run_folder, *common, "--name", "popularity")
    assert "holds neither config.json" in error(prepared, *common)
    assert not out.exists()
    out.mkdir()
    (out / "results.json").write_text("{}")
    assert "exists already" in error(run_folder, *common)
    assert (out / "results.json").read_text() == "{}"
