import math

import pytest
import torch

from modeling_llmrec.heads import MAX_SCALE, LogitScale
from modeling_llmrec.losses import binary_cross_entropy, in_batch_infonce, sampled_softmax

torch.manual_seed(0)
LOGITS = torch.randn(4, 6)
POSITIVE = torch.tensor([0, 3, 3, 5])
MASK = torch.tensor(
    [[1, 1, 0, 0, 1, 0], [0, 1, 1, 1, 0, 0], [1, 0, 0, 1, 0, 1], [0, 0, 1, 0, 0, 0]], dtype=torch.bool
)  # the last row leaves its own target out, which must not matter


def _one_by_one(loss_of_row) -> float:
    losses = []
    for row in range(len(LOGITS)):
        target = int(POSITIVE[row])
        negatives = [j for j in range(6) if MASK[row, j] and j != target]
        losses.append(loss_of_row(LOGITS[row].tolist(), target, negatives))
    return sum(losses) / len(losses)


def test_sampled_softmax_equals_the_sum_written_out() -> None:
    def by_hand(scores: list, target: int, negatives: list) -> float:
        return -math.log(math.exp(scores[target]) / sum(math.exp(scores[j]) for j in [target, *negatives]))

    assert sampled_softmax(LOGITS, POSITIVE, MASK).item() == pytest.approx(_one_by_one(by_hand), abs=1e-6)


def test_binary_cross_entropy_equals_the_sum_written_out() -> None:
    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    def by_hand(scores: list, target: int, negatives: list) -> float:
        return -math.log(sigmoid(scores[target])) - sum(math.log(1 - sigmoid(scores[j])) for j in negatives)

    assert binary_cross_entropy(LOGITS, POSITIVE, MASK).item() == pytest.approx(_one_by_one(by_hand), abs=1e-6)


def test_log_q_is_subtracted_from_every_candidate() -> None:
    log_q = torch.randn(6)

    def by_hand(scores: list, target: int, negatives: list) -> float:
        corrected = [s - q for s, q in zip(scores, log_q.tolist(), strict=True)]
        return -corrected[target] + math.log(sum(math.exp(corrected[j]) for j in [target, *negatives]))

    got = in_batch_infonce(LOGITS, POSITIVE, MASK, log_q).item()
    assert got == pytest.approx(_one_by_one(by_hand), abs=1e-6)
    assert got != pytest.approx(in_batch_infonce(LOGITS, POSITIVE, MASK).item(), abs=1e-3)


@pytest.mark.parametrize("loss", [sampled_softmax, in_batch_infonce, binary_cross_entropy])
def test_masked_items_get_no_gradient(loss) -> None:
    logits = LOGITS.clone().requires_grad_()
    loss(logits, POSITIVE, MASK).backward()
    counted = MASK.scatter(1, POSITIVE[:, None], True)
    assert (logits.grad[~counted] == 0).all()
    assert (logits.grad[counted] != 0).any()
    assert logits.grad.isfinite().all()


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(4, 5\).*\(4, 6\)"):
        sampled_softmax(LOGITS, POSITIVE, MASK[:, :5])


def test_a_learned_scale_starts_at_the_temperature_and_is_bounded() -> None:
    fixed, learned = LogitScale(0.05, learn=False), LogitScale(0.05, learn=True)
    assert torch.allclose(fixed(LOGITS), learned(LOGITS), rtol=1e-6)
    assert not list(fixed.parameters())
    learned.log_scale.data.fill_(50.0)
    assert torch.equal(learned(LOGITS), LOGITS * MAX_SCALE)
