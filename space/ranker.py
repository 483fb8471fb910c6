"""From titles to ranked items, and to what each title did to each of them.

The model comes with its own code (`trust_remote_code`), so nothing of the llmrec package is needed here. What encodes,
scores and picks the best stands in that code too, and is what the model's pipeline uses.
"""

import time
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from catalogue import Catalogue, CatalogueError, Item
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor
from transformers.dynamic_module_utils import get_class_from_dynamic_module

MOST_TITLES = 100
LONGEST_TITLE = 500
MOST_RESULTS = 100
TITLES_AT_ONCE = 1024
MOST_SEEDS, NEIGHBOURS = 200, 1000
"""Examples are made of this many popular items and their so many nearest neighbours, however large the catalogue."""
CHECKED_VECTORS = 16
VECTOR_TOLERANCE = 2e-3
"""Largest difference between a stored vector and a fresh one, relative to its length: far above rounding on another
kind of processor, far below the difference between two trainings."""


class PageError(ValueError):
    """Something that the visitor can put right; the text is shown to them as it is."""


@dataclass(frozen=True)
class Result:
    """One recommended item.

    Attributes:
        item: title and domain.
        score: its score for the whole history.
        without: for each title of the history, the score if only that title had not been chosen. None where the
            history would then be empty, and there is no score.
    """

    item: Item
    score: float
    without: tuple[float | None, ...]

    @property
    def contributions(self) -> tuple[float | None, ...]:
        """For each title of the history, the score with it minus the score without it."""
        return tuple(None if other is None else self.score - other for other in self.without)


@dataclass(frozen=True)
class Ranking:
    """The answer to one question.

    Attributes:
        history: the titles asked with, oldest first.
        first_read: position of the oldest title that the model read; those before it are beyond its window.
        candidates: how many items were ranked.
        results: the best of them, best first.
        seconds: how long it took.
    """

    history: tuple[str, ...]
    first_read: int
    candidates: int
    results: tuple[Result, ...]
    seconds: float


@dataclass(frozen=True)
class LoadedModel:
    """A model, its processor, and three functions of the code that came with it (`ranking.py` beside its weights).

    Attributes:
        encode: (embed, processor, texts, device) → float32 (texts, embedding_dim).
        dot_products: (users, items) → float32 scores (users, items).
        best: (scores, allowed, k) → places of the k highest scores, best first.
    """

    model: Any
    processor: Any
    encode: Callable[..., torch.Tensor]
    dot_products: Callable[..., torch.Tensor]
    best: Callable[..., list[int]]


def load_model(name: str, *, revision: str | None = None, backbone: str | None = None) -> LoadedModel:
    """A model with the code that stands beside its weights.

    Args:
        name: folder, or repository on the Hub.
        revision: of that repository; pins the code as well as the weights.
        backbone: where to take an adapter's backbone from, if not from the place that its config names.
    """
    hub = {} if revision is None else {"revision": revision, "code_revision": revision}
    extra = {} if backbone is None else {"backbone": backbone}
    model = AutoModel.from_pretrained(name, trust_remote_code=True, **hub, **extra)
    processor = AutoProcessor.from_pretrained(name, trust_remote_code=True, **hub)
    functions = {
        function: get_class_from_dynamic_module(f"ranking.{function}", name, **hub)
        for function in ("encode", "dot_products", "best")
    }
    return LoadedModel(model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), processor, **functions)


class Ranker:
    """Ranks a catalogue for a history of titles.

    Args:
        loaded: from `load_model`.
        catalogue: the items.
        vectors: file with the items' vectors, if some are stored. They are used if a sample of them is what this
            model makes of the titles, and computed anew if not.
        progress: told how many of how many items are encoded.
        say: told what is worth knowing.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        catalogue: Catalogue,
        *,
        vectors: Path | None = None,
        progress: Callable[[int, int], None] = lambda done, of: None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.loaded, self.catalogue = loaded, catalogue
        self.model, self.processor = loaded.model, loaded.processor
        self.window = int(self.processor.config.max_history_items)
        stored = None if vectors is None else self._stored(vectors, say)
        self.item_embeds = self._encode_items(catalogue.titles, progress) if stored is None else stored

    # -- answering ---------------------------------------------------------------------------------

    def rank(self, history: Sequence[str], domain: str | None = None, k: int = 10) -> Ranking:
        """The best items for a history, and what each of its titles did.

        Args:
            history: titles, oldest first; they need not be in the catalogue.
            domain: recommend from this domain only; from all by default.
            k: how many items. Those whose title is in the history are left out.

        Raises:
            PageError: no title, a blank or overlong one, too many, an unknown domain, or nothing left to recommend.
        """
        began = time.perf_counter()
        titles = check_history(history)
        if not 1 <= k <= MOST_RESULTS:
            raise PageError(f"Between 1 and {MOST_RESULTS} results can be shown, not {k}.")
        allowed = self._candidates(titles, domain)
        first_read = len(titles) - self._titles_read(titles)
        shortened = [] if len(titles) == 1 else [_without(titles, i) for i in range(first_read, len(titles))]
        users = self._encode_histories([titles, *shortened])
        scores = self.loaded.dot_products(users[:1], self.item_embeds)[0]
        if bool(scores.isnan().any()):
            raise PageError("The model gives no number for this history, so nothing can be ranked.")
        rows = self.loaded.best(scores, allowed, k)
        others = self.loaded.dot_products(users[1:], self.item_embeds[rows]).T.tolist() if shortened else None
        results = []
        for place, row in enumerate(rows):
            score = float(scores[row])
            # A title beyond the window changes nothing: the model's input is the same without it.
            without = (None,) if others is None else (*[score] * first_read, *others[place])
            results.append(Result(self.catalogue.item(row), score, without))
        seconds = time.perf_counter() - began
        return Ranking(tuple(titles), first_read, int(allowed.sum()), tuple(results), seconds)

    def examples(self, count: int = 3, length: int = 3) -> list[list[Item]]:
        """Histories to start from: popular items that have near neighbours in other domains, unlike each other."""
        unit = self.item_embeds / self.item_embeds.norm(dim=1, keepdim=True).clamp(min=1e-12)
        drafts = [self._with_neighbours(row, unit, length) for row in self.catalogue.popular()[:MOST_SEEDS]]
        cohesion = torch.stack([(unit[rows] @ unit[rows].T).min() for rows in drafts])
        seeds = unit[[rows[0] for rows in drafts]]
        likeness = torch.zeros(len(drafts))
        chosen: list[int] = []
        while len(chosen) < min(count, len(drafts)):
            chosen.append(int((cohesion - likeness).argmax()))
            likeness = torch.maximum(likeness, seeds @ seeds[chosen[-1]])
            likeness[chosen] = torch.inf
        return [[self.catalogue.item(row) for row in drafts[place]] for place in chosen]

    def _with_neighbours(self, row: int, unit: torch.Tensor, length: int) -> list[int]:
        """A row and the nearest ones of other domains (of the same where there is but one), each title once."""
        names = self.catalogue.domain_names
        rows, used = [row], {self.catalogue.domains[row] if len(names) > 1 else self.catalogue.titles[row]}
        for other in (unit @ unit[row]).topk(min(len(unit), NEIGHBOURS)).indices.tolist():
            mark = self.catalogue.domains[other] if len(names) > 1 else self.catalogue.titles[other]
            if mark not in used and len(rows) < length:
                rows.append(other)
                used.add(mark)
        return rows

    def _candidates(self, titles: list[str], domain: str | None) -> torch.Tensor:
        """(items,) bool: of this domain, and not in the history."""
        if domain is not None and domain not in self.catalogue.domain_names:
            raise PageError(f"There is no domain “{domain}” here. There are: {', '.join(self.catalogue.domain_names)}.")
        allowed = torch.full((len(self.catalogue),), domain is None)
        if domain is not None:
            allowed[self.catalogue.rows_of_domain(domain)] = True
        for title in titles:
            allowed[self.catalogue.rows_with_title(title)] = False
        if not bool(allowed.any()):
            raise PageError(f"You have everything from {domain or 'the catalogue'} in your list: nothing is left.")
        return allowed

    # -- vectors -----------------------------------------------------------------------------------

    def _titles_read(self, titles: list[str]) -> int:
        newest = self.processor.tokenize_titles(titles[-self.window :])
        return int(self.processor.kept_items([len(ids) for ids in newest]))

    def _encode_histories(self, histories: list[list[str]]) -> torch.Tensor:
        ids = self.processor.tokenize_titles(histories[0])
        of = dict(zip(histories[0], ids, strict=True))
        texts = [self.processor.layout_history([of[title] for title in history]) for history in histories]
        return self.loaded.encode(self.model.get_user_embeddings, self.processor, texts, self.model.device)

    def _encode_items(self, titles: Sequence[str], progress: Callable[[int, int], None]) -> torch.Tensor:
        # A title is encoded once, so that items of the same title tie to the last bit; long titles first, so that
        # those encoded together are of like length.
        distinct = sorted(dict.fromkeys(titles), key=len, reverse=True)
        vectors = []
        for start in range(0, len(distinct), TITLES_AT_ONCE):
            ids = self.processor.tokenize_titles(distinct[start : start + TITLES_AT_ONCE])
            texts = [self.processor.layout_item(one) for one in ids]
            vectors.append(self.loaded.encode(self.model.get_item_embeddings, self.processor, texts, self.model.device))
            progress(start + len(texts), len(distinct))
        place = {title: i for i, title in enumerate(distinct)}
        return torch.cat(vectors)[torch.tensor([place[title] for title in titles])]

    def _stored(self, file: Path, say: Callable[[str], None]) -> torch.Tensor | None:
        tensors = list(load_file(file).values())
        if len(tensors) != 1 or tensors[0].shape != (len(self.catalogue), self.model.config.embedding_dim):
            raise CatalogueError(
                f"{file} must hold one table of {len(self.catalogue)} × {self.model.config.embedding_dim} numbers, a "
                f"row an item of the catalogue; it holds {[tuple(t.shape) for t in tensors]}."
            )
        stored = tensors[0].float()
        rows = torch.linspace(0, len(stored) - 1, CHECKED_VECTORS).long().unique().tolist()
        fresh = self._encode_items([self.catalogue.titles[row] for row in rows], lambda done, of: None)
        difference = float(((stored[rows] - fresh).norm(dim=1) / fresh.norm(dim=1).clamp(min=1e-12)).max())
        if difference <= VECTOR_TOLERANCE:
            return stored
        say(f"The stored item vectors are not this model's (they differ by {difference:.1%}): computing them anew.")
        return None


def check_history(history: Sequence[str]) -> list[str]:
    """The titles without blanks around them.

    Raises:
        PageError: none, too many, one twice, or one that is blank or too long, naming its number.
    """
    titles = [str(title).strip() for title in history]
    if not titles:
        raise PageError("Nothing is chosen yet: choose a title from the list, or type one of your own.")
    if len(titles) > MOST_TITLES:
        raise PageError(f"These are {len(titles)} titles; up to {MOST_TITLES} can be read here.")
    for number, title in enumerate(titles, start=1):
        if is_blank(title):
            raise PageError(f"Title {number} is blank: give it a few words, or remove it.")
        if len(title) > LONGEST_TITLE:
            raise PageError(f"Title {number} has {len(title)} characters; up to {LONGEST_TITLE} can be read here.")
        if title in titles[: number - 1]:
            raise PageError(f"Title {number}, “{title}”, is in the list twice: remove one of the two.")
    return titles


def is_blank(title: str) -> bool:
    """Whether there is nothing to read: no letter, number, sign or punctuation mark."""
    return not any(unicodedata.category(character)[0] in "LNPS" for character in title)


def _without(titles: list[str], position: int) -> list[str]:
    return titles[:position] + titles[position + 1 :]
