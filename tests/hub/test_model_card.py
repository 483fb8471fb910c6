"""Model cards: the figures are the run's, the metadata is the Hub's, the examples run, and the page looks whole."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from peft import LoraConfig, get_peft_model
from transformers.pipelines import SUPPORTED_TASKS

from llmrec.cli import run_reporting_errors
from llmrec.hub.card_command import add_arguments
from llmrec.hub.card_command import run as run_command
from llmrec.hub.catalogue_index import save_index
from llmrec.hub.export import save_model
from llmrec.hub.model_card import CardError, check_card, write_model_card
from llmrec.retrieval.recommender import Recommender
from modeling_llmrec import LLMRecModel, LLMRecProcessor
from tests.hub.card_pages import Outline, page
from tests.hub.loopback_hub import hub_environment
from tests.hub.made_up_run import HASH, RECIPE, TRAINING, make_model_folder, make_run

REPO = "org/llmrec-shop"
KEPT = sorted((Path(__file__).parents[2] / "model_cards").glob("llmrec-*.md"))
HEADINGS = [
    "Use", "What is in the repository", "Results", "Data", "Training", "Limits and biases", "Environmental cost",
    "Licence", "Citation",
]  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run") / "shop")


@pytest.fixture(scope="module")
def card(run: Path) -> Path:
    return write_model_card(
        run / "model", repo_id=REPO, run=run, language=["en"], tags=["demo"], datasets=["org/shop-data"]
    )


@pytest.fixture(scope="module")
def one_domain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run") / "one", domains=("Food",), users=40, plots=False)


def _look_whole(path: Path) -> Outline:
    """The page of a card, whose tables, images and texts have been looked through."""
    outline = Outline(page(path))
    for table in outline.tables:
        assert len({len(row) for row in table}) == 1, table
        assert len(table) > 1 and all(row[0] or row[1] for row in table), table
    for image in outline.images:
        assert (path.parent / image).read_bytes().startswith(b"\x89PNG"), image
    assert not re.search(r"\{[{%#]|[%#}]\}|\bNone\b|\bnan\b|undefined", outline.text), outline.text
    assert not re.search(r"(?<![\w.:/])/(?:home|root|work|tmp|Users|somewhere)\b|\b[A-Z]:\\", outline.text)
    return outline


# -- metadata -------------------------------------------------------------------------------------


def test_the_metadata_is_the_hubs(card: Path) -> None:
    found = check_card(card).data.to_dict()
    assert found["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert (found["base_model_relation"], found["library_name"]) == ("adapter", "transformers")
    # The Hub's page offers a stock pipeline for tasks that transformers has: none of those reads our layout of texts.
    assert found["pipeline_tag"] == "sentence-similarity" and found["pipeline_tag"] not in SUPPORTED_TASKS
    assert found["license"] == "apache-2.0" and found["language"] == ["en"] and found["datasets"] == ["org/shop-data"]
    assert {"recommendation", "sequential-recommendation", "llm-rec", "peft", "lora", "demo"} <= set(found["tags"])
    assert "sentence-transformers" in found["tags"] and set(found["metrics"]) >= {"ndcg@10", "recall@10"}


def test_the_model_index_says_what_results_json_says(card: Path, run: Path) -> None:
    card_data = ModelCard.load(card).data
    name, results = model_index_to_eval_results(card_data.to_dict()["model-index"])
    assert name == "llmrec-shop" and results == card_data.eval_results
    rows = {
        (row["protocol"], row["metric"], row["group"]): row["value"]
        for row in json.loads((run / "results.json").read_text())["rows"]
        if row["system"] == "tuned" and row["group_by"] in ("overall", "domain")
    }
    # Overall and two domains, in four metrics, under two protocols.
    assert len(results) == 3 * 4 * 2 == len({(r.dataset_config, r.metric_name) for r in results})
    for result in results:
        group = result.metric_name.partition(", ")[2] or "users"
        assert result.metric_value == pytest.approx(rows[result.dataset_config, result.metric_type, group], abs=1e-6)
        assert (result.dataset_revision, result.dataset_split) == (HASH, "test")
        assert result.dataset_name == f"shop ({result.dataset_config})" and "item" in result.dataset_args["candidates"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("license: My own", "license 'My own' is no identifier"),
        ("language: [no]", "language is \\[False\\]: it must be a list of texts"),
        ("language: [english!]", "language 'english!' is no code"),
        ("tags: 3", "tags is 3"),
        ("datasets: [a/b/c]", "datasets 'a/b/c' is no repository"),
        ("base_model: /somewhere/me/bert", "base_model '/somewhere/me/bert' is no repository"),
        ("base_model_relation: child", "base_model_relation 'child' is none of adapter"),
        ("pipeline_tag: null", "pipeline_tag is None"),
        ("model-index: [{name: m}]", "cannot be read: .*model_index"),
        ("model-index: [{name: m, results: [{task: {type: t}, dataset: {type: d, name: d}, metrics: "
         "[{type: ndcg@10, value: .nan}]}]}]", "model-index: ndcg@10 is nan"),
        ("- a list", "cannot be read|is a list, not a mapping"),
        ("tags: [", "the metadata between the two lines --- cannot be read"),
    ],
)  # fmt: skip
def test_invalid_metadata_is_named(change: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    key = change.partition(":")[0]
    valid = {"library_name": "transformers", "pipeline_tag": "sentence-similarity"}
    lines = [f"{name}: {value}" for name, value in valid.items() if name != key]
    path.write_text("\n".join(["---", *lines, change, "---", "# Model", ""]))
    with pytest.raises(CardError, match=f"README.md: .*{message}"):
        check_card(path)


def test_a_card_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(CardError, match="no such file"):
        check_card(tmp_path / "README.md")
    (tmp_path / "README.md").write_text("# Only text\n")
    with pytest.raises(CardError, match="no metadata"):
        check_card(tmp_path / "README.md")


# -- contents -------------------------------------------------------------------------------------


def test_the_page_is_whole(card: Path) -> None:
    outline = _look_whole(card)
    assert [heading for heading in outline.headings if heading in HEADINGS] == HEADINGS
    assert outline.images == ["plots/ndcg_by_domain.png", "plots/ndcg_by_popularity.png"]
    for word in (
        "A|B <Kitchen>", "LoRA, rank 16, alpha 32", "663,552 of 23,376,000", HASH, "0" * 40, "10.1145/3705727",
        "2310.14304", "14 minutes", "The energy was not measured", "Poisson bootstrap", "seed 2023", "ties",
        "train.py configs/shop.yaml --run_dir shop --data=shop",
    ):  # fmt: skip
        assert word in outline.text, word
    assert f"of {TRAINING['examples_available']} available" in outline.text


def test_the_figures_are_those_of_results_json(card: Path, run: Path) -> None:
    rows = json.loads((run / "results.json").read_text())["rows"]

    def value(system: str, protocol: str, metric: str, group: str = "users") -> str:
        (found,) = (
            row["value"]
            for row in rows
            if (row["system"], row["protocol"], row["metric"], row["group"]) == (system, protocol, metric, group)
        )
        return f"{100 * found:.2f}"

    tables = Outline(page(card)).tables
    overall = next(table for table in tables if table[0][0] == "protocol")
    assert overall[0] == ["protocol", "system", "NDCG@10", "95\u00a0%\u00a0interval", "R@1", "R@10", "MRR@10"]
    systems = {"this\u00a0model": "tuned"}
    for protocol, lines in (("sampled", overall[1:4]), ("full", overall[4:7])):
        assert lines[0][0] == protocol
        for line in lines:
            cells = [value(systems.get(line[1], line[1]), protocol, f"{m}@{k}") for m, k in
                     (("ndcg", 10), ("recall", 1), ("recall", 10), ("mrr", 10))]  # fmt: skip
            assert [line[2], *line[4:]] == cells
    groups = {
        "all": "users", "mean of domains": "domains", "of A|B <Kitchen>": "A|B <Kitchen>", "of Food": "Food",
        "never seen": "0", "seen 1 to 5 times": "1-5", "seen 6 to 20 times": "6-20", "seen more often": ">20",
    }  # fmt: skip
    for protocol, table in zip(("sampled", "full"), (t for t in tables if t[0][0] == "targets"), strict=True):
        assert [line[0] for line in table[1:]] == list(groups)
        for line in table[1:]:
            assert line[2:5] == [
                value(s, protocol, "ndcg@10", groups[line[0]]) for s in ("popularity", "untuned", "tuned")
            ]


def test_one_domain_has_no_rows_of_domains(one_domain: Path) -> None:
    path = write_model_card(one_domain / "model", repo_id=REPO, run=one_domain)
    outline = _look_whole(path)
    table = next(table for table in outline.tables if table[0][0] == "targets")
    assert [line[0] for line in table[1:]] == ["all", "never seen", "seen 1 to 5 times", "seen 6 to 20 times",
                                               "seen more often"]  # fmt: skip
    assert outline.images == [] and len(check_card(path).data.eval_results) == 4 * 2


def test_without_a_run_no_results_are_claimed(tmp_path: Path) -> None:
    folder = make_model_folder(
        tmp_path / "m",
        adapters=None,
        default_adapter=None,
        backbone_name_or_path="/somewhere/me/bert",
        backbone_revision=None,
    )
    path = write_model_card(folder, repo_id=REPO)
    outline, found = _look_whole(path), check_card(path).data.to_dict()
    assert "No results are known for this model" in outline.text and "Results" not in outline.headings
    assert not {"model-index", "metrics", "license", "base_model", "base_model_relation"} & set(found)
    assert "/somewhere/me" not in path.read_text() and "came from a local folder" in outline.text
    assert "Not stated. Whoever publishes this model has to name one" in outline.text
    assert "no training was recorded" in outline.text
    named = write_model_card(folder, repo_id=REPO, base_model="org/bert", license="mit", output=tmp_path / "x.md")
    found = check_card(named).data.to_dict()
    assert (found["base_model"], found["base_model_relation"], found["license"]) == ("org/bert", "finetune", "mit")


def test_cost_and_terms_are_told_as_stated(run: Path, tmp_path: Path) -> None:
    path = write_model_card(
        run / "model", repo_id=REPO, run=run, output=tmp_path / "kept.md", hardware="2 cores", watts=65,
        data_note="From a shop; research use.", license="cc-by-nc-4.0",
    )  # fmt: skip
    text = _look_whole(path).text
    kilowatt_hours = 812.3 * 65 / 3.6e6
    assert f"estimated {kilowatt_hours:.2g} kWh" in text and "2 cores" in text
    assert "From a shop; research use." in text and "published under cc-by-nc-4.0" in text
    # Plots of a card that is kept among others lie in a folder of its own.
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.png")) == [
        "plots/kept/ndcg_by_domain.png", "plots/kept/ndcg_by_popularity.png"]  # fmt: skip


def test_of_several_adapters_the_measured_one_is_named(run: Path, tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "m", adapters={"books": "adapters/books", "food": "adapters/food"})
    text = _look_whole(write_model_card(folder, repo_id=REPO, run=run, results_of="food")).text
    assert "The figures are those of the adapter food, as it was trained alone" in text
    text = _look_whole(write_model_card(folder, repo_id=REPO, run=run)).text
    assert "those of one of the adapters" in text


def test_facts_of_the_data_card_where_it_is_the_same_data(run: Path, tmp_path: Path, monkeypatch) -> None:
    statistics = {
        "interactions": 1234, "domains": {"Food": {"users": 5, "items": 6, "interactions": 700},
                                          "Kitchen": {"users": 7, "items": 8, "interactions": 534}},
        "titles": {"words": {"mean": 7.5}, "items_sharing_a_title": 3}, "leakage_warning": "it leaks",
    }  # fmt: skip
    prepared = {"hash": HASH, "options": {"k_core": 5}, "statistics": statistics}
    (tmp_path / RECIPE["data"]).mkdir(parents=True)
    file = tmp_path / RECIPE["data"] / "data_card.json"
    monkeypatch.chdir(tmp_path)
    file.write_text(json.dumps(prepared))
    text = _look_whole(write_model_card(run / "model", repo_id=REPO, run=run, output=tmp_path / "a.md")).text
    assert "1,234" in text and "5 users, 6 items, 700 interactions" in text and "It leaks." in text
    file.write_text(json.dumps({**prepared, "hash": "other"}))
    text = _look_whole(write_model_card(run / "model", repo_id=REPO, run=run, output=tmp_path / "b.md")).text
    assert "1,234" not in text
    file.write_text("{")
    with pytest.raises(CardError, match="data_card.json: not JSON"):
        write_model_card(run / "model", repo_id=REPO, run=run, output=tmp_path / "c.md")


# -- bad input ------------------------------------------------------------------------------------


def test_bad_input_is_named_and_an_old_card_stays(run: Path, tmp_path: Path) -> None:
    model, broken, output = run / "model", tmp_path / "run", tmp_path / "README.md"
    output.write_text("old")
    broken.mkdir()
    results = json.loads((run / "results.json").read_text())

    def refuse(message: str, folder: Path = model, **options: object) -> None:
        with pytest.raises(CardError, match=message):
            write_model_card(folder, output=output, **{"repo_id": REPO, **options})
        assert output.read_text() == "old" and not (tmp_path / "plots").exists()

    refuse("'a/b/c' is no name of a repository", repo_id="a/b/c")
    refuse("config.json: no such file; a card is written for a model folder", folder=tmp_path)
    refuse("results.json: no such file, so the run is unfinished", run=broken)
    (broken / "results.json").write_text(json.dumps({**results, "schema": 7}))
    refuse("results.json: schema 7 is not 1.*: evaluate the model again", run=broken)
    (broken / "results.json").write_text(json.dumps({**results, "rows": []}))
    refuse("results.json: holds no rows", run=broken)
    del results["protocol"]["users"]
    (broken / "results.json").write_text(json.dumps(results))
    refuse("results.json: not as `llmrec evaluate` writes it .KeyError..users", run=broken)
    (broken / "ranks.parquet").write_bytes(b"PAR1")
    refuse("evaluate the model again", run=broken)
    (broken / "ranks.parquet").unlink()
    (broken / "config.yaml").write_text("a: [")
    refuse("config.yaml: not YAML", run=broken)
    (broken / "config.yaml").write_text("- a")
    refuse("config.yaml: holds no mapping", run=broken)
    refuse("license 'A Licence' is no identifier", run=run, license="A Licence")
    template = tmp_path / "template.md"
    refuse("template.md: no such template", template=template)
    template.write_text("{{ titel }}")
    refuse("template.md: cannot be filled in: 'titel' is undefined", template=template)
    template.write_text("{{ default_adapter }}")
    refuse("shows a value that is None", folder=make_model_folder(tmp_path / "m", adapters=None, default_adapter=None),
           template=template)  # fmt: skip
    make_model_folder(tmp_path / "bert", model_type="bert")
    refuse("model_type is 'bert', not 'llmrec'", folder=tmp_path / "bert")


def test_a_model_without_ranks_or_baselines_has_a_card(run: Path, tmp_path: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    results["rows"] = [row for row in results["rows"] if row["system"] == "tuned"]
    del results["training"]
    (tmp_path / "results.json").write_text(json.dumps(results))
    text = _look_whole(write_model_card(run / "model", repo_id=REPO, run=tmp_path, output=tmp_path / "a.md")).text
    assert "The evaluation was started with" in text and "minus" not in text


def test_the_command(run: Path, tmp_path: Path, capsys) -> None:
    import argparse

    parser = argparse.ArgumentParser()
    add_arguments(parser)

    def call(*words: str) -> int:
        return run_reporting_errors("llmrec", lambda: run_command(parser.parse_args(list(words))))

    assert call(str(run), REPO, "--output", str(tmp_path / "a.md"), "--language", "en") == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'a.md'}\n"
    assert call(str(run / "model"), REPO, "--output", str(tmp_path / "b.md")) == 0
    assert "b.md, without results" in capsys.readouterr().out
    assert call(str(tmp_path), REPO) == 2
    assert "config.json: no such file" in capsys.readouterr().err


# -- what others do with it -----------------------------------------------------------------------

_READER = """
import json, sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in f"{finder!r}".lower()]
blocks, project = json.load(sys.stdin)
sys.path = [path for path in sys.path if path not in ("", project)]
for block in sorted(blocks, key=lambda block: "llmrec.retrieval" in block):
    if "llmrec.retrieval" in block:
        sys.path.insert(0, project)  # the one example that needs the project
    exec(block, {})
"""


@pytest.mark.slow
def test_the_examples_run(minilm: str, tmp_path: Path) -> None:
    model = LLMRecModel.from_backbone(minilm)
    processor = LLMRecProcessor.from_backbone(minilm, config=model.config)
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["query"], init_lora_weights=False))
    tuned.add_adapter("books", LoraConfig(r=2, target_modules=["value"], init_lora_weights=False))
    folder = tmp_path / "model"
    save_model(tuned.eval(), processor, folder, form="adapter")
    from llmrec.data.catalogue import Catalogue

    items = Catalogue(["a", "b"], ["Milk Jug", "Guitar"], ["x", "x"], torch.zeros(2, dtype=torch.int64).numpy())
    save_index(folder, Recommender.from_pretrained(folder, items, progress=False))
    text = write_model_card(folder, repo_id=REPO).read_text()
    assert "2 adapters, `books` and `default`; `default` is active" in text
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert [re.findall(r"from ([\w.]+) import", block)[0] for block in blocks] == [
        "transformers", "transformers", "sentence_transformers", "transformers",
        "llmrec.retrieval.recommender",
    ]  # fmt: skip
    assert sum(line != "" and "import" not in line for line in blocks[0].splitlines()) <= 5
    assert max(len(line) for block in blocks for line in block.splitlines()) <= 90
    blocks = [block.replace(f'"{REPO}"', json.dumps(str(folder))) for block in blocks]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_HOME")}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _READER], input=json.dumps([blocks, str(Path(__file__).parents[2])]),
        capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"tensor\(\[\[.*\]\]", done.stdout) and "(2, 384)" in done.stdout
    assert "'title': 'Milk Jug'" in done.stdout and "Recommendation(item_id=" in done.stdout


@pytest.mark.slow
def test_the_hubs_validator_takes_the_metadata(card: Path, hub, tmp_path: Path) -> None:
    bad = tmp_path / "bad.md"
    bad.write_text(card.read_text().replace("    metrics:\n", "    metrik:\n", 1))
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from huggingface_hub import ModelCard\n"
        "for path in sys.argv[1:]:\n"
        "    card = ModelCard('---\\nlicense: mit\\n---\\n')\n"
        "    card._content = Path(path).read_text()\n"
        "    type(card).__str__ = lambda self: self._content\n"
        "    try:\n"
        "        card.validate()\n"
        "        print('valid')\n"
        "    except ValueError as error:\n"
        "        print('refused', error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, [card, *KEPT, bad])],
        capture_output=True, text=True, env=hub_environment(hub, tmp_path / "home"), timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    *valid, refused = done.stdout.splitlines()
    assert valid == ["valid"] * (1 + len(KEPT)) and "needs task, dataset, metrics" in refused
    assert sum("POST /api/validate-yaml" in request for request in hub.requests) == 2 + len(KEPT)


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_kept_cards_are_whole(path: Path) -> None:
    outline, found = _look_whole(path), check_card(path).data
    assert [heading for heading in outline.headings if heading in HEADINGS] == HEADINGS
    assert outline.images and found.eval_results and found.base_model_relation == "adapter"
    assert all((path.parent / image).stat().st_size < 100_000 for image in outline.images)
    assert all(0 < result.metric_value < 1 and math.isfinite(result.metric_value) for result in found.eval_results)
