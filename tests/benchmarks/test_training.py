"""The sides of the training benchmark compute what they are said to compute, and the commands end as they must."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.training import parser
from benchmarks.training_sides import gpu_run, sentence_transformers
from benchmarks.training_sides.cpu_run import summary
from benchmarks.training_sides.data import Batches, DataChoice, HeldOut, answer, load_data
from benchmarks.training_sides.ours import count
from benchmarks.training_sides.paper import PaperRecipe, rows
from benchmarks.training_sides.shapes import SHAPES, UnavailableError, make_backbone, word_tokenizer
from benchmarks.training_sides.summary import figures, ratio, table
from benchmarks.training_sides.techniques import TechniqueRecipe, group_by_user, one_text_a_row
from llmrec.training.layout import Texts, pack

BATCH = 24


def recipe_of(backbone: str, demo: DataChoice, technique: str | None = None) -> PaperRecipe:
    """Without dropout, so that two passes can be compared."""
    arguments = (backbone, demo.folder, BATCH, 0, 1e-3)
    recipe = TechniqueRecipe(technique, *arguments) if technique else PaperRecipe(*arguments)
    recipe.model.eval()
    return recipe


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("name", ["minilm", "decoder", "t5"])
def test_paper_loss_is_sampled_softmax_of_the_model(name: str, backbones: dict[str, str], demo: DataChoice) -> None:
    """The same candidates through the model's own loss: rows of all examples, each masked to its own eleven."""
    recipe = recipe_of(backbones[name], demo)
    histories, items = recipe.lay_out(recipe.batches[0])
    assert len(items["input_ids"]) == 11 * BATCH
    own = torch.arange(11 * BATCH)[None, :] // 11 == torch.arange(BATCH)[:, None]
    with torch.no_grad():
        loss = recipe.loss(histories, items) / BATCH
        expected = recipe.model(
            **histories,
            item_input_ids=items["input_ids"],
            item_attention_mask=items["attention_mask"],
            positive_index=torch.arange(BATCH) * 11,
            candidate_mask=own,
        ).loss
    assert recipe.model.config.contrastive_loss == "sampled_softmax"
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


def test_paper_slices_give_the_gradients_of_the_batch(backbones: dict[str, str], demo: DataChoice) -> None:
    recipe = recipe_of(backbones["decoder"], demo)
    histories, items = recipe.lay_out(recipe.batches[1])
    whole_loss = recipe.backward(histories, items, BATCH)
    whole = gradients(recipe.model)
    sliced_loss = 0.0
    for start in range(0, BATCH, 8):
        end = start + 8
        sliced_loss += recipe.backward(rows(histories, start, end), rows(items, 11 * start, 11 * end), BATCH)
    sliced = gradients(recipe.model)
    assert sliced_loss == pytest.approx(whole_loss, rel=1e-5)
    assert whole.keys() == sliced.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(sliced[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "technique"), [("minilm", "packing"), ("t5", "packing"), ("decoder", "packing"),
                                                 ("decoder", "prefix_sharing")])  # fmt: skip
def test_one_technique_alone_changes_no_loss(
    name: str, technique: str, backbones: dict[str, str], demo: DataChoice
) -> None:
    plain, recipe = recipe_of(backbones[name], demo), recipe_of(backbones[name], demo, technique)
    recipe.model.load_state_dict(plain.model.state_dict())
    batch = recipe.batches[0]
    histories = recipe.history_texts(batch)
    longest = int(histories.lengths.max()), max(len(ids) for ids in recipe.item_texts(batch))
    with torch.no_grad():
        loss = recipe.packed_loss(recipe.packed(batch, *longest), BATCH)
        expected = plain.loss(*plain.lay_out(batch))
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    if technique == "prefix_sharing":
        assert len(histories) < BATCH, "no two examples of a user came together"


def test_slices_keep_a_users_examples_together(backbones: dict[str, str], demo: DataChoice) -> None:
    recipe = recipe_of(backbones["decoder"], demo, "prefix_sharing")
    batch = recipe.batches[0]
    slices = recipe.slices(batch, 5)
    assert [one["example"] for part in slices for one in part] == [one["example"] for one in batch]
    assert len(group_by_user(batch)) == sum(len(group_by_user(part)) for part in slices)
    assert all(len(part) >= 5 for part in slices[:-1])


def test_one_text_a_row_places_every_token() -> None:
    packed = one_text_a_row(Texts.of([[5, 6, 7], [8]]), 4)
    assert packed.input_ids.tolist() == [[5, 6, 7, 0], [8, 0, 0, 0]]
    assert packed.segment_ids.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    assert (packed.starts.tolist(), packed.ends.tolist()) == ([0, 4], [3, 5])


def test_batches_hold_every_example_once_and_begin_again(demo: DataChoice) -> None:
    batches = Batches(load_data(demo.folder), 100, seed=1)
    whole = len(batches.examples) // 100
    seen = [example["example"] for number in range(whole) for example in batches[number]]
    assert len(set(seen)) == len(seen) == whole * 100
    assert [one["example"] for one in batches[whole]] == seen[:100]
    with pytest.raises(ValueError, match="fewer than a batch"):
        Batches(load_data(demo.folder), 10**9, seed=1)[0]


def test_heldout_questions_are_fair(demo: DataChoice) -> None:
    data = load_data(demo.folder)
    heldout = HeldOut.draw(data, 30, seed=2)
    domains = np.asarray(data.catalogue.domain_codes)
    for history, candidates in zip(heldout.histories, heldout.candidates, strict=True):
        assert len(set(candidates.tolist())) == 11
        assert len(set(domains[candidates].tolist())) == 1
        assert not set(candidates[1:].tolist()) & set(history.tolist())
    again = HeldOut.draw(data, 30, seed=2)
    assert (again.candidates == heldout.candidates).all()


def test_answer_knows_right_from_wrong() -> None:
    users, items = torch.eye(3), torch.cat([torch.eye(3), torch.zeros(1, 3)])
    candidates = np.array([[0, 3], [1, 3], [3, 2]])
    result = answer(users, items, candidates, scale=100.0)
    assert result["heldout_top1"] == pytest.approx(2 / 3, abs=1e-3)
    assert result["heldout_loss"] == pytest.approx(100 / 3, rel=1e-3)
    # A model that gives all the same is right about nothing.
    assert answer(torch.ones(3, 3), torch.ones(4, 3), candidates, 1.0)["heldout_top1"] == 0


def test_counts_of_a_packed_and_of_a_padded_batch() -> None:
    mask = torch.tensor([[True, True, False], [True, True, True]])
    packed = {"texts": [pack([[1, 2, 3], [4]], "segments"), pack([[5, 6]], "mask", 4)], "candidate_mask": mask}
    assert count(packed) == {
        "examples": 2, "tokens": 6, "slots": 6, "squares": 9 + 1 + 4, "negatives_sum": 3, "negatives_min": 1,
    }  # fmt: skip
    padded = {
        "attention_mask": torch.tensor([[1, 1, 1], [1, 0, 0]]),
        "item_attention_mask": torch.tensor([[1, 1]]),
        "candidate_mask": mask,
    }
    found = count(padded)
    assert (found["tokens"], found["slots"], found["squares"]) == (6, 8, 9 + 1 + 4)


def test_figures_are_medians_of_turns_without_excess() -> None:
    step = {"examples": 10, "tokens": 100, "slots": 400, "cpu_seconds": 1.0}
    side = SimpleNamespace(
        name="x",
        rounds=[[step | {"seconds": 1.0}], [step | {"seconds": 5.0, "excess_seconds": 1.0}], [step | {"seconds": 2.0}]],
        facts={"peak_memory_gib": 1.5},
    )
    row = figures(side)
    assert row["examples_per_second"] == 5.0
    assert row["turns"] == [10.0, 2.5, 5.0]
    assert (row["fill_rate"], row["tokens_per_example"], row["examples_seen"]) == (0.25, 10.0, 30)
    slower = row | {"side": "y", "examples_per_second": 2.0}
    assert ratio(row, [slower, None, {"side": "z", "failed": "no memory"}]) == 2.5
    assert ratio(row, [{"side": "z", "failed": "no memory"}]) is None
    text = table([row, slower, {"side": "z", "failed": "Traceback\nno memory"}], "y")
    assert "2.50" in text.splitlines()[1] and text.splitlines()[-1].startswith("z: no memory")


def test_summary_takes_the_best_of_the_others() -> None:
    def row(side: str, rate: float) -> dict:
        return {"side": side, "examples_per_second": rate}

    rows_ = [row("(a) paper", 1.0), row("(b) sentence-transformers", 2.0),
             row("(b) sentence-transformers, bf16", 3.0), row("(c) ours", 12.0)]  # fmt: skip
    assert summary({"minilm": {"rows": rows_}}) == {
        "ours_vs_paper_decoder": None,
        "ours_vs_paper_minilm": 12.0,
        "ours_vs_sentence_transformers_minilm": 4.0,
    }


def test_sentence_transformers_reads_titles_cut_as_the_others_cut_them(demo: DataChoice) -> None:
    titles = ["a b c", " ".join(map(str, range(60)))]
    tokenizer = word_tokenizer(titles)
    cut = sentence_transformers.cut_titles(tokenizer, titles)
    assert cut == ["a b c", " ".join(map(str, range(40)))]
    assert len(tokenizer(cut[1], add_special_tokens=False)["input_ids"]) == 40
    assert sentence_transformers.history_text([str(n) for n in range(12)]).split("; ") == [str(n) for n in range(2, 12)]


def test_a_missing_vocabulary_is_said(nowhere: Path, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="--shared"):
        make_backbone(SHAPES["decoder"], nowhere, [], tmp_path)


def test_model_flops_count_frozen_weights_twice_a_pass() -> None:
    # One text of 10 tokens through 100 frozen weights and 5 trained ones, width 4, 2 layers.
    assert gpu_run.model_flops(100, 5, 10, 100, 4, 2) == (400 + 30) * 10 + 3 * (2 * 4 * 2 * 100)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_without_a_gpu_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="CUDA GPU.*--tiny"):
        gpu_run.run(parser().parse_args(["--gpu"]), tmp_path)


@pytest.mark.slow
def test_gpu_section_on_the_processor(nowhere: Path, demo: DataChoice, tmp_path: Path) -> None:
    arguments = ["--gpu", "--tiny", "--shared", str(nowhere), "--data", str(demo.folder), "--batch-size", "16"]
    result = gpu_run.run(parser().parse_args(arguments), tmp_path)
    row = result["shapes"]["opt-tiny"]
    assert row["settings"]["share_prefixes"] and row["settings"]["precision"] == "bf16"
    assert 0 < row["trained_parameters"] < row["parameters"]
    assert 0 < row["utilisation"] < 1
    assert row["hours_of_the_papers_epoch"] == pytest.approx(1_833_960 / row["examples_per_second"] / 3600, rel=1e-2)
    assert set(result["summary"]["opt-tiny"]) == {"tokens_per_second", "utilisation", "hours_of_the_papers_epoch"}


@pytest.mark.slow
@pytest.mark.parametrize("mode", [["--quick"], ["--only", "decoder", "--rounds", "1", "--technique-seconds", "0.1"]])
def test_the_command_from_end_to_end(
    mode: list[str], repository: Path, nowhere: Path, demo: DataChoice, tmp_path: Path
) -> None:
    output = tmp_path / "result.json"
    command = [sys.executable, str(repository / "benchmarks" / "training.py"), "--tiny", *mode]
    command += ["--shared", str(nowhere), "--data", str(demo.folder), "--batch-size", "24", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env={**os.environ}, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    last = json.loads(done.stdout.splitlines()[-1])
    assert list(last) == ["ours_vs_paper_decoder", "ours_vs_paper_minilm", "ours_vs_sentence_transformers_minilm"]
    result = json.loads(output.read_text(encoding="utf-8"))
    assert result["summary"] == last
    assert {"hardware", "versions", "command", "data"} <= set(result)
    sides = {row["side"]: row for row in result["sections"]["decoder"]["rows"]}
    assert not [row for row in sides.values() if "failed" in row]
    assert sides["(c) ours"]["fill_rate"] == 1
    assert sides["(c) ours"]["negatives_min"] >= 10
    assert sides["(a) paper"]["slots_per_example"] > sides["(c) ours"]["slots_per_example"]
    if "--quick" in mode:
        assert all(value > 0 for value in last.values())
        assert all("heldout_loss" not in row for row in sides.values())
    else:
        assert last["ours_vs_paper_minilm"] is None
        # The same validation users, after equally many examples.
        assert {row["examples_seen"] for row in sides.values()} == {24}
        assert all(0 < row["heldout_loss"] < 100 for row in sides.values())
        techniques = {row["side"] for row in result["techniques"]["decoder"]["rows"]}
        assert {"(a) paper", "shared candidates", "packing", "prefix sharing", "all together"} <= techniques
