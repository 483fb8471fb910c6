import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertConfig

from configuration_llmrec import LLMRecConfig
from modeling_llmrec import LLMRecModel, LLMRecOutput, LLMRecProcessor

HISTORIES = [["Espresso Beans 1 kg", "Burr Grinder", "Milk Jug"], ["Guitar Strings"]]
ITEMS = ["Electric Guitar", "Coffee Machine", "Barista's Handbook: From Bean to Cup in Twelve Lessons"]


def _both(folder: str, **fields) -> tuple[LLMRecModel, LLMRecProcessor]:
    model = LLMRecModel.from_backbone(folder, **fields)
    return model, LLMRecProcessor.from_backbone(folder, config=model.config)


def test_a_batch_gives_the_vectors_of_one_by_one(family: str, backbone) -> None:
    model, processor = _both(backbone(family))
    with torch.no_grad():
        output = model(**processor(histories=HISTORIES, items=ITEMS))
        users = torch.cat([model.get_user_embeddings(**processor(histories=[h])) for h in HISTORIES])
        items = torch.cat([model(**processor(items=[i])).item_embeds for i in ITEMS])
    assert isinstance(output, LLMRecOutput)
    assert output.scores.shape == (2, 3) and output.loss is None
    assert output.user_embeds.dtype == output.item_embeds.dtype == torch.float32
    torch.testing.assert_close(output.user_embeds, users, atol=2e-6, rtol=0)
    torch.testing.assert_close(output.item_embeds, items, atol=2e-6, rtol=0)
    torch.testing.assert_close(output.scores, users @ items.T, atol=1e-5, rtol=0)
    torch.testing.assert_close(output.user_embeds.norm(dim=1), torch.ones(2))


def test_every_parameter_of_the_backbone_learns(family: str, backbone) -> None:
    # A parameter without a gradient stops distributed training; BERT's own pooler was one.
    model, processor = _both(backbone(family), projection_dim=8, learn_temperature=True)
    model(**processor(histories=HISTORIES, items=ITEMS), positive_index=torch.tensor([1, 0])).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_pretrained_weights_know_that_coffee_is_not_a_guitar(minilm: str) -> None:
    model, processor = _both(minilm)
    with torch.no_grad():
        scores = model(**processor(histories=HISTORIES, items=ITEMS)).scores
    assert scores[0].argmax() in (1, 2) and scores[1].argmax() == 0


def test_the_loss_is_that_of_the_config(minilm: str) -> None:
    model, processor = _both(minilm, contrastive_loss="sampled_softmax", temperature=0.5)
    batch = processor(histories=HISTORIES, items=ITEMS)
    positive = torch.tensor([1, 0])
    mask = torch.tensor([[True, True, False], [True, False, True]])
    with torch.no_grad():
        output = model(**batch, positive_index=positive, candidate_mask=mask)
    expected = torch.nn.functional.cross_entropy((output.scores / 0.5).masked_fill(~mask, float("-inf")), positive)
    torch.testing.assert_close(output.loss, expected)
    with pytest.raises(ValueError, match="item_log_q"):
        model(**batch, positive_index=positive, item_log_q=torch.zeros(3))
    assert isinstance(model(**batch, return_dict=False), tuple)


def test_a_forward_without_input_says_what_it_needs(minilm: str) -> None:
    model, processor = _both(minilm)
    with pytest.raises(ValueError, match="Pass input_ids"):
        model()
    with pytest.raises(ValueError, match="needs both"):
        model(**processor(histories=HISTORIES), positive_index=torch.tensor([0, 0]))


def test_half_precision_scores_are_float32(minilm: str) -> None:
    model, processor = _both(minilm, dtype=torch.bfloat16)
    assert model.backbone.dtype == torch.bfloat16
    with torch.no_grad():
        half = model(**processor(histories=HISTORIES, items=ITEMS)).scores
        full = _both(minilm)[0](**processor(histories=HISTORIES, items=ITEMS)).scores
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, atol=0.02, rtol=0)


def test_t5_refuses_float16(backbone) -> None:
    model, processor = _both(backbone("t5"))
    batch = processor(items=ITEMS)
    with pytest.raises(ValueError, match="t5 overflows in float16"):
        model.half()(**batch)


def test_activation_checkpointing_gives_the_same_gradients(backbone) -> None:
    model, processor = _both(backbone("llama"))
    batch = processor(histories=HISTORIES, items=ITEMS) | {"positive_index": torch.tensor([1, 0])}
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train().zero_grad()
        model(**batch).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


# -- bad input -----------------------------------------------------------------------------------------


def test_a_raw_backbone_is_sent_to_from_backbone(minilm: str) -> None:
    with pytest.raises(ValueError, match=r"is a 'bert' model.*from_backbone"):
        LLMRecModel.from_pretrained(minilm)


def test_a_trained_model_is_sent_to_from_pretrained(minilm: str, tmp_path: Path) -> None:
    model, processor = _both(minilm)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="load it with from_pretrained"):
        LLMRecModel.from_backbone(tmp_path)


def test_a_backbone_without_weights_is_named(minilm: str, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(minilm) / name, tmp_path)
    with pytest.raises(OSError, match=rf"{tmp_path.name}.*safetensors weights"):
        LLMRecModel.from_backbone(tmp_path)


def test_pickled_weights_are_refused(minilm: str, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(minilm) / name, tmp_path)
    torch.save(load_file(Path(minilm) / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="pickled weights are refused"):
        LLMRecModel.from_backbone(tmp_path)


def test_a_backbone_with_missing_tensors_is_refused(minilm: str, tmp_path: Path) -> None:
    shutil.copytree(minilm, tmp_path, dirs_exist_ok=True)
    tensors = load_file(Path(minilm) / "model.safetensors")
    del tensors["encoder.layer.3.output.dense.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="1 tensors are missing, among them 'encoder.layer.3.output.dense.weight'"):
        LLMRecModel.from_backbone(tmp_path)


@pytest.mark.parametrize("layers", [5, 7])
def test_a_checkpoint_of_another_configuration_is_refused(minilm: str, tmp_path: Path, layers: int) -> None:
    model, _ = _both(minilm)
    model.save_pretrained(tmp_path)
    config = LLMRecConfig.from_pretrained(tmp_path)
    config.text_config.num_hidden_layers = layers
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="belong to another configuration"):
        LLMRecModel.from_pretrained(tmp_path)


def test_adapters_without_a_backbone_are_refused(tmp_path: Path) -> None:
    config = LLMRecConfig(text_config=BertConfig(), adapters={"default": "adapters/default"})
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no backbone_name_or_path"):
        LLMRecModel.from_pretrained(tmp_path)


def test_the_tokenizer_may_come_from_elsewhere(minilm: str, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(Path(minilm) / name, tmp_path)
    model = LLMRecModel.from_backbone(tmp_path, tokenizer=AutoTokenizer.from_pretrained(minilm))
    assert model.config.prefix_tokens == ["[CLS]"]
