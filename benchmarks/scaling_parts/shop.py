"""Made-up shops: so many users with so many events each, so many items."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from llmrec.data.prepare import prepare
from llmrec.data.source import Source

WORDS = (
    "steel cotton blue large kit brush paper cable coffee organic wireless mini pro classic set wooden folding travel "
    "ceramic green replacement deluxe heavy duty portable glass kitchen garden office tea"
).split()
TITLE_WORDS, BASE = 8, 256
DOMAINS = ("Home", "Garden")


def make_shop(folder: Path, users: int, events: int, items: int, seed: int = 0) -> Path:
    """Prepared data of a made-up shop, in a folder of its own below `folder`; made once.

    Args:
        folder: where shops lie.
        users: number of users.
        events: events of each user, of which the last two are held out.
        items: size of the catalogue, every other item of either domain.
        seed: of everything.
    """
    name = f"users-{users}-events-{events}-items-{items}"
    prepared = folder / name
    if prepared.exists():
        return prepared
    rng = np.random.default_rng(seed)
    words = rng.choice(WORDS, size=(items, TITLE_WORDS))
    catalogue = pl.DataFrame(
        {
            "item_id": [f"i{item}" for item in range(items)],
            # The number keeps titles apart: equal titles would be one candidate. Two digits to the base of 256 keep
            # the vocabulary small, and with it what a step costs whatever its size.
            "title": [f"{' '.join(words[item])} {item // BASE} {item % BASE}" for item in range(items)],
            "domain": [DOMAINS[item % 2] for item in range(items)],
        }
    )
    rows = users * events
    # Squares of uniform numbers: some items are popular, most are not.
    bought = (items * rng.random(rows) ** 2).astype(np.int64)
    interactions = pl.DataFrame(
        {
            "user_id": np.repeat(np.arange(users), events),
            "item_id": bought,
            "timestamp": np.tile(np.arange(events), users) * 86_400 + 1_500_000_000,
        }
    ).with_columns(pl.format("u{}", "user_id").alias("user_id"), pl.format("i{}", "item_id").alias("item_id"))
    raw = folder / f"raw-{name}"
    raw.mkdir()
    interactions.write_parquet(raw / "interactions.parquet")
    catalogue.write_parquet(raw / "items.parquet")
    prepare([Source(raw / "interactions.parquet", raw / "items.parquet")], prepared, k_core=0)
    return prepared


def make_backbone(folder: Path, hidden: int, layers: int, positions: int) -> str:
    """A small causal backbone with random weights, whose vocabulary is the shop's words; made once.

    Args:
        folder: where backbones lie.
        hidden, layers: width and depth.
        positions: longest text.
    """
    import torch
    from training_sides.shapes import OPT_CONFIG, word_tokenizer
    from transformers import OPTConfig, OPTModel

    target = folder / f"backbone-{hidden}-{layers}"
    if target.exists():
        return str(target)
    tokenizer = word_tokenizer([*WORDS, *map(str, range(BASE))])
    shape = {"hidden_size": hidden, "word_embed_proj_dim": hidden, "num_hidden_layers": layers, "ffn_dim": 4 * hidden,
             "num_attention_heads": max(1, hidden // 32), "max_position_embeddings": positions,
             "vocab_size": len(tokenizer)}  # fmt: skip
    torch.manual_seed(0)
    OPTModel(OPTConfig(**(OPT_CONFIG | shape))).save_pretrained(target)
    tokenizer.save_pretrained(target)
    return str(target)
