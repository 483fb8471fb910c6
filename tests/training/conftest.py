"""A tiny untrained BERT with a vocabulary of its own, and a small shop whose customers buy in a known order."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, BertConfig, BertModel, OPTConfig, OPTModel, PreTrainedTokenizerFast

from llmrec.data.prepare import prepare
from llmrec.data.prepared import load_prepared
from llmrec.data.source import Source
from llmrec.data.title_tokens import TitleTokens
from llmrec.training.arguments import LLMRecTrainingArguments
from llmrec.training.model import build_model
from llmrec.training.model_arguments import ModelArguments
from llmrec.training.run import build_trainer
from llmrec.training.tuning import apply_tuning

DOMAINS = {"Food": ("bean", "leaf", "nut"), "Kitchen": ("pan", "jug", "knife")}
WORDS = ["red", "blue", "green", "large", "small", "old", "new", "plain"]
ITEMS_PER_DOMAIN = 24


def titles_of(domain: str) -> list[str]:
    kinds = DOMAINS[domain]
    return [f"{WORDS[i % 8]} {kinds[i % 3]} {WORDS[(i * 5 + i // 8) % 8]} {i}" for i in range(ITEMS_PER_DOMAIN)]


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BERT, 2 layers × 32, random weights, dropout 0.1, one token a word."""
    words = sorted({*WORDS, *(kind for kinds in DOMAINS.values() for kind in kinds), ";", *map(str, range(40))})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: number for number, word in enumerate([*special, *words])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=128,
    )  # fmt: skip
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=128,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("backbone") / "tiny-bert"
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_decoder(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OPT, 2 layers × 32, with the same vocabulary."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone)
    tokenizer.eos_token = "[SEP]"
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64,
        word_embed_proj_dim=32, max_position_embeddings=128, pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("backbone") / "tiny-opt"
    OPTModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """interactions.csv and items.csv: 60 customers, who buy item i + 1 or i + 2 after item i, in either domain."""
    folder = tmp_path_factory.mktemp("raw")
    items = [(f"{domain}{i}", title, domain) for domain in DOMAINS for i, title in enumerate(titles_of(domain))]
    pl.DataFrame(items, schema=["item_id", "title", "domain"], orient="row").write_csv(folder / "items.csv")
    rng = np.random.default_rng(3)
    events = []
    for user in range(60):
        place = {domain: int(rng.integers(ITEMS_PER_DOMAIN)) for domain in DOMAINS}
        for moment in range(int(rng.integers(5, 9))):
            domain = str(rng.choice(list(DOMAINS)))
            place[domain] = (place[domain] + int(rng.integers(1, 3))) % ITEMS_PER_DOMAIN
            events.append((f"u{user:03}", f"{domain}{place[domain]}", domain, 1_600_000_000 + user * 1000 + moment))
    columns = ["user_id", "item_id", "domain", "timestamp"]
    pl.DataFrame(events, schema=columns, orient="row").write_csv(folder / "interactions.csv")
    return folder


@pytest.fixture(scope="session")
def tiny_prepared(tiny_raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, prepared without a k-core."""
    folder = tmp_path_factory.mktemp("prepared") / "tiny"
    with pytest.warns(UserWarning, match="leave-one-out"):
        prepare([Source(tiny_raw / "interactions.csv", tiny_raw / "items.csv")], folder, k_core=0)
    return folder


@pytest.fixture
def make_trainer(tiny_backbone: Path, tiny_prepared: Path, tmp_path: Path) -> Callable[..., SimpleNamespace]:
    """Builds model, processor, trainer and so on; keywords go to the arguments of the same name."""

    def make(run: str = "run", callbacks: Any = None, **settings: Any) -> SimpleNamespace:
        model_names = set(ModelArguments.__dataclass_fields__)
        model_settings = {name: value for name, value in settings.items() if name in model_names}
        model_arguments = ModelArguments(**{"backbone": str(tiny_backbone), **model_settings})
        defaults = {
            "run_dir": str(tmp_path / run), "precision": "fp32", "use_cpu": True, "disable_tqdm": True,
            "per_device_train_batch_size": 16, "logging_steps": 3, "eval_strategy": "no", "save_strategy": "no",
            "learning_rate": 3e-3,
        }  # fmt: skip
        training = {name: value for name, value in settings.items() if name not in model_names}
        arguments = LLMRecTrainingArguments(**{**defaults, **training})
        torch.manual_seed(0)
        model, processor = build_model(model_arguments)
        arguments.resolve_defaults(model_arguments.tuning, model.config.contrastive_loss)
        data = load_prepared(tiny_prepared)
        title_tokens = TitleTokens.from_titles(processor, data.catalogue.titles)
        model = apply_tuning(model, model_arguments)
        trainer = build_trainer(model, processor, title_tokens, data, arguments)
        for callback in callbacks or []:
            trainer.add_callback(callback)
        return SimpleNamespace(
            model=model, processor=processor, title_tokens=title_tokens, data=data, trainer=trainer,
            arguments=arguments, model_arguments=model_arguments,
        )  # fmt: skip

    return make


def losses(trainer: Any) -> list[tuple[int, float]]:
    """(step, loss) of every logged training loss."""
    return [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all parameters by name."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
