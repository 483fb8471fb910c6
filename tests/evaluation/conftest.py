"""A small split with duplicate item vectors, repeated events and a target that was had before."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llmrec.evaluation import EmbeddingScorer, EvaluationData, Histories


def make_split(users: int = 150, items: int = 90, seed: int = 0) -> SimpleNamespace:
    rng = np.random.default_rng(seed)
    # Interleaved domains of different sizes; small whole numbers as vectors, so that many scores are equal.
    domain_codes = rng.choice(3, size=items, p=[0.6, 0.3, 0.1])
    domain_codes[:3] = [0, 1, 2]
    generator = torch.Generator().manual_seed(seed)
    item_embeds = torch.randint(-2, 3, (items, 3), generator=generator).float()
    user_embeds = torch.randint(-2, 3, (users, 3), generator=generator).float()
    targets = rng.integers(0, items, users)
    histories = [rng.integers(0, items, rng.integers(1, 9)) for _ in range(users)]
    for row in range(0, users, 7):
        histories[row] = np.append(histories[row], targets[row])
    for row in range(0, users, 5):
        histories[row] = np.append(histories[row], histories[row][:1])
    return SimpleNamespace(
        users=users,
        items=items,
        domain_codes=domain_codes,
        item_embeds=item_embeds,
        user_embeds=user_embeds,
        targets=targets,
        histories=histories,
        train_count=rng.choice([0, 1, 3, 5, 6, 20, 21, 100], size=items),
        scorer=EmbeddingScorer("model", user_embeds, item_embeds),
    )


def make_data(split: SimpleNamespace) -> EvaluationData:
    catalogue = SimpleNamespace(
        item_ids=[f"item {number}" for number in range(split.items)],
        domain_names=["Books", "Coffee", "Kitchen"],
        domain_codes=split.domain_codes,
        train_count=split.train_count,
    )
    return EvaluationData(
        split="test",
        user_ids=[f"user {number}" for number in range(split.users)],
        histories=Histories.of(split.histories),
        targets=split.targets,
        catalogue=catalogue,
        card={"name": "toy", "hash": "0123abcd", "split": "leave-one-out", "order_policy": "timestamp"},
    )


@pytest.fixture
def split() -> SimpleNamespace:
    return make_split()


@pytest.fixture
def data(split: SimpleNamespace) -> EvaluationData:
    return make_data(split)
