import numpy as np
import pytest
import torch

from llmrec.data.title_tokens import TitleTokens
from llmrec.retrieval.encoding import encode_histories, encode_titles
from modeling_llmrec import LLMRecModel, LLMRecProcessor
from modeling_llmrec.ranking import batches_by_length

TITLES = [f"Item {i} " + "of a long and winding title " * (i % 4) for i in range(23)]
HISTORIES = [[0], [1, 2, 3], list(range(23)), [5, 5, 5], [22, 0]]


@pytest.fixture(scope="module")
def parts(shared_weights) -> tuple:
    folder = shared_weights / "stories260K"
    model = LLMRecModel.from_backbone(folder)
    processor = LLMRecProcessor.from_backbone(folder, config=model.config)
    return model, processor, TitleTokens.from_titles(processor, TITLES)


def test_title_tokens_are_the_processors(parts) -> None:
    _, processor, tokens = parts
    assert list(tokens) == processor.tokenize_titles(TITLES)
    assert tokens.lengths.tolist() == [len(ids) for ids in tokens]
    assert tokens[2:4] == [tokens[2], tokens[3]]
    with pytest.raises(IndexError, match="Item 23 of a catalogue of 23"):
        tokens[23]


def test_batched_vectors_equal_those_of_one_by_one(parts) -> None:
    model, processor, tokens = parts
    with torch.no_grad():
        items = torch.cat([model(**processor(items=[title])).item_embeds for title in TITLES])
        users = torch.cat([model(**processor(histories=[[TITLES[i] for i in h]])).user_embeds for h in HISTORIES])
    got = encode_titles(model, processor, tokens, batch_tokens=100, progress=False)
    torch.testing.assert_close(got, items, atol=2e-6, rtol=0)
    histories = [np.asarray(history, dtype=np.int32) for history in HISTORIES]
    got = encode_histories(model, processor, histories, tokens, batch_tokens=100, progress=False)
    torch.testing.assert_close(got, users, atol=2e-6, rtol=0)


def test_rows_come_in_the_order_asked_for(parts) -> None:
    model, processor, tokens = parts
    everything = encode_titles(model, processor, tokens, progress=False)
    some = encode_titles(model, processor, tokens, rows=[7, 3, 19], progress=False)
    torch.testing.assert_close(some, everything[[7, 3, 19]], atol=2e-6, rtol=0)


def test_encoding_leaves_the_training_mode_alone(parts) -> None:
    model, processor, tokens = parts
    model.train()
    first = encode_titles(model, processor, tokens, rows=[0], progress=False)
    assert model.training
    model.eval()
    assert torch.equal(first, encode_titles(model, processor, tokens, rows=[0], progress=False))


def test_an_empty_history_is_named(parts) -> None:
    model, processor, tokens = parts
    with pytest.raises(ValueError, match="History 1 is empty"):
        encode_histories(model, processor, [[0], []], tokens, progress=False)


def test_batches_hold_every_text_once_and_keep_the_budget() -> None:
    lengths = np.random.default_rng(0).integers(1, 40, size=200).tolist()
    batches = list(batches_by_length(lengths, budget=64))
    assert sorted(i for batch in batches for i in batch) == list(range(200))
    assert all(max(lengths[i] for i in batch) * len(batch) <= 64 for batch in batches)
    assert list(batches_by_length([100, 3], budget=64)) == [[0], [1]]


def test_items_with_the_same_text_tie_to_the_last_bit(parts) -> None:
    model, processor, _ = parts
    titles = [*TITLES, "Item 0 ", "Item 0 "]
    tokens = TitleTokens.from_titles(processor, titles)
    vectors = encode_titles(model, processor, tokens, batch_tokens=64, progress=False)
    assert torch.equal(vectors[23], vectors[24])
    torch.testing.assert_close(
        vectors[1:23], encode_titles(model, processor, tokens, rows=range(1, 23), progress=False), atol=2e-6, rtol=0
    )
