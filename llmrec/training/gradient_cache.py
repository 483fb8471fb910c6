"""Large batches in little memory: all vectors first, then the loss, then the texts again, a few at a time (GradCache).

Every example is contrasted with the items of the whole batch, so a batch cannot simply be cut into micro-batches. But
its loss needs the texts through their vectors alone. So (Gao et al., "Scaling Deep Contrastive Learning Batch Size
under Memory Limited Setup", RepL4NLP 2021)

1. every chunk is read without a graph, and only its vectors are kept;
2. the loss of all vectors gives a gradient for each of them;
3. every chunk is read once more, with the random state (dropout) of the first time, and the gradients of its vectors go
   backwards through it: the gradient of `sum(vectors * gradient)` is that of the loss, by the chain rule.

At no time is there a graph of more than one chunk. The price is a second forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


class RandomState:
    """The random state that dropout on a device draws from: the processor's, and the device's own if it has one."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._cpu = torch.get_rng_state()
        self._own = None if device.type == "cpu" else _backend(device).get_rng_state(device)

    @contextmanager
    def again(self) -> Iterator[None]:
        """Draw once more what followed this state; afterwards the stream goes on where it was before."""
        others = [] if self._own is None else [self.device]
        with torch.random.fork_rng(others, device_type=self.device.type if others else "cuda"):
            torch.set_rng_state(self._cpu)
            if self._own is not None:
                _backend(self.device).set_rng_state(self._own, self.device)
            yield


def _backend(device: torch.device) -> Any:
    return getattr(torch, device.type)


def backward_by_chunks(
    model: nn.Module,
    texts: Sequence[Any],
    inputs: dict[str, Any],
    *,
    scale: float = 1.0,
    backward: Callable[[Tensor], Any] = Tensor.backward,
    no_sync: Callable[[], AbstractContextManager[Any]] = nullcontext,
    loss_parameters: Sequence[nn.Parameter] = (),
    passes: int | None = None,
) -> Tensor:
    """Add the gradients of a batch's loss to the parameters, chunk by chunk.

    They are those of `(model(texts=texts, **inputs).loss * scale).backward()`, dropout included.

    Args:
        model: an `LLMRecModel`, or what wraps one (PEFT, DDP, FSDP2).
        texts: the chunks, `PackedTexts` each.
        inputs: all other arguments of the model's forward.
        scale: factor of the loss, 1 / micro-batches with gradient accumulation.
        backward: what runs backwards from a scalar.
        no_sync: makes a context in which gradients stay on this rank; everything but the last chunk runs in it.
        loss_parameters: under DDP the trained parameters that the loss uses but the vectors do not (a learned
            temperature). DDP sends the gradients off in the backward pass of the last chunk, and waits there for every
            parameter.
        passes: chunks to read, where all ranks must run the same number of forward passes because parameters are
            gathered for each of them (FSDP, ZeRO-3); the missing ones are run without effect.

    Returns:
        The loss times `scale`, detached.
    """
    passes = max(len(texts), passes or 0)
    device = texts[0].input_ids.device
    # With fewer chunks than passes the last one is read again.
    plan = [min(number, len(texts) - 1) for number in range(passes)]
    states, vectors = [], []
    with torch.no_grad():
        for chunk in plan:
            states.append(RandomState(device))
            vectors.append(model(texts=[texts[chunk]]).embeddings)
    # With autocast around all of this, weights that were cast without a graph must not serve the second pass.
    torch.clear_autocast_cache()
    leaf = torch.cat(vectors[: len(texts)]).requires_grad_()
    with no_sync():
        loss = model(vectors=leaf, **inputs).loss * scale
        backward(loss)
    assert leaf.grad is not None
    gradients = leaf.grad.split([len(part) for part in vectors[: len(texts)]])
    del vectors
    for number, chunk in enumerate(plan):
        last = number == passes - 1
        with nullcontext() if last else no_sync(), states[number].again():
            again = model(texts=[texts[chunk]]).embeddings
            # A pass too many must take part in every collective operation, and add nothing.
            surrogate = (again * gradients[chunk]).sum() if number < len(texts) else again.sum() * 0.0
            if last:
                for parameter in loss_parameters:
                    surrogate = surrogate + parameter.sum() * 0.0
            # Without a trained parameter behind the vectors there is nothing to do but for the loss's own.
            if surrogate.requires_grad:
                backward(surrogate)
    return loss.detach()
