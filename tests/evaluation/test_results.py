import json
import math
import sys

import numpy as np
import pandas as pd
import polars as pl
import pytest

from llmrec.evaluation import (
    Bootstrap,
    Protocol,
    RankResult,
    ResultsError,
    evaluate_systems,
    load_ranks,
    load_results,
    metric_names,
    ranks_to_rows,
    sample_rows,
    write_results,
)
from llmrec.evaluation.results import RESULT_KEYS, ROW_KEYS

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning")
PROTOCOLS = (Protocol("sampled", "sampled", n_negatives=20), "full")
BOOTSTRAP = Bootstrap(resamples=50)


def evaluate(split, data, **options):
    return evaluate_systems([split.scorer], data, PROTOCOLS, bootstrap=BOOTSTRAP, progress=False, **options)


@pytest.fixture
def evaluation(split, data):
    return evaluate(split, data)


@pytest.fixture
def folder(evaluation, tmp_path):
    return evaluation.save(tmp_path / "run", command=["llmrec", "evaluate", "a b"])


def test_ten_lines_of_pandas_give_the_numbers(folder):
    ranks = pd.read_parquet(folder / "ranks.parquet")
    rows = pd.DataFrame(json.loads((folder / "results.json").read_text())["rows"])
    for k in (1, 5, 10, 20, 50):
        hit = ranks["rank"] < k
        ranks[f"recall@{k}"] = hit.astype(float)
        ranks[f"ndcg@{k}"] = hit / np.log2(ranks["rank"] + 2)
        ranks[f"mrr@{k}"] = hit / (ranks["rank"] + 1)
    metrics = [name for name in ranks.columns if "@" in name]
    by_domain = ranks.groupby(["system", "protocol", "domain"])[metrics].mean()
    domains = by_domain.groupby(["system", "protocol"]).mean()
    users = ranks.groupby(["system", "protocol"])[metrics].mean()

    compared = 0
    for row in rows.itertuples():
        key = (row.system, row.protocol)
        if row.group_by == "overall":
            expected = (users if row.group == "users" else domains).loc[key, row.metric]
        elif row.group_by == "domain":
            expected = by_domain.loc[(*key, row.group), row.metric]
        else:
            continue
        assert row.value == pytest.approx(expected, abs=1e-12)
        compared += 1
    # 2 systems x 2 protocols x (2 overall + 3 domains) x 15 metrics.
    assert compared == 2 * 2 * 5 * 15


def test_popularity_and_history_groups(folder, split):
    ranks, rows = load_ranks(folder), load_results(folder)["rows"]
    of_model = ranks.filter((pl.col("system") == "model") & (pl.col("protocol") == "full"))
    assert of_model["train_count"].to_list() == split.train_count[split.targets].tolist()
    buckets = {"0": (0, 0), "1-5": (1, 5), "6-20": (6, 20), ">20": (21, 10**9)}
    seen = {"popularity": 0, "history": 0}
    for row in rows:
        if (row["system"], row["protocol"], row["metric"]) != ("model", "full", "mrr@50"):
            continue
        if row["group_by"] == "popularity":
            low, high = buckets[row["group"]]
            members = of_model.filter(pl.col("train_count").is_between(low, high))
        elif row["group_by"] == "history":
            members = of_model.filter(pl.col("history_domains") == row["group"])
        else:
            continue
        rank = members["rank"].to_numpy()
        assert row["users"] == len(rank)
        assert row["value"] == pytest.approx(((rank < 50) / (rank + 1)).mean(), abs=1e-12)
        seen[row["group_by"]] += row["users"]
    assert seen == {"popularity": split.users, "history": split.users}


def test_schema(folder, split):
    results = load_results(folder)
    assert tuple(results) == RESULT_KEYS
    assert results["schema"] == 1
    assert results["command"] == ["llmrec", "evaluate", "a b"]
    assert results["data"]["hash"] == "0123abcd"
    assert results["data"]["order_policy"] == "timestamp"
    assert results["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(results["versions"]) >= {"torch", "transformers", "peft", "accelerate", "datasets", "polars", "numpy"}
    assert results["versions"]["llmrec"]
    protocol = results["protocol"]
    assert (protocol["split"], protocol["users"], protocol["users_in_split"]) == ("test", 150, 150)
    sampled, full = protocol["protocols"]["sampled"], protocol["protocols"]["full"]
    assert (sampled["n_negatives"], sampled["exclude_target"], sampled["mask_seen"]) == (20, True, True)
    assert [small["domain"] for small in sampled["small_domains"]] == ["Kitchen"]
    assert (full["candidates"], full["mask_seen"]) == ("catalogue", True)
    for row in results["rows"]:
        assert tuple(row) == ROW_KEYS
        assert 0 <= row["value"] <= 1
        assert row["low"] <= row["value"] + 1e-6 and row["value"] - 1e-6 <= row["high"] or row["users"] < 30
    assert [row["metric"] for row in results["rows"][:15]] == metric_names()
    assert list(dict.fromkeys(row["system"] for row in results["rows"])) == ["popularity", "model"]
    ranks = load_ranks(folder)
    assert ranks.columns[:7] == ["system", "protocol", "user_id", "item_id", "domain", "rank", "candidates"]
    assert len(ranks) == 2 * 2 * split.users


def test_interval_of_overall_is_about_the_analytic_one(split, data):
    ranks = evaluate_systems(
        [split.scorer], data, ["full-unmasked"], bootstrap=Bootstrap(resamples=500), progress=False, popularity=False
    )
    row = next(row for row in ranks.rows if (row["group"], row["metric"]) == ("users", "recall@20"))
    half = 1.96 * math.sqrt(row["value"] * (1 - row["value"]) / split.users)
    assert row["high"] - row["low"] == pytest.approx(2 * half, rel=0.2)


def test_shares_of_two_processes_give_the_numbers_of_one(split, data, evaluation):
    """Each process ranks its rows; the merged ranks are those of one process."""
    parts: list[list[RankResult]] = [[], []]
    for share in (0, 1):

        def keep(result, share=share):
            parts[share].append(result)
            return result

        evaluate(split, data, rows=np.arange(split.users)[share::2], merge=keep)
    merged = iter([RankResult.merge(pair) for pair in zip(*parts, strict=True)])
    together = evaluate(split, data, rows=np.arange(split.users)[::2], merge=lambda _: next(merged))
    assert together.rows == evaluation.rows
    assert together.ranks.equals(evaluation.ranks)
    assert together.protocol == evaluation.protocol


def test_a_sample_of_users(split, data, evaluation):
    rows = sample_rows(split.users, 40, seed=1)
    assert len(rows) == 40 and (np.diff(rows) > 0).all()
    assert np.array_equal(rows, sample_rows(split.users, 40, seed=1))
    assert np.array_equal(sample_rows(7, None), np.arange(7))
    assert np.array_equal(sample_rows(7, 9), np.arange(7))
    part = evaluate(split, data, rows=rows)
    assert (part.protocol["users"], part.protocol["users_in_split"]) == (40, 150)
    users = set(part.ranks["user_id"])
    assert part.ranks.equals(evaluation.ranks.filter(pl.col("user_id").is_in(users)))
    with pytest.raises(ValueError, match="at least 1"):
        sample_rows(7, 0)
    with pytest.raises(ValueError, match="no users"):
        evaluate(split, data, rows=np.array([], dtype=int))


def test_table_shows_overall_and_every_domain(evaluation):
    table = evaluation.table()
    for word in ("sampled: the target and 20 items", "overall", "mean of domains", "Books", "Coffee", "Kitchen"):
        assert word in table
    value = 100 * evaluation.value("model", "full", "ndcg@10", "domain", "Books")
    line = next(line for line in table[table.index("\nfull:") :].splitlines() if f"{value:.2f}" in line)
    assert "model" in line
    assert max(map(len, table.splitlines())) <= 110
    with pytest.raises(KeyError):
        evaluation.value("model", "full", "ndcg@11")


def test_existing_results_are_not_overwritten_unasked(evaluation, folder):
    before = (folder / "results.json").read_bytes()
    with pytest.raises(ResultsError, match="results.json exists already"):
        evaluation.save(folder)
    assert (folder / "results.json").read_bytes() == before
    evaluation.save(folder, overwrite=True)
    assert (folder / "results.json").read_bytes() != before  # another command


def test_nothing_half_written(evaluation, tmp_path):
    broken = [*evaluation.rows, {**evaluation.rows[0], "value": math.nan}]
    blocks = {"protocol": evaluation.protocol, "data": evaluation.data, "command": []}
    with pytest.raises(ResultsError, match=f"row {len(evaluation.rows)}: value nan"):
        write_results(tmp_path / "run", ranks=evaluation.ranks, rows=broken, **blocks)
    with pytest.raises(ValueError, match="JSON compliant"):
        write_results(
            tmp_path / "run", ranks=evaluation.ranks, rows=evaluation.rows, **{**blocks, "data": {"x": math.inf}}
        )
    assert not (tmp_path / "run").exists()
    with pytest.raises(pl.exceptions.ColumnNotFoundError):
        write_results(tmp_path / "run", ranks=evaluation.ranks.drop("rank"), rows=evaluation.rows, **blocks)
    assert list((tmp_path / "run").iterdir()) == []


def test_extra_keys(evaluation, tmp_path):
    folder = evaluation.save(tmp_path / "run", report=False, extra={"training": {"steps": 5}})
    assert load_results(folder)["training"] == {"steps": 5}
    with pytest.raises(ResultsError, match="'rows' is a key of the schema"):
        evaluation.save(tmp_path / "other", extra={"rows": []})


def test_reading_bad_files(folder, tmp_path):
    path = folder / "results.json"
    results = json.loads(path.read_text())
    with pytest.raises(ResultsError, match="no such file"):
        load_results(tmp_path / "nowhere")
    for change, message in (
        ({"schema": 2}, "schema 2 is not 1"),
        ({"rows": [{"system": "x"}]}, "row 0 lacks protocol"),
        ({"rows": [{**results["rows"][0], "value": None}]}, "row 0: value None"),
    ):
        path.write_text(json.dumps({**results, **change}))
        with pytest.raises(ResultsError, match=message):
            load_results(folder)
    del results["data"]
    path.write_text(json.dumps(results))
    with pytest.raises(ResultsError, match="missing data"):
        load_results(path)
    path.write_text('{"schema": 1,\n"rows": [')
    with pytest.raises(ResultsError, match="results.json: line 2: not JSON"):
        load_results(path)
    load_ranks(folder).drop("candidates").write_parquet(folder / "ranks.parquet")
    with pytest.raises(ResultsError, match="missing column candidates"):
        load_ranks(folder)


def test_systems_must_rank_the_same_users(evaluation):
    one_less = evaluation.ranks.filter((pl.col("system") != "model") | (pl.col("user_id") != "user 3"))
    with pytest.raises(ResultsError, match="'model' under protocol 'sampled' ranks other users"):
        ranks_to_rows(one_less, bootstrap=BOOTSTRAP)
    with pytest.raises(ResultsError, match="missing column domain"):
        ranks_to_rows(evaluation.ranks.drop("domain"))
    with pytest.raises(ResultsError, match="no rows"):
        ranks_to_rows(evaluation.ranks.head(0))


def test_names_must_differ(split, data):
    with pytest.raises(ValueError, match="systems need different names"):
        evaluate_systems([split.scorer, split.scorer], data, progress=False)
    with pytest.raises(ValueError, match="unknown protocol 'ful': choose among sampled, "):
        evaluate_systems([split.scorer], data, ["ful"], progress=False)


def test_collapse_is_noted(split, data):
    split.scorer.item_embeds.fill_(1.0)
    found = evaluate(split, data)
    assert len(found.protocol["notes"]) == 2
    assert all("'model'" in note and "collapsed" in note for note in found.protocol["notes"])
