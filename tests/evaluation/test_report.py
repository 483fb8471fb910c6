import warnings

import pytest

from llmrec.evaluation import (
    Bootstrap,
    EmbeddingScorer,
    Protocol,
    evaluate_systems,
    load_ranks,
    paired_difference,
    plots,
    write_report,
)

PNG = b"\x89PNG\r\n"


@pytest.fixture
def folder(split, data, tmp_path):
    better = split.user_embeds + 0.7 * split.item_embeds[split.targets]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluation = evaluate_systems(
            [EmbeddingScorer("untuned", split.user_embeds, split.item_embeds),
             EmbeddingScorer("tuned", better, split.item_embeds)],
            data,
            [Protocol("sampled", "sampled", n_negatives=20), "full"],
            bootstrap=Bootstrap(resamples=60),
            progress=False,
        )  # fmt: skip
    return evaluation.save(tmp_path / "run", command=["llmrec", "evaluate", "my model"], report=False)


def test_report_says_what_was_done(folder):
    text = write_report(folder).read_text(encoding="utf-8")
    for part in (
        "hash `0123abcd`",
        "leave-one-out",
        "## Protocol `sampled`",
        "## Protocol `full`",
        "all items, without those of the user's history",
        "`Kitchen` is a small domain",
        "| mean of domains |",
        "### By training interactions of the target",
        "### By domains of the history",
        "| other domains only |",
        "llmrec evaluate 'my model'",
        "expected under ties",
        "60 resamples",
    ):
        assert part in text, part


def test_report_holds_paired_differences(folder):
    text = write_report(folder).read_text(encoding="utf-8")
    ranks = load_ranks(folder)
    rank = {
        system: ranks.filter(system=system, protocol="full")["rank"].to_numpy()
        for system in ("popularity", "untuned", "tuned")
    }
    for other in ("popularity", "untuned"):
        found = paired_difference(rank["tuned"], rank[other], "ndcg@10", bootstrap=Bootstrap(resamples=60))
        assert found.value > 0
        low = f"{'+' if found.low >= 0 else '−'}{100 * abs(found.low):.2f}"
        line = f"| tuned − {other} | users | +{100 * found.value:.2f} | {low} to +{100 * found.high:.2f} |"
        assert line in text[text.index("## Protocol `full`") :]


def test_plots_are_written_and_shown(folder):
    pytest.importorskip("matplotlib")
    text = write_report(folder).read_text(encoding="utf-8")
    names = ("ndcg_by_domain", "ndcg_by_popularity", "ndcg_by_history", "recall_curve")
    for name in names:
        assert f"(plots/{name}.png)" in text
        assert (folder / "plots" / f"{name}.png").read_bytes().startswith(PNG)
    assert len(list((folder / "plots").iterdir())) == len(names)


def test_without_matplotlib_the_report_says_how_to_get_plots(folder, monkeypatch):
    monkeypatch.setattr(plots.importlib.util, "find_spec", lambda name: None)
    text = write_report(folder).read_text(encoding="utf-8")
    assert "pip install 'llmrec[plots]'" in text
    assert not (folder / "plots").exists()
