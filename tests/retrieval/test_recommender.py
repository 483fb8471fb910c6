import json

import numpy as np
import pytest
import torch

from llmrec.cli import main
from llmrec.data.catalogue import Catalogue
from llmrec.retrieval.recommender import Recommender
from modeling_llmrec import LLMRecModel, LLMRecProcessor

TITLES = [
    "Espresso Machine",
    "Electric Guitar",
    "Burr Coffee Grinder",
    "Guitar Strings",
    "Cookbook",
    "Espresso Machine",
]
DOMAINS = ["Kitchen", "Music", "Kitchen", "Music", "Books", "Office"]


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    ids = [f"i{n}" for n in range(len(TITLES))]
    return Catalogue(ids, TITLES, DOMAINS, np.zeros(len(TITLES), dtype=np.int64))


@pytest.fixture
def recommender(minilm: str, catalogue: Catalogue) -> Recommender:
    model = LLMRecModel.from_backbone(minilm)
    return Recommender(model, LLMRecProcessor.from_backbone(minilm, config=model.config), catalogue, progress=False)


def test_recommendations_are_the_models_scores_best_first(recommender: Recommender) -> None:
    history = ["Acoustic Guitar", "Guitar Tuner"]
    found = recommender.recommend(history, k=3)
    with torch.no_grad():
        scores = recommender.model(**recommender.processor(histories=[history], items=TITLES)).scores[0]
    order = scores.argsort(descending=True)[:3].tolist()
    assert [item.item_id for item in found] == [f"i{n}" for n in order]
    assert [item.score for item in found] == pytest.approx(scores[order].tolist(), abs=1e-5)
    assert {item.domain for item in found[:2]} == {"Music"}


def test_what_the_user_has_is_left_out_wherever_the_title_stands(recommender: Recommender) -> None:
    found = recommender.recommend(["Espresso Machine"], k=10)
    assert len(found) == 4 and "Espresso Machine" not in [item.title for item in found]
    kept = recommender.recommend(["Espresso Machine"], k=10, exclude_history=False)
    assert len(kept) == 6 and kept[0].title == "Espresso Machine"


def test_one_domain_only(recommender: Recommender) -> None:
    found = recommender.recommend(["Espresso Machine"], k=10, domain="Music")
    assert [item.domain for item in found] == ["Music", "Music"]
    with pytest.raises(ValueError, match="no domain 'Musik'.*Books, Kitchen"):
        recommender.recommend(["Espresso Machine"], domain="Musik")


def test_a_batch_equals_one_by_one(recommender: Recommender) -> None:
    histories = [["Acoustic Guitar"], ["Milk Jug", "Espresso Machine"], ["Cookbook"]]
    batch = recommender.recommend_batch(histories, k=2)
    for history, found in zip(histories, batch, strict=True):
        alone = recommender.recommend(history, k=2)
        assert [item.item_id for item in found] == [item.item_id for item in alone]
        assert [item.score for item in found] == pytest.approx([item.score for item in alone], abs=1e-5)


def test_new_items_are_recommended_without_training(recommender: Recommender) -> None:
    before = recommender.item_embeds.clone()
    recommender.add_items(["Guitar Capo"], ["new"], ["Music"])
    found = recommender.recommend(["Guitar Capo and Strings"], k=1)
    assert found[0].item_id == "new"
    assert torch.equal(recommender.item_embeds[:-1], before)
    # From scratch over the longer catalogue gives the same vectors.
    fresh = Recommender(recommender.model, recommender.processor, recommender.catalogue, progress=False)
    torch.testing.assert_close(fresh.item_embeds, recommender.item_embeds, atol=2e-6, rtol=0)
    assert "new" not in [item.item_id for item in recommender.recommend(["Guitar Capo"], k=10)]
    with pytest.raises(ValueError, match="new"):
        recommender.add_items(["Another"], ["new"], ["Music"])


@pytest.mark.parametrize(
    ("history", "message"), [("a title", "is a string"), ([], "History 0 is empty"), ([" "], "' '")]
)
def test_bad_histories_are_named(recommender: Recommender, history, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recommender.recommend(history)


def test_the_command_prints_what_the_class_returns(
    recommender: Recommender, catalogue: Catalogue, tmp_path, capsys
) -> None:
    recommender.model.save_pretrained(tmp_path / "model")
    recommender.processor.save_pretrained(tmp_path / "model")
    catalogue.save(tmp_path / "catalogue.parquet")
    arguments = ["recommend", "--model", str(tmp_path / "model"), "--catalogue", str(tmp_path), "-k", "2"]
    assert main([*arguments, "--json", "Acoustic Guitar"]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [item["item_id"] for item in printed] == [
        item.item_id for item in recommender.recommend(["Acoustic Guitar"], k=2)
    ]
    assert main([*arguments, "Acoustic Guitar"]) == 0
    assert "Guitar" in capsys.readouterr().out
