"""`pipeline("recommendation", …)`: every way of asking, and the same answers as `Recommender`.

What a stranger without our package gets from it stands in test_sentence_transformers.py.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import pipeline

from llmrec.data.catalogue import Catalogue
from llmrec.hub.export import save_model
from llmrec.retrieval.recommender import Recommender
from modeling_llmrec import LLMRecModel, LLMRecProcessor, RecommendationPipeline
from modeling_llmrec.ranking import best, dot_products, encode

TITLES = [
    "Espresso Machine", "Electric Guitar", "Burr Coffee Grinder", "Guitar Strings", "Cookbook", "Espresso Machine",
    "Acoustic Guitar", "Milk Jug, 600 ml", "Handbook of espresso, with forty recipes for home baristas",
]  # fmt: skip
DOMAINS = ["Kitchen", "Music", "Kitchen", "Music", "Books", "Office", "Music", "Kitchen", "Books"]
CANDIDATES = [{"title": t, "domain": d, "id": n} for n, (t, d) in enumerate(zip(TITLES, DOMAINS, strict=True))]
HISTORY = ["Acoustic Guitar", "Guitar Tuner"]


@pytest.fixture(scope="module")
def parts(minilm: str) -> tuple[LLMRecModel, LLMRecProcessor]:
    model = LLMRecModel.from_backbone(minilm)
    return model, LLMRecProcessor.from_backbone(minilm, config=model.config)


@pytest.fixture
def recommend(parts: tuple) -> RecommendationPipeline:
    return pipeline("recommendation", model=parts[0], processor=parts[1], device="cpu", candidates=CANDIDATES)


@pytest.fixture(scope="module")
def recommender(parts: tuple) -> Recommender:
    ids = [f"i{n}" for n in range(len(TITLES))]
    catalogue = Catalogue(ids, TITLES, DOMAINS, np.zeros(len(TITLES), dtype=np.int64))
    return Recommender(*parts, catalogue, progress=False)


@pytest.mark.parametrize("options", [{}, {"k": 3}, {"domain": "Kitchen"}, {"exclude_history": False, "k": 20}])
def test_it_ranks_as_the_recommender_does(recommend, recommender: Recommender, options: dict) -> None:
    histories = [HISTORY, ["Espresso Machine"], ["Milk Jug, 600 ml", "Cookbook", "Tea " * 90]]
    expected = recommender.recommend_batch(histories, **{"k": 10, **options})
    for answers in (recommend(histories, **options), [recommend({"history": h, **options}) for h in histories]):
        for ours, theirs in zip(answers, expected, strict=True):
            assert [f"i{one['id']}" for one in ours] == [one.item_id for one in theirs]
            assert [one["domain"] for one in ours] == [one.domain for one in theirs]
            np.testing.assert_allclose([one["score"] for one in ours], [one.score for one in theirs], atol=1e-6)


def test_a_saved_folder_needs_no_more_than_its_name(parts: tuple, recommend, tmp_path: Path) -> None:
    save_model(*parts, tmp_path / "m")
    loaded = pipeline("recommendation", model=str(tmp_path / "m"), trust_remote_code=True, device="cpu")
    assert type(loaded).__module__.startswith("transformers_modules.")
    answer = loaded({"history": HISTORY, "candidates": TITLES, "domain": None, "k": 2})
    assert [set(one) for one in answer] == [{"title", "score"}] * 2
    assert [one["title"] for one in answer] == [one["title"] for one in recommend(HISTORY, k=2)]
    with pytest.raises(ValueError, match="trust_remote_code"):
        pipeline("recommendation", model=str(tmp_path / "m"), device="cpu")


def test_a_list_of_titles_is_one_history_and_a_list_of_lists_is_a_batch(recommend) -> None:
    one = recommend(HISTORY)
    assert recommend({"history": HISTORY}) == recommend(tuple(HISTORY)) == one
    assert len(recommend([HISTORY, {"history": "Cookbook", "k": 1}])) == 2
    assert recommend("Cookbook") == recommend(["Cookbook"]) == recommend([["Cookbook"]])[0]
    stream = recommend(iter([HISTORY, "Cookbook", {"history": HISTORY}]), batch_size=2)
    assert not isinstance(stream, list)
    assert [[item["id"] for item in answer] for answer in stream] == [
        [item["id"] for item in recommend(request)] for request in (HISTORY, "Cookbook", HISTORY)
    ]


def test_equal_titles_tie_and_keep_their_order(recommend) -> None:
    answer = recommend({"history": ["Coffee"], "exclude_history": False, "k": len(TITLES)})
    twins = [item for item in answer if item["title"] == "Espresso Machine"]
    assert [item["id"] for item in twins] == [0, 5] and twins[0]["score"] == twins[1]["score"]
    # Whatever else is read beside them.
    alone = recommend({"history": ["Coffee"], "candidates": ["Tea", "Espresso Machine", "Tea"]})
    assert [item["title"] for item in alone].count("Tea") == 2


def test_titles_of_the_history_are_left_out_wherever_they_stand(recommend) -> None:
    long = ["Espresso Machine", *[f"Cup number {n}" for n in range(30)]]  # longer than the model reads
    assert "Espresso Machine" not in {item["title"] for item in recommend(long)}
    assert "Espresso Machine" in {item["title"] for item in recommend(long, exclude_history=False)}
    assert recommend({"history": ["Tea"], "candidates": ["Tea"]}) == []


def test_candidates_are_read_once(recommend, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    real = recommend.model.get_item_embeddings
    monkeypatch.setattr(recommend.model, "get_item_embeddings", lambda *a: read.append(len(a[0])) or real(*a))
    recommend([HISTORY, ["Cookbook"]])
    recommend(HISTORY, domain="Music")
    assert sum(read) == len(set(TITLES))
    recommend({"history": HISTORY, "candidates": ["Tea", "Cups"]})
    recommend({"history": HISTORY, "candidates": ["Tea", "Cups"]})
    assert sum(read) == len(set(TITLES)) + 2


def test_another_adapter_reads_the_candidates_anew(minilm: str, tmp_path: Path) -> None:
    model = LLMRecModel.from_backbone(minilm)
    processor = LLMRecProcessor.from_backbone(minilm, config=model.config)
    config = LoraConfig(r=2, target_modules=["query"], init_lora_weights=False)
    torch.manual_seed(0)
    peft_model = get_peft_model(model, config)
    peft_model.add_adapter("books", config)
    save_model(peft_model, processor, tmp_path / "m", form="adapter")
    recommend = pipeline("recommendation", model=str(tmp_path / "m"), trust_remote_code=True, candidates=TITLES)
    first = recommend(HISTORY)
    recommend.model.set_adapter("books")
    assert recommend(HISTORY) != first
    recommend.model.disable_adapters()
    bare = recommend(HISTORY)
    recommend.model.enable_adapters()
    recommend.model.set_adapter("default")
    assert recommend(HISTORY) == first != bare


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        ([], ValueError, "at least one item"),
        ({"history": []}, ValueError, "at least one item"),
        ([["Tea"], []], ValueError, "Request 1: A history must have"),
        ({"history": ["Tea", " "]}, ValueError, "Title 1 is ' '"),
        ({"history": [" ", *["Tea"] * 20]}, ValueError, "Title 0 is ' '"),
        ({"candidates": ["Tea"]}, ValueError, "no history"),
        ({"history": "Tea", "candidates": []}, ValueError, "nothing to rank"),
        ({"history": "Tea", "candidates": ["Cups", None]}, ValueError, "Candidate 1 has the title None"),
        ({"history": "Tea", "candidates": "Cups"}, ValueError, "must be a list"),
        ({"history": "Tea", "domain": "Cars"}, ValueError, "'Cars'; there are 'Books', 'Kitchen', 'Music', 'Office'"),
        ({"history": "Tea", "candidates": ["Cups"], "domain": "Cars"}, ValueError, "no candidate has one"),
        ({"history": "Tea", "k": 0}, ValueError, "k=0"),
        ({"history": "Tea", "top_k": 3}, TypeError, "no 'top_k'"),
        (["Tea", ["Cups"]], TypeError, "Element 0 is a title and element 1 is not"),
        (3, TypeError, "this is a int"),
    ],
)
def test_bad_requests_are_named(recommend, request_, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        recommend(request_)


def test_without_candidates_it_says_where_to_put_them(parts: tuple) -> None:
    bare = RecommendationPipeline(model=parts[0], processor=parts[1], device="cpu")
    with pytest.raises(ValueError, match=r"pass candidates=\[…\]"):
        bare(HISTORY)
    with pytest.raises(TypeError, match="top_k"):
        bare(HISTORY, candidates=TITLES, top_k=3)
    with pytest.raises(ValueError, match="needs the model's processor"):
        RecommendationPipeline(model=parts[0], device="cpu")


def test_the_best_are_cut_in_order_and_nan_is_refused() -> None:
    scores = torch.tensor([1.0, 3.0, 2.0, 3.0, 2.0, 2.0])
    assert best(scores, torch.ones(6, dtype=torch.bool), 3) == [1, 3, 2]
    assert best(scores, torch.tensor([True, False, True, True, True, True]), 10) == [3, 2, 4, 5, 0]
    with pytest.raises(ValueError, match="NaN"):
        best(torch.tensor([float("nan"), 1.0]), torch.ones(2, dtype=torch.bool), 1)


def test_equal_texts_get_equal_vectors_whatever_the_batch(parts: tuple) -> None:
    model, processor = parts
    ids = [processor.layout_item(one) for one in processor.tokenize_titles(["Tea", "Cups and " * 9, "Tea", "Jug"])]
    vectors = encode(model.get_item_embeddings, processor, ids, torch.device("cpu"))
    assert torch.equal(vectors[0], vectors[2]) and vectors.shape == (4, 384)
    alone = encode(model.get_item_embeddings, processor, ids[1:2], torch.device("cpu"))
    torch.testing.assert_close(alone[0], vectors[1], atol=1e-6, rtol=0)
    assert torch.equal(dot_products(vectors, vectors)[:, 1:2], dot_products(vectors, vectors[1:2]))
