import json
from pathlib import Path

import pytest
from transformers import AutoConfig, BertConfig, T5Config

from configuration_llmrec import LLMRecConfig


def test_a_saved_config_comes_back_whole(tmp_path: Path) -> None:
    config = LLMRecConfig(
        text_config=BertConfig(hidden_size=48), pooling="cls", projection_dim=16, normalize=False, temperature=0.3,
        learn_temperature=True, contrastive_loss="bce", item_separator=" | ", max_title_tokens=12,
        max_history_items=3, item_order="newest_first", prefix_tokens=["[CLS]"], suffix_tokens=["[SEP]"],
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert again.to_diff_dict() == config.to_diff_dict()
    assert (again.embedding_dim, again.max_history_tokens) == (16, 3 * 12 + 2)


def test_history_tokens_default_to_what_the_backbone_can_place() -> None:
    assert LLMRecConfig(text_config=BertConfig(max_position_embeddings=100)).max_history_tokens == 100
    assert LLMRecConfig(text_config=BertConfig(), max_history_items=2).max_history_tokens == 80
    # Relative positions have no end.
    assert LLMRecConfig(text_config=T5Config(), max_history_items=100).max_history_tokens == 4000


def test_no_path_of_this_machine_reaches_the_file(tmp_path: Path) -> None:
    source = tmp_path / "private" / "backbone"
    BertConfig().save_pretrained(source)
    config = LLMRecConfig(text_config=AutoConfig.from_pretrained(source))
    config.save_pretrained(tmp_path / "saved")
    assert "private" not in (tmp_path / "saved" / "config.json").read_text()


def test_the_code_map_is_written_even_after_a_hub_rewrote_it(tmp_path: Path) -> None:
    config = LLMRecConfig(text_config=BertConfig(), auto_map={"AutoModel": "someone/repo--modeling_llmrec.LLMRecModel"})
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert saved["AutoModel"] == "modeling_llmrec.LLMRecModel"
    assert set(saved) == {"AutoConfig", "AutoModel", "AutoProcessor"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pooling": "max"}, "pooling"),
        ({"contrastive_loss": "triplet"}, "contrastive_loss"),
        ({"item_order": "random"}, "item_order"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"max_history_items": 0}, "max_history_items=0 must be at least 1"),
        ({"max_history_tokens": 20}, "cannot hold one title"),
        ({"max_history_tokens": 600}, "more than the 512 positions"),
        ({"default_adapter": "books"}, "'books' is not among the adapters"),
    ],
)
def test_a_wrong_value_is_named(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LLMRecConfig(text_config=BertConfig(), **fields)
