import json
from pathlib import Path
from typing import Any

import pytest
import torch
from catalogue import Catalogue, CatalogueError, find_catalogue, read_catalogue
from peft import LoraConfig, get_peft_model
from ranker import LONGEST_TITLE, MOST_TITLES, PageError, Ranker, load_model
from safetensors.torch import save_file

from llmrec.data.catalogue import Catalogue as LLMRecCatalogue
from llmrec.hub.catalogue_index import save_index
from llmrec.hub.export import save_model
from llmrec.retrieval.recommender import Recommender
from modeling_llmrec import LLMRecModel, LLMRecProcessor

HISTORY = ["Marlowe Whole Cumin", "Pellingford Stovetop Moka Pot, 6 Cup", "Watercolour brushes", "Coffee for Beginners"]
LONG_HISTORY = [
    f"{word} {number}" for number in range(5) for word in ("Tea", "Bread", "Guitar", "Tent", "Rose", "Knife")
]


def score(ranker: Ranker, history: list[str], title: str) -> float:
    """The model's own word on one pair, asked for alone."""
    with torch.no_grad():
        return float(ranker.model(**ranker.processor(histories=[history], items=[title])).scores[0, 0])


@pytest.mark.parametrize(
    "history", [HISTORY, pytest.param(LONG_HISTORY, marks=pytest.mark.slow)], ids=["short", "beyond the window"]
)
def test_a_contribution_is_the_score_with_a_title_minus_the_score_without_it(ranker: Ranker, history: list) -> None:
    answer = ranker.rank(history, k=2)
    assert len(answer.results) == 2
    for result in answer.results:
        whole = score(ranker, history, result.item.title)
        assert result.score == pytest.approx(whole, abs=1e-5)
        assert len(result.contributions) == len(history)
        for position, contribution in enumerate(result.contributions):
            shorter = [*history[:position], *history[position + 1 :]]
            assert contribution == pytest.approx(whole - score(ranker, shorter, result.item.title), abs=2e-5)
    assert max(abs(c) for result in answer.results for c in result.contributions) > 0.01


def test_titles_beyond_the_window_did_nothing_and_are_counted(ranker: Ranker) -> None:
    answer = ranker.rank(LONG_HISTORY, k=3)
    assert ranker.window == 10 and answer.first_read == 20
    for result in answer.results:
        assert result.contributions[:20] == (0.0,) * 20 and all(result.contributions[20:])
    assert ranker.rank(HISTORY).first_read == 0
    # Fewer fit where titles are long and the model has few tokens.
    processor = ranker.processor
    kept, processor.config.max_history_tokens = processor.config.max_history_tokens, 60
    try:
        wordy = ["one two three four five six seven eight nine ten eleven twelve"] + [
            f"wordy {n} " * 9 for n in range(4)
        ]
        answer = ranker.rank(wordy, k=1)
        assert 0 < answer.first_read < len(wordy) - 1
        assert answer.results[0].contributions[0] == 0.0
    finally:
        processor.config.max_history_tokens = kept


def test_one_title_alone_has_nothing_to_be_compared_with(ranker: Ranker) -> None:
    assert [result.contributions for result in ranker.rank(["Espresso"], k=2).results] == [(None,), (None,)]


def test_ranks_and_scores_are_those_of_the_recommender(ranker: Ranker, items: LLMRecCatalogue) -> None:
    recommender = Recommender(ranker.model, ranker.processor, items, progress=False)
    history = [items.titles[0], *HISTORY]  # the catalogue has the first title twice, and the second of HISTORY once
    for domain in (None, "Garden"):
        ours = ranker.rank(history, domain, k=20)
        theirs = recommender.recommend(history, k=20, domain=domain)
        assert [(r.item.title, r.item.domain) for r in ours.results] == [(r.title, r.domain) for r in theirs]
        assert [r.score for r in ours.results] == pytest.approx([r.score for r in theirs], abs=1e-5)
        assert ours.candidates == (len(items) - 3 if domain is None else len(items.items_of_domain(domain)))


def test_items_of_the_same_title_tie_in_the_order_of_the_catalogue(ranker: Ranker) -> None:
    catalogue = Catalogue(["Milk Jug", "Guitar", "Espresso Cup", "Espresso Cup"], ["a", "b", "z", "c"])
    found = Ranker(ranker.loaded, catalogue).rank(["Espresso Machine", "Coffee"], k=4).results
    assert [result.item.domain for result in found[:2]] == ["z", "c"] and found[0].score == found[1].score


@pytest.mark.parametrize(
    ("history", "domain", "k", "message"),
    [
        ([], None, 10, "Nothing is chosen yet"),
        (["Tea", "  "], None, 10, "Title 2 is blank"),
        (["\u200b\u200d"], None, 10, "Title 1 is blank"),
        (["Tea", "Tea "], None, 10, "Title 2, “Tea”, is in the list twice"),
        (["x" * (LONGEST_TITLE + 1)], None, 10, "Title 1 has 501 characters"),
        ([f"Tea {n}" for n in range(MOST_TITLES + 1)], None, 10, "101 titles"),
        (["Tea"], "Gardn", 10, "no domain “Gardn” here. There are: Books, Garden, Grocery, Kitchen"),
        (["Tea"], None, 0, "not 0"),
    ],
)
def test_what_the_visitor_can_put_right_is_said_plainly(
    ranker: Ranker, history: list, domain: str | None, k: int, message: str
) -> None:
    with pytest.raises(PageError, match=message):
        ranker.rank(history, domain, k)


def test_a_domain_bought_empty_is_said_so(ranker: Ranker) -> None:
    small = Ranker(ranker.loaded, Catalogue(["Milk Jug", "Guitar"], ["Kitchen", "Music"]))
    with pytest.raises(PageError, match="everything from Music"):
        small.rank(["Guitar"], "Music")


def test_examples_are_histories_across_domains_unlike_each_other(ranker: Ranker) -> None:
    examples = ranker.examples()
    assert [len(example) for example in examples] == [3, 3, 3]
    assert all(len({item.domain for item in example}) == 3 for example in examples)
    assert len({example[0].title for example in examples}) == 3
    tiny = Ranker(ranker.loaded, Catalogue(["Milk Jug"], ["Kitchen"]))
    assert [[item.title for item in example] for example in tiny.examples()] == [["Milk Jug"]]


class Told(list):
    def __call__(self, *words: Any) -> None:
        self.append(words)


def test_stored_vectors_are_used_where_they_are_this_models(ranker: Ranker, tmp_path: Path) -> None:
    file = tmp_path / "item_embeddings.safetensors"
    save_file({"item_embeddings": ranker.item_embeds}, file)
    said, progress = Told(), Told()
    again = Ranker(ranker.loaded, ranker.catalogue, vectors=file, say=said, progress=progress)
    assert torch.equal(again.item_embeds, ranker.item_embeds) and not said and not progress

    torch.manual_seed(0)
    save_file({"item_embeddings": ranker.item_embeds + 0.01 * torch.randn_like(ranker.item_embeds)}, file)
    anew = Ranker(ranker.loaded, ranker.catalogue, vectors=file, say=said, progress=progress)
    torch.testing.assert_close(anew.item_embeds, ranker.item_embeds, atol=1e-6, rtol=0)
    assert "not this model's" in said[0][0] and progress[-1][0] == progress[-1][1]

    save_file({"item_embeddings": ranker.item_embeds[:-1].contiguous()}, file)
    with pytest.raises(CatalogueError, match="must hold one table of 313 × 384"):
        Ranker(ranker.loaded, ranker.catalogue, vectors=file)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_index_published_beside_a_model_is_read(
    ranker: Ranker, items: LLMRecCatalogue, tmp_path: Path, dtype: str
) -> None:
    embeds = ranker.item_embeds
    save_index(tmp_path, Recommender(ranker.model, ranker.processor, items, item_embeds=embeds), dtype=dtype)
    file, vectors = find_catalogue(None, str(tmp_path))
    progress = Told()
    again = Ranker(ranker.loaded, read_catalogue(file), vectors=vectors, progress=progress)
    assert not progress and again.catalogue.titles == items.titles
    expected = [result.item for result in ranker.rank(HISTORY, k=3).results]
    assert [result.item for result in again.rank(HISTORY, k=3).results] == expected


@pytest.mark.slow
def test_adapters_take_their_backbone_from_where_they_are_told(minilm: str, tmp_path: Path) -> None:
    model = LLMRecModel.from_backbone(minilm)
    processor = LLMRecProcessor.from_backbone(minilm, config=model.config)
    torch.manual_seed(0)
    lora = LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False)
    save_model(get_peft_model(model, lora), processor, tmp_path / "m", form="adapter")
    config = tmp_path / "m" / "config.json"
    found = json.loads(config.read_text())
    found["backbone_name_or_path"] = "nobody/has-this-backbone"
    config.write_text(json.dumps(found))
    catalogue = Catalogue(["Milk Jug", "Guitar Strings"], ["Kitchen", "Music"])
    loaded = load_model(str(tmp_path / "m"), backbone=minilm)
    answer = Ranker(loaded, catalogue).rank(HISTORY, k=2)
    with torch.no_grad():
        batch = processor(histories=[HISTORY], items=[result.item.title for result in answer.results])
        expected = model.eval()(**batch).scores[0].tolist()
    assert [result.score for result in answer.results] == pytest.approx(expected, abs=1e-5)
