"""Packed texts give the vectors and gradients of the same texts one by one, in every family."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoTokenizer,
    MistralConfig,
    MistralModel,
    ModernBertConfig,
    ModernBertModel,
    RobertaConfig,
    RobertaModel,
)

import modeling_llmrec.reading
import modeling_llmrec.segment_attention
from llmrec.data.title_tokens import TitleTokens
from llmrec.training.layout import Specials, Text, Texts, lay_out, pack
from llmrec.training.packing import ATTENTION_OF, can_share_prefixes, choose_packing, packing_error
from modeling_llmrec import LLMRecModel, LLMRecProcessor
from modeling_llmrec.last_layer import find_last_layer
from modeling_llmrec.pooling import pool_packed
from modeling_llmrec.presets import is_causal
from modeling_llmrec.reading import read_packed
from tests.modeling.families import FAMILIES, SMALL

# Differences of float32 sums in another order; vectors have length 1.
VECTORS = 2e-6
# Of gradients, relative to the largest of each parameter.
GRADIENTS = 2e-4

HOWS = ("segments", "mask")
LENGTHS = (23, 1, 9, 14, 9)


def texts_of(processor: LLMRecProcessor, vocabulary: int, lengths: Sequence[int] = LENGTHS) -> list[list[int]]:
    generator = np.random.default_rng(0)
    return [processor.layout_item(generator.integers(0, vocabulary, length).tolist()) for length in lengths]


def gradients(model: torch.nn.Module, vectors: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    weights = torch.linspace(-1, 1, vectors.numel()).view_as(vectors)
    (vectors * weights).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(
    model: Any, packed: Callable[[], torch.Tensor], alone: Callable[[], torch.Tensor], attention: str
) -> None:
    model.backbone.set_attn_implementation("sdpa")
    expected = alone()
    expected_gradients = gradients(model, expected)
    model.backbone.set_attn_implementation(attention)
    found = packed()
    found_gradients = gradients(model, found)
    torch.testing.assert_close(found, expected, atol=VECTORS, rtol=0)
    assert found_gradients.keys() == expected_gradients.keys() and found_gradients
    largest = max(float(gradient.abs().max()) for gradient in expected_gradients.values())
    for name, gradient in expected_gradients.items():
        # A gradient that is zero but for rounding is compared with the others.
        scale = max(float(gradient.abs().max()), 1e-2 * largest)
        assert float((found_gradients[name] - gradient).abs().max()) <= GRADIENTS * scale, name


def one_by_one(model: Any, texts: Sequence[Sequence[int]]) -> torch.Tensor:
    return torch.cat([model.get_user_embeddings(torch.tensor([list(text)])) for text in texts])


def load(folder: str, **fields: Any) -> tuple[LLMRecModel, LLMRecProcessor]:
    model = LLMRecModel.from_backbone(folder, **fields)
    return model, LLMRecProcessor.from_backbone(folder, config=model.config)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_texts_are_read_like_single_ones(backbone: Callable[[str], str], family: str, how: str) -> None:
    if (family, how) == ("t5", "segments"):
        pytest.skip("T5 adds a bias of length² to its scores: it is packed under a mask")
    model, processor = load(backbone(family))
    texts = texts_of(processor, 29)
    packed = pack(texts, how, row_tokens=40)
    assert how == "segments" or packed.input_ids.shape[0] > 1  # several rows, and several texts in one
    assert_same(model, lambda: model(texts=packed).embeddings, lambda: one_by_one(model, texts), ATTENTION_OF[how])


@pytest.mark.parametrize("pooling", ["cls", "last", "mean"])
def test_every_pooling(backbone: Callable[[str], str], pooling: str) -> None:
    model, processor = load(backbone("bert"), pooling=pooling)
    texts = texts_of(processor, 1000)
    assert_same(
        model, lambda: model(texts=pack(texts)).embeddings, lambda: one_by_one(model, texts), ATTENTION_OF["segments"]
    )


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("suffix", ["one token", "two tokens", "none"])
@pytest.mark.parametrize("family", ["opt", "llama", "qwen3"])
def test_shared_prefixes_are_read_like_single_ones(
    backbone: Callable[[str], str], family: str, suffix: str, how: str
) -> None:
    folder = backbone(family)
    eos = AutoTokenizer.from_pretrained(folder).eos_token
    model, processor = load(folder, suffix_tokens={"one token": [eos], "two tokens": [eos, eos], "none": []}[suffix])
    titles = [list(range(5 + 3 * item, 9 + 5 * item)) for item in range(5)]
    read = np.array([True, False, True, True, True])
    shared = lay_out(TitleTokens.of(titles), Specials.of(processor), np.arange(5), np.array([5]), read)
    texts = Texts.of(
        [
            Text(processor.layout_item([7, 8, 9])),
            Text(shared.ids, shared.positions, shared.queries, tuple(shared.ends.tolist())),
        ]
    )
    alone = [processor.layout_item([7, 8, 9])]
    alone += [processor.layout_history(titles[: end + 1]) for end in np.flatnonzero(read)]
    packed = pack(texts, how)
    assert len(packed) == len(alone) == 5
    assert_same(model, lambda: model(texts=packed).embeddings, lambda: one_by_one(model, alone), ATTENTION_OF[how])


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("kind", ["roberta", "mistral", "modernbert"])
def test_odd_positions_and_sliding_windows(minilm: str, tmp_path: Any, kind: str, how: str) -> None:
    """RoBERTa counts positions from an offset; Mistral's and ModernBERT's windows are shorter than the texts."""
    tokenizer = AutoTokenizer.from_pretrained(minilm, eos_token="[SEP]")
    ids = {"pad_token_id": 0, "cls_token_id": 101, "sep_token_id": 102, "bos_token_id": 101, "eos_token_id": 102}
    torch.manual_seed(0)
    # As large as after training: small random weights would hide what a token beyond the window adds.
    shape = {**SMALL, "vocab_size": len(tokenizer), "intermediate_size": 64, "initializer_range": 0.5}
    backbone = {
        "roberta": lambda: RobertaModel(RobertaConfig(**shape, max_position_embeddings=200, pad_token_id=1)),
        "mistral": lambda: MistralModel(MistralConfig(**shape, num_key_value_heads=2, sliding_window=6)),
        "modernbert": lambda: ModernBertModel(
            ModernBertConfig(
                **shape, **ids, max_position_embeddings=200, local_attention=8, global_attn_every_n_layers=2
            )
        ),
    }[kind]()
    backbone.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, processor = load(str(tmp_path), suffix_tokens=["[SEP]"], pooling="last")
    texts = texts_of(processor, 1000)
    assert_same(
        model,
        lambda: model(texts=pack(texts, how, row_tokens=40)).embeddings,
        lambda: one_by_one(model, texts),
        ATTENTION_OF[how],
    )


@pytest.mark.parametrize("family", ["opt", "llama", "qwen3"])
def test_the_last_layer_is_computed_where_vectors_are_read(backbone: Callable[[str], str], family: str) -> None:
    model, processor = load(backbone(family))
    model.backbone.set_attn_implementation(ATTENTION_OF["segments"])
    packed = pack(texts_of(processor, 29))
    seen: list[int] = []
    last = find_last_layer(model.backbone)
    assert last is not None
    hook = last.output.register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))
    found = model(texts=packed).embeddings
    found_gradients = gradients(model, found)
    hook.remove()
    assert seen == [len(LENGTHS)] and packed.input_ids.shape[1] > 50
    expected = model.head(pool_packed(read_packed(model.backbone, packed, causal=True), packed, "last"))
    torch.testing.assert_close(found, expected, atol=VECTORS, rtol=0)
    for name, gradient in gradients(model, expected).items():
        torch.testing.assert_close(found_gradients[name], gradient, atol=1e-5, rtol=1e-3)


def test_layers_that_are_computed_again_are_computed_whole(backbone: Callable[[str], str]) -> None:
    model, _ = load(backbone("opt"))
    assert find_last_layer(model.backbone) is not None
    model.gradient_checkpointing_enable()
    assert find_last_layer(model.backbone) is None
    assert find_last_layer(load(backbone("bert"))[0].backbone) is None  # normalises after its attention


def test_several_passes_are_concatenated(backbone: Callable[[str], str]) -> None:
    model, processor = load(backbone("bert"))
    texts = texts_of(processor, 1000)
    model.backbone.set_attn_implementation(ATTENTION_OF["segments"])
    with torch.no_grad():
        whole = model(texts=pack(texts)).embeddings
        passes = model(texts=[pack(texts[:2]), pack(texts[2:])]).embeddings
    torch.testing.assert_close(passes, whole, atol=VECTORS, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "opt"])
def test_flex_attention_is_read_like_single_texts(backbone: Callable[[str], str], family: str) -> None:
    """Forward only: on a processor flex attention has no backward pass."""
    model, processor = load(backbone(family))
    texts = texts_of(processor, 29)
    expected = one_by_one(model, texts)
    model.backbone.set_attn_implementation("flex_attention")
    with torch.no_grad():
        found = model(texts=pack(texts, "flex", row_tokens=64)).embeddings
    torch.testing.assert_close(found, expected.detach(), atol=VECTORS, rtol=0)


# -- a wrong mask is found out -----------------------------------------------------------------------


def seeing_neighbours(packed: Any, causal: bool, window: int | None = None) -> torch.Tensor:
    """A mask that forgets the borders of the texts."""
    length = packed.segment_ids.shape[1]
    mask = torch.ones((packed.segment_ids.shape[0], 1, length, length), dtype=torch.bool)
    return mask.tril() if causal else mask


def seeing_queries(query_ids: torch.Tensor) -> torch.Tensor:
    """A mask that lets later titles see the queries before them."""
    return torch.ones((*query_ids.shape, query_ids.shape[-1]), dtype=torch.bool)


def test_a_mask_without_borders_changes_vectors(
    backbone: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for family in ("bert", "opt"):
        model, processor = load(backbone(family))
        assert packing_error(model, processor, "mask", can_share_prefixes(model.config)) < 1e-5
        with monkeypatch.context() as patch:
            patch.setattr(modeling_llmrec.reading, "block_mask", seeing_neighbours)
            assert packing_error(model, processor, "mask", can_share_prefixes(model.config)) > 1e-3
            with pytest.raises(ValueError, match="packing='mask' does not work .* off by"):
                choose_packing(model, processor, "mask")


def test_a_mask_that_shows_queries_changes_vectors(
    backbone: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = load(backbone("llama"))
    model.backbone.set_attn_implementation(ATTENTION_OF["segments"])
    assert packing_error(model, processor, "segments", share=True) < 1e-5
    monkeypatch.setattr(modeling_llmrec.segment_attention, "queries_apart", seeing_queries)
    assert packing_error(model, processor, "segments", share=True) > 1e-3


def test_positions_that_do_not_start_anew_change_vectors(backbone: Callable[[str], str]) -> None:
    model, processor = load(backbone("bert"))
    packed = pack(texts_of(processor, 1000))
    model.backbone.set_attn_implementation(ATTENTION_OF["segments"])
    with torch.no_grad():
        right = model(texts=packed).embeddings
        packed.position_ids = torch.arange(packed.input_ids.numel())[None]
        wrong = model(texts=packed).embeddings
    torch.testing.assert_close(wrong[0], right[0], atol=VECTORS, rtol=0)  # the first text starts at 0 anyway
    assert float((wrong[1:] - right[1:]).abs().max()) > 1e-2


# -- the choice --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_choice_on_a_processor(backbone: Callable[[str], str], family: str) -> None:
    model, processor = load(backbone(family))
    choice = choose_packing(model, processor)
    assert choice.how == ("mask" if family == "t5" else "segments")
    assert choice.share_prefixes == is_causal(model.config.text_config)
    assert model.backbone.config._attn_implementation == ATTENTION_OF[choice.how]


def test_padded_batches_are_read_as_before(backbone: Callable[[str], str]) -> None:
    """Evaluation pads, also after training has set attention text by text."""
    for family in ("bert", "opt", "modernbert"):
        model, processor = load(backbone(family))
        batch = processor.pad(texts_of(processor, 1000))
        with torch.no_grad():
            before = model.get_item_embeddings(**batch)
            choose_packing(model, processor, "segments")
            after = model.get_item_embeddings(**batch)
        torch.testing.assert_close(after, before, atol=VECTORS, rtol=0)


def test_a_backbone_that_cannot_be_packed_is_padded(
    backbone: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, processor = load(backbone("bert"))
    monkeypatch.setattr("llmrec.training.packing.packing_error", lambda *a: 0.5)
    assert choose_packing(model, processor).how == "off"
    assert "cannot be packed" in caplog.text
    assert model.backbone.config._attn_implementation == "sdpa"


def test_what_cannot_be_shared_is_refused(backbone: Callable[[str], str]) -> None:
    model, processor = load(backbone("bert"))
    with pytest.raises(ValueError, match="share_prefixes=true needs a causal backbone"):
        choose_packing(model, processor, share_prefixes=True)
    model, processor = load(backbone("opt"), item_order="newest_first")
    with pytest.raises(ValueError, match="item_order='newest_first'"):
        choose_packing(model, processor, share_prefixes=True)
    assert choose_packing(model, processor).share_prefixes is False


def test_the_code_name_of_the_attention_does_not_travel(backbone: Callable[[str], str], tmp_path: Any) -> None:
    model, processor = load(backbone("bert"))
    choose_packing(model, processor, "segments")
    model.save_pretrained(tmp_path)
    assert ATTENTION_OF["segments"] not in (tmp_path / "config.json").read_text()
    reloaded = LLMRecModel.from_pretrained(tmp_path)
    assert reloaded.backbone.config._attn_implementation == "sdpa"


def test_texts_come_in_one_form_only(backbone: Callable[[str], str]) -> None:
    model, processor = load(backbone("bert"))
    packed = pack(texts_of(processor, 1000))
    with pytest.raises(ValueError, match="one of them"):
        model(input_ids=packed.input_ids, texts=packed)
    with pytest.raises(ValueError, match="masks and log counts of a bank"):
        model(
            texts=packed, user_index=torch.tensor([0]), item_index=torch.tensor([1, 2]), bank=torch.zeros(3, 384),
            candidate_mask=torch.ones(1, 2, dtype=torch.bool), positive_index=torch.tensor([0]),
        )  # fmt: skip
