"""Negatives drawn for one example, in the target's domain unless told otherwise."""

from __future__ import annotations

import logging
from typing import Literal

import numpy as np

from llmrec.training.titles import TitleClasses

logger = logging.getLogger(__name__)

NegativeDomain = Literal["target", "any"]


class NegativeSampler:
    """Draws n items uniformly and without replacement, none of them the target or an item of the user's history.

    Titles, not item ids, decide what is the same: an item that reads like the target is no negative of it. The draw
    depends on `(seed, epoch, example)` only, so neither resuming nor the number of workers or processes changes it.

    Args:
        classes: items grouped by title.
        domain_codes: (items,) domain of each item.
        domain_names: name of each domain code, for warnings.
        n: negatives of an example.
        domain: `"target"` for the target's domain, `"any"` for the whole catalogue.
        seed: of all draws.
    """

    def __init__(
        self,
        classes: TitleClasses,
        domain_codes: np.ndarray,
        domain_names: list[str],
        n: int,
        domain: NegativeDomain = "target",
        seed: int = 0,
    ) -> None:
        self.classes = classes
        self.n = n
        self.seed = seed
        self._domain_codes = domain_codes if domain == "target" else np.zeros_like(domain_codes)
        self._names = domain_names if domain == "target" else ["the whole catalogue"]
        unique = np.unique(classes.representative)
        self.pools = [unique[self._domain_codes[unique] == code] for code in range(len(self._names))]
        self._warned: set[int] = set()

    def pool_of(self, item: int) -> np.ndarray:
        """(pool,) int64 representatives that the negatives of a target are drawn from, nothing excluded yet."""
        return self.pools[self._domain_codes[item]]

    def draw(self, epoch: int, example: int, target: int, history: np.ndarray) -> np.ndarray:
        """Negatives of one example.

        Args:
            epoch, example: name the draw.
            target: item index of the target.
            history: item indices of the user's whole training history.

        Returns:
            (n,) int64 representatives; fewer, and a warning once per domain, where the domain has not enough.
        """
        if self.n == 0:
            return np.empty(0, dtype=np.int64)
        rng = np.random.default_rng((self.seed, epoch, example))
        pool = self.pool_of(target)
        excluded = np.unique(self.classes.text[np.append(history, target)])
        # Rejection is fast where few items are excluded; where it could loop, count out what is left instead.
        if len(pool) < 4 * (self.n + len(excluded)):
            return self._draw_from_rest(rng, pool, excluded, target)
        banned = set(excluded.tolist())
        chosen: dict[int, None] = {}
        while len(chosen) < self.n:
            for item in pool[rng.integers(0, len(pool), size=2 * self.n)].tolist():
                if item not in chosen and int(self.classes.text[item]) not in banned:
                    chosen[item] = None
                    if len(chosen) == self.n:
                        break
        return np.fromiter(chosen, dtype=np.int64, count=self.n)

    def draw_shared(self, epoch: int, example: int, targets: np.ndarray, n: int) -> np.ndarray:
        """Negatives that all examples of a batch share: n titles for each domain of its targets.

        Uniform and without replacement, nothing excluded: what an example must not be contrasted with, its mask says.

        Args:
            epoch, example: name the draw; `example` is the smallest one of the batch.
            targets: (B,) item index of the batch's targets.
            n: titles for each domain, or for all together where negatives come from everywhere.

        Returns:
            (drawn,) int64 representatives; all of a domain that has fewer.
        """
        drawn = [np.empty(0, dtype=np.int64)]
        for code in np.unique(self._domain_codes[targets]).tolist() if n else []:
            pool = self.pools[code]
            # A fourth number that is never 0: a missing one would count as 0, and repeat the example's own draw.
            rng = np.random.default_rng((self.seed, epoch, example, code + 1))
            drawn.append(rng.choice(pool, size=n, replace=False) if n < len(pool) else pool)
        return np.concatenate(drawn)

    def _draw_from_rest(
        self, rng: np.random.Generator, pool: np.ndarray, excluded: np.ndarray, target: int
    ) -> np.ndarray:
        rest = pool[~np.isin(self.classes.text[pool], excluded)]
        if len(rest) < self.n:
            self._warn(int(self._domain_codes[target]), len(rest))
            return rest
        return rng.choice(rest, size=self.n, replace=False)

    def _warn(self, code: int, left: int) -> None:
        if code not in self._warned:
            self._warned.add(code)
            logger.warning(
                "domain %r has %d titles; without the target and the user's history %d are left for %d negatives: "
                "all of them are used",
                self._names[code],
                len(self.pools[code]),
                left,
                self.n,
            )
