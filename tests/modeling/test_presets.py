"""The preset `paper` against the authors' layout written out by hand, token for token."""

from collections.abc import Callable

import pytest
import torch
from transformers import AutoModel, AutoModelForTextEncoding, AutoTokenizer

from modeling_llmrec import LLMRecModel, LLMRecProcessor

LONG = " ".join(f"word{i}" for i in range(60))
HISTORY = [f"Title number {i}, {'with' if i % 2 else 'without'} extras" for i in range(12)] + [LONG]
ITEM = "Stainless Milk Jug, 350 ml"


def _authors_ids(family: str, tokenizer, titles: list[str]) -> list[int]:
    ids: list[int] = []
    for title in titles[-10:]:
        ids += tokenizer(title + "; ", add_special_tokens=False)["input_ids"][:40]
    return [tokenizer.cls_token_id, *ids] if family == "bert" else [*ids, tokenizer.eos_token_id]


def _authors_vector(family: str, folder: str, ids: list[int]) -> torch.Tensor:
    auto_class = AutoModelForTextEncoding if family == "t5" else AutoModel
    model = auto_class.from_pretrained(folder).eval()
    with torch.no_grad():
        hidden = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    return hidden[0] if family == "bert" else hidden[-1]


@pytest.mark.parametrize("family", ["bert", "opt", "t5"])
def test_paper_preset_is_the_authors_recipe(family: str, backbone: Callable[[str], str]) -> None:
    folder = backbone(family)
    model = LLMRecModel.from_backbone(folder, preset="paper")
    processor = LLMRecProcessor.from_backbone(folder, config=model.config)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = processor(histories=[HISTORY, HISTORY[:1]], items=[ITEM, LONG])
    history, item = _authors_ids(family, tokenizer, HISTORY), _authors_ids(family, tokenizer, [ITEM])
    if len(history) > model.config.max_history_tokens:
        pytest.fail("the test's own history must fit")
    assert batch["input_ids"][0].tolist() == history
    assert batch["item_input_ids"][0][: len(item)].tolist() == item

    with torch.no_grad():
        scores = model(**batch).scores
    expected = _authors_vector(family, folder, history) @ _authors_vector(family, folder, item)
    assert scores[0, 0].item() == pytest.approx(expected.item(), rel=1e-5)
    assert (model.config.temperature, model.config.normalize) == (1.0, False)
    assert model.config.contrastive_loss == "sampled_softmax"


@pytest.mark.parametrize(
    ("name", "pooling", "prefix", "suffix"),
    [
        ("bert", "mean", ["[CLS]"], ["[SEP]"]),
        ("modernbert", "mean", ["[CLS]"], ["[SEP]"]),
        ("t5", "mean", [], ["</s>"]),
        ("bart", "mean", ["<s>"], ["</s>"]),
        ("opt", "last", ["</s>"], ["</s>"]),
        ("llama", "last", ["<s>"], ["</s>"]),
    ],
)
def test_defaults_follow_the_family(name: str, pooling: str, prefix: list, suffix: list, backbone) -> None:
    config = LLMRecModel.from_backbone(backbone(name)).config
    assert (config.pooling, config.prefix_tokens, config.suffix_tokens) == (pooling, prefix, suffix)


def test_every_default_can_be_overridden(backbone) -> None:
    fields = {"pooling": "last", "normalize": False, "temperature": 0.2, "max_history_items": 4, "suffix_tokens": []}
    config = LLMRecModel.from_backbone(backbone("bert"), **fields).config
    assert {name: getattr(config, name) for name in fields} == fields


def test_a_decoder_whose_tokenizer_cannot_close_a_text_is_refused(backbone) -> None:
    tokenizer = AutoTokenizer.from_pretrained(backbone("llama"))
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="has no eos_token"):
        LLMRecModel.from_backbone(backbone("llama"), tokenizer=tokenizer)


def test_an_unknown_preset_or_field_is_named(backbone) -> None:
    with pytest.raises(ValueError, match="preset='papre'"):
        LLMRecModel.from_backbone(backbone("bert"), preset="papre")
    with pytest.raises(ValueError, match="'poling' is not a field"):
        LLMRecModel.from_backbone(backbone("bert"), poling="cls")
