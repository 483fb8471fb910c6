from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor, AutoTokenizer

from configuration_llmrec import LLMRecConfig
from modeling_llmrec import LLMRecProcessor

TITLES = ["Single-Origin Espresso Beans, 1 kg", "Burr Grinder", "Barista's Handbook: Milk & Foam", "Jug"]


@pytest.fixture
def make(minilm: str) -> Callable[..., LLMRecProcessor]:
    tokenizer = AutoTokenizer.from_pretrained(minilm)

    def processor(**fields) -> LLMRecProcessor:
        fields = {"prefix_tokens": ["[CLS]"], "suffix_tokens": ["[SEP]"], **fields}
        return LLMRecProcessor(tokenizer, config=LLMRecConfig(**fields))

    return processor


def test_titles_stand_one_after_the_other_between_the_special_tokens(make) -> None:
    processor = make()
    batch = processor(histories=[TITLES[:2], TITLES[2:]], items=TITLES)
    text = processor.tokenizer.decode(batch["input_ids"][0])
    assert text.startswith("[CLS] single - origin espresso beans, 1 kg ; burr grinder ; [SEP]")
    assert batch["attention_mask"].sum(1).tolist() == [
        len(processor.layout_history(processor.tokenize_titles(h))) for h in (TITLES[:2], TITLES[2:])
    ]
    assert batch["item_input_ids"].shape == batch["item_attention_mask"].shape
    assert len(batch["item_input_ids"]) == 4
    # An item is a history of one.
    alone = processor(histories=[[TITLES[1]]])["input_ids"][0].tolist()
    assert batch["item_input_ids"][1][: len(alone)].tolist() == alone


def test_padding_is_on_the_right_and_masked(make) -> None:
    batch = make()(histories=[TITLES, TITLES[3:]])
    short = int(batch["attention_mask"][1].sum())
    assert batch["attention_mask"][1].tolist() == [1] * short + [0] * (batch["input_ids"].shape[1] - short)
    assert (batch["input_ids"][1, short:] == 0).all()


def test_only_the_newest_items_are_read(make) -> None:
    processor = make(max_history_items=2)
    assert torch.equal(processor(histories=[TITLES])["input_ids"], processor(histories=[TITLES[-2:]])["input_ids"])


def test_the_token_limit_drops_the_oldest_items_whole(make) -> None:
    processor = make(max_title_tokens=10, max_history_tokens=20)
    ids = processor.tokenize_titles(TITLES)
    laid_out = processor.layout_history(ids)
    kept = processor.kept_items([len(i) for i in ids])
    assert 0 < kept < 4
    assert laid_out == [101, *(t for title in ids[-kept:] for t in title), 102]
    assert len(laid_out) <= 20 < len(laid_out) + len(ids[-kept - 1])


def test_newest_first_turns_the_items_not_the_words(make) -> None:
    forward, backward = make(), make(item_order="newest_first")
    assert torch.equal(backward(histories=[TITLES])["input_ids"], forward(histories=[TITLES[::-1]])["input_ids"])
    # "Newest" is still the end of the list when the history is cut.
    cut = make(item_order="newest_first", max_history_items=1)
    assert torch.equal(cut(histories=[TITLES])["input_ids"], forward(histories=[TITLES[-1:]])["input_ids"])


def test_a_title_is_cut_at_its_limit_separator_included(make) -> None:
    processor = make(max_title_tokens=5)
    long, short = processor.tokenize_titles(["one two three four five six seven", "one"])
    whole = processor.tokenizer("one two three four five six seven; ", add_special_tokens=False)["input_ids"]
    assert long == whole[:5]
    assert processor.tokenizer.decode(short) == "one ;"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Pass histories"),
        ({"histories": [["a"], []]}, "History 1: A history must have at least one item"),
        ({"histories": [["a", " "]]}, "History 0: Title 1 is ' '"),
        ({"histories": ["a title"]}, "History 0 is a string"),
        ({"items": "a title"}, "items is a string"),
        ({"items": ["a", None]}, "Title 1 is None"),
    ],
)
def test_bad_input_is_named(make, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()(**arguments)


def test_arguments_that_the_config_owns_are_refused(make) -> None:
    with pytest.raises(TypeError, match="padding"):
        make()(items=["a"], padding=True)


def test_a_tokenizer_without_the_special_token_is_refused(make) -> None:
    with pytest.raises(ValueError, match="suffix_tokens of the config names '</s>'"):
        make(suffix_tokens=["</s>"])


def test_saved_with_the_model_and_loaded_by_auto_processor(make, tmp_path: Path) -> None:
    processor = make(max_title_tokens=7, item_separator=" | ")
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(again, LLMRecProcessor)
    assert again.config.to_dict() == processor.config.to_dict()
    assert torch.equal(again(items=TITLES)["item_input_ids"], processor(items=TITLES)["item_input_ids"])


def test_text_may_be_an_item_or_a_history(make) -> None:
    processor = make()
    batch = processor(
        text=[TITLES[0], TITLES[:3]],
        text_kwargs={"padding": True, "truncation": "longest_first"},
        images_kwargs={},
        common_kwargs={"return_tensors": "pt"},
    )
    assert torch.equal(batch["input_ids"], processor(histories=[TITLES[:1], TITLES[:3]])["input_ids"])
    assert set(batch) == {"input_ids", "attention_mask"}
    lines = processor(text=[TITLES[0], "\n".join(TITLES[:3]) + "\n"])  # one title a line
    assert torch.equal(lines["input_ids"], batch["input_ids"])
    assert torch.equal(processor(text=TITLES[0])["input_ids"], processor(items=TITLES[:1])["item_input_ids"])


@pytest.mark.parametrize("options", [{"max_length": 8}, {"text_kwargs": {"padding": "max_length"}}, {"stride": 2}])
def test_options_of_a_tokenizer_that_change_the_layout_are_refused(make, options: dict) -> None:
    with pytest.raises(TypeError, match="the layout comes from the checkpoint's config"):
        make()(text=TITLES, **options)
    with pytest.raises(ValueError, match="not both"):
        make()(text=TITLES, items=TITLES)


def test_what_is_saved_does_not_depend_on_what_was_read(make, tmp_path: Path) -> None:
    processor = make()
    processor.save_pretrained(tmp_path / "before")
    processor(histories=[TITLES])
    processor.save_pretrained(tmp_path / "after")
    AutoProcessor.from_pretrained(tmp_path / "after").save_pretrained(tmp_path / "again")
    names = sorted(path.name for path in (tmp_path / "before").iterdir())
    assert {"modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"} < set(names)
    for folder in ("after", "again"):
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == names
        for name in names:
            assert (tmp_path / "before" / name).read_bytes() == (tmp_path / folder / name).read_bytes(), name
