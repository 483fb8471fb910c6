import pytest
import torch

from modeling_llmrec.pooling import pool

HIDDEN = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [100.0, 100.0]], [[5.0, 0.0], [7.0, 2.0], [9.0, 4.0]]])
MASK = torch.tensor([[1, 1, 0], [1, 1, 1]])


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("cls", [[1.0, 2.0], [5.0, 0.0]]),
        ("last", [[3.0, 6.0], [9.0, 4.0]]),
        ("mean", [[2.0, 4.0], [7.0, 2.0]]),
    ],
)
def test_padding_is_never_read(how: str, expected: list) -> None:
    assert pool(HIDDEN, MASK, how).tolist() == expected


def test_sums_are_float32_whatever_comes_in() -> None:
    # 2049 ones cannot be summed in float16, nor their mean taken, without losing the last one.
    hidden = torch.cat([torch.ones(1, 2048, 1), torch.full((1, 1, 1), 3.0)], dim=1).half()
    vector = pool(hidden, torch.ones(1, 2049, dtype=torch.long), "mean")
    assert vector.dtype == torch.float32
    assert vector.item() == pytest.approx((2048 + 3) / 2049, abs=1e-7)


def test_a_row_without_tokens_is_named() -> None:
    with pytest.raises(ValueError, match="Row 1 of the batch has no tokens"):
        pool(HIDDEN, torch.tensor([[1, 0, 0], [0, 0, 0]]), "mean")


def test_another_pooling_is_refused() -> None:
    with pytest.raises(ValueError, match="'max'"):
        pool(HIDDEN, MASK, "max")
