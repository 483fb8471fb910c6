"""`recommend(["title a", "title b"])`: a trained model and a catalogue, ready to answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmrec.data.catalogue import Catalogue
from llmrec.data.title_tokens import TitleTokens
from llmrec.retrieval.encoding import encode_histories, encode_titles
from llmrec.retrieval.scorers import EmbeddingScorer
from llmrec.retrieval.top_k import top_k


@dataclass(frozen=True)
class Recommendation:
    """One recommended item; `score` is the dot product of user and item vector."""

    item_id: str
    title: str
    domain: str
    score: float


class Recommender:
    """Ranks a catalogue for histories of titles, known or new, with the scorer that evaluation uses.

    Args:
        model: an `LLMRecModel`.
        processor: its `LLMRecProcessor`.
        catalogue: the items that may be recommended.
        progress: whether to show a bar while the catalogue is encoded.
        item_embeds: float32 (items, embedding_dim), the catalogue's vectors by this model, where they are known.

    Example:

        recommender = Recommender.from_pretrained("runs/demo/model", "data/demo/catalogue.parquet")
        recommender.recommend(["Single-Origin Espresso Beans, 1 kg"], k=5, domain="Kitchen")
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        catalogue: Catalogue,
        *,
        progress: bool = True,
        item_embeds: torch.Tensor | None = None,
    ) -> None:
        self.model, self.processor, self.catalogue = model, processor, catalogue
        shape = (len(catalogue), model.config.embedding_dim)
        if item_embeds is not None and tuple(item_embeds.shape) != shape:
            raise ValueError(f"item_embeds has the shape {tuple(item_embeds.shape)}, and this catalogue needs {shape}.")
        self.item_embeds = self._encode(catalogue.titles, progress) if item_embeds is None else item_embeds
        self._by_title: dict[str, list[int]] = {}
        self._remember(catalogue.titles, first=0)

    @classmethod
    def from_pretrained(
        cls, model: str | Path, catalogue: Catalogue | str | Path | None = None, *, progress: bool = True, **kwargs: Any
    ) -> Recommender:
        """Load a model and the items that it recommends.

        Args:
            model: folder or Hub id.
            catalogue: the items, or their Parquet file or prepared folder; they are encoded. By default the catalogue
                that was published beside the model, with its vectors, and nothing is encoded.
            progress: whether to show a bar while the catalogue is encoded.
            **kwargs: as for `llmrec.hub.loading.load_model` (`revision`, `dtype`, `backbone`, `token`, …).

        Raises:
            DataError: the catalogue cannot be read.
            CatalogueIndexError: none was given, and there is none beside the model, or it is another model's.
        """
        from llmrec.hub.catalogue_index import HUB_ARGUMENTS, check_index, load_index
        from llmrec.hub.loading import load_model

        # The small parts first: what is missing is said before gigabytes are loaded.
        if catalogue is None:
            index = load_index(model, **{name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs})
            loaded, processor = load_model(model, **kwargs)
            check_index(index, loaded, processor, str(model))
            return cls(loaded, processor, index.catalogue, progress=progress, item_embeds=index.item_embeds)
        if not isinstance(catalogue, Catalogue):
            path = Path(catalogue)
            catalogue = Catalogue.load(path / "catalogue.parquet" if path.is_dir() else path)
        loaded, processor = load_model(model, **kwargs)
        return cls(loaded, processor, catalogue, progress=progress)

    def recommend(
        self, history: Sequence[str], k: int = 10, *, domain: str | None = None, exclude_history: bool = True
    ) -> list[Recommendation]:
        """The best items for one user.

        Args:
            history: titles, oldest first; they need not be in the catalogue.
            k: how many items.
            domain: recommend from this domain only.
            exclude_history: leave out items whose title is in the history.

        Returns:
            At most k recommendations, best first.

        Raises:
            ValueError: for an empty history, a blank title, or an unknown domain.
        """
        if isinstance(history, str):
            raise ValueError("history is a string: pass a list of titles, oldest first.")
        return self.recommend_batch([history], k, domain=domain, exclude_history=exclude_history)[0]

    def recommend_batch(
        self,
        histories: Sequence[Sequence[str]],
        k: int = 10,
        *,
        domain: str | None = None,
        exclude_history: bool = True,
    ) -> list[list[Recommendation]]:
        """As `recommend`, for several users at once."""
        if not len(histories):
            return []
        # Each distinct title is tokenised once, as the catalogue's are in evaluation.
        titles = list(dict.fromkeys(title for history in histories for title in history))
        tokens = TitleTokens.from_titles(self.processor, titles)
        place = {title: i for i, title in enumerate(titles)}
        indices = [[place[title] for title in history] for history in histories]
        users = encode_histories(self.model, self.processor, indices, tokens, progress=False)
        excluded = None
        if exclude_history:
            excluded = [[i for title in set(history) for i in self._by_title.get(title, ())] for history in histories]
        items, scores = top_k(
            EmbeddingScorer("model", users, self.item_embeds),
            np.arange(len(histories)),
            k,
            candidate_items=None if domain is None else self.catalogue.items_of_domain(domain),
            excluded=excluded,
        )
        return [
            [self._recommendation(item, score) for item, score in zip(*row, strict=True) if item >= 0]
            for row in zip(items, scores, strict=True)
        ]

    def add_items(self, titles: Sequence[str], item_ids: Sequence[str], domains: Sequence[str]) -> None:
        """Make new items recommendable at once, without training: only their titles are encoded.

        Raises:
            ValueError: for lists of different lengths, a blank title, or an id that is taken.
        """
        catalogue = self.catalogue.add_items(titles, item_ids, domains)
        self.item_embeds = torch.cat([self.item_embeds, self._encode(titles, progress=False)])
        self._remember(titles, first=len(self.catalogue))
        self.catalogue = catalogue

    def _remember(self, titles: Sequence[str], first: int) -> None:
        for item, title in enumerate(titles, start=first):
            self._by_title.setdefault(title, []).append(item)

    def _encode(self, titles: Sequence[str], progress: bool) -> torch.Tensor:
        tokens = TitleTokens.from_titles(self.processor, titles, progress=progress)
        return encode_titles(self.model, self.processor, tokens, progress=progress)

    def _recommendation(self, item: int, score: float) -> Recommendation:
        catalogue = self.catalogue
        return Recommendation(catalogue.item_ids[item], catalogue.titles[item], catalogue.domains[item], float(score))
