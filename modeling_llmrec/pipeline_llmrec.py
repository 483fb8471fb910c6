"""`pipeline("recommendation", …)`: a history and candidates in, ranked titles out. Travels to the Hub."""

import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Pipeline

from .ranking import best, dot_products, encode

REQUEST_KEYS = ("history", "candidates", "domain", "k", "exclude_history")
# Candidate lists whose vectors are kept: the one given at construction, and a few that requests bring along.
KEPT_LISTS = 4
# Requests of a stream (a generator, a Dataset) that are answered at a time.
STREAM_BATCH = 64
# Scores of several requests at a time, in numbers.
SCORES_AT_ONCE = 1 << 24


class RecommendationPipeline(Pipeline):
    """Ranks candidate titles for histories of titles, with the scores that evaluation ranks.

    A history is a list of titles, oldest first: a list of strings is ONE history, not a batch of texts. A request is
    a history, or a dict with `history` and any of `candidates`, `domain`, `k` and `exclude_history`, which then count
    for this request only. A list of requests is a batch.

    Args:
        candidates: titles that may be recommended, or dicts with `title`, perhaps `domain`, and whatever else shall
            come back with a recommended item (an id, a price).
        domain: recommend candidates of this domain only.
        k: how many.
        exclude_history: leave out candidates whose title is in the history.

    All four may be given to `pipeline(…)`, to a call, or in a request; the latter wins. Candidates are encoded once.

    Example:

    ```python
    >>> recommend = pipeline("recommendation", model="org/name", trust_remote_code=True)
    >>> recommend({"history": ["Espresso Beans 1 kg"], "candidates": ["Burr Grinder", "Guitar Strings"], "k": 1})
    [{'title': 'Burr Grinder', 'score': 0.61}]
    >>> recommend = pipeline(
    ...     "recommendation", model="org/name", trust_remote_code=True, candidates=catalogue
    ... )
    >>> recommend(["Espresso Beans 1 kg", "Burr Grinder"])
    ```
    """

    _load_processor = True
    _load_tokenizer = False
    _load_feature_extractor = False
    _load_image_processor = False
    _load_video_processor = False

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        self._encoded: OrderedDict[Any, Tensor] = OrderedDict()
        super().__init__(model, *args, **kwargs)
        if self.processor is None:
            raise ValueError("The recommendation pipeline needs the model's processor: pass processor=….")
        self.model.eval()

    def _sanitize_parameters(
        self, candidates: Any = None, domain: Any = None, k: Any = None, exclude_history: Any = None
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        given = {"domain": domain, "k": k, "exclude_history": exclude_history}
        given = {name: value for name, value in given.items() if value is not None}
        if candidates is not None:
            given["candidates"] = Candidates(candidates)
        return given, {}, {}

    def __call__(self, inputs: Any, *args: Any, batch_size: int | None = None, **kwargs: Any) -> Any:
        """Answer one request, a list of requests, or a stream of them.

        Args:
            inputs: a title, a history, a request, a list of these last two, or an iterable of them (a generator, a
                `Dataset`), which gives an iterator.
            batch_size: requests of a stream that are answered at a time.
            **kwargs: as for the class.

        Returns:
            For one request a list of at most k dicts, best first: `title`, `score`, and what else the candidate had.
            For several a list of such lists.

        Raises:
            ValueError: for an empty history, a blank title, no candidates, an unknown domain, or `k` below 1.
            TypeError: for a list that mixes titles and histories, or an unknown argument.
        """
        if args:
            raise TypeError("Pass one history, request or list of requests.")
        kwargs.pop("num_workers", None)
        parameters = {**self._preprocess_params, **self._sanitize_parameters(**kwargs)[0]}
        if isinstance(inputs, (str, Mapping)):
            return self._answer([inputs], parameters)[0]
        if not isinstance(inputs, (list, tuple)):
            if not isinstance(inputs, Iterable) and not hasattr(inputs, "__getitem__"):
                raise TypeError(f"A history is a list of titles, oldest first; this is a {type(inputs).__name__}.")
            return self._stream(iter(inputs), batch_size or STREAM_BATCH, parameters)
        if not inputs:
            raise ValueError("The list is empty: a history must have at least one item.")
        strings = [isinstance(one, str) for one in inputs]
        if all(strings):
            return self._answer([inputs], parameters)[0]
        if any(strings):
            raise TypeError(
                f"Element {strings.index(True)} is a title and element {strings.index(False)} is not: a list of titles "
                "is one history, a list of lists (or dicts) is a batch."
            )
        return self._answer(inputs, parameters)

    def _answer(self, requests: Sequence[Any], parameters: dict[str, Any]) -> list[list[dict[str, Any]]]:
        # Not by the stock iterator, which pads on the tokenizer's side and wants a padding token. All requests go
        # through at once: histories are sorted by length, and candidates that several of them share are read once.
        answers: list[list[dict[str, Any]]] = self.run_single(requests, parameters, {}, {})
        return answers

    def _stream(self, requests: Iterator[Any], size: int, parameters: dict[str, Any]) -> Iterator[list[dict[str, Any]]]:
        batch: list[Any] = []
        for request in requests:
            batch.append(request)
            if len(batch) == size:
                yield from self._answer(batch, parameters)
                batch = []
        if batch:
            yield from self._answer(batch, parameters)

    # -- the three steps ---------------------------------------------------------------------------

    def preprocess(self, input_: Sequence[Any], **preprocess_parameters: Any) -> dict[str, Any]:
        """Check the requests and lay out their histories."""
        single = len(input_) == 1
        requests = []
        for row, given in enumerate(input_):
            try:
                request = self._request(given, preprocess_parameters)
                request["ids"] = self.processor.layout_history(self.processor.tokenize_titles(request["history"]))
            except (TypeError, ValueError) as error:
                if single:
                    raise
                raise type(error)(f"Request {row}: {error}") from error
            requests.append(request)
        return {"requests": requests}

    def _request(self, given: Any, defaults: Mapping[str, Any]) -> dict[str, Any]:
        if not isinstance(given, Mapping):
            given = {"history": given}
        unknown = sorted(set(given) - set(REQUEST_KEYS))
        if unknown:
            raise TypeError(f"A request has no {unknown[0]!r}; it takes {', '.join(REQUEST_KEYS)}.")
        own = {name: value for name, value in given.items() if value is not None}
        request = {"candidates": None, "domain": None, "k": 10, "exclude_history": True, **defaults, **own}
        history = request.get("history")
        if history is None:
            raise ValueError("The request has no history: a history is a list of titles, oldest first.")
        request["history"] = [history] if isinstance(history, str) else list(history)
        if isinstance(request["k"], bool) or not isinstance(request["k"], int) or request["k"] < 1:
            raise ValueError(f"k={request['k']!r} must be a whole number of at least 1.")
        if request["candidates"] is None:
            raise ValueError(
                "There are no candidates to rank: pass candidates=[…] to pipeline(…), to the call or in the request."
            )
        if not isinstance(request["candidates"], Candidates):
            request["candidates"] = Candidates(request["candidates"])
        request["allowed"] = request["candidates"].allowed(
            request["domain"], request["history"] if request["exclude_history"] else ()
        )
        return request

    def _forward(self, input_tensors: dict[str, Any], **forward_parameters: Any) -> dict[str, Any]:
        """Read the histories, and find the best candidates of each."""
        requests = input_tensors["requests"]
        users = encode(self.model.get_user_embeddings, self.processor, [r["ids"] for r in requests], self.device)
        sharing: dict[int, tuple[Tensor, list[int]]] = {}
        for row, request in enumerate(requests):
            items = self._vectors(request["candidates"])
            sharing.setdefault(id(items), (items, []))[1].append(row)
        for items, rows in sharing.values():
            step = max(1, SCORES_AT_ONCE // len(items))
            for start in range(0, len(rows), step):
                block = rows[start : start + step]
                for row, scores in zip(block, dot_products(users[block], items), strict=True):
                    request = requests[row]
                    places = best(scores, request["allowed"], request["k"])
                    request["best"] = [(place, float(scores[place])) for place in places]
        return {"requests": requests}

    def postprocess(self, model_outputs: dict[str, Any], **postprocess_parameters: Any) -> list[list[dict[str, Any]]]:
        """The best candidates of each request, as the user gave them, with their scores."""
        answers = []
        for request in model_outputs["requests"]:
            items = request["candidates"].items
            first = ("title", "score")
            answers.append(
                [
                    {"title": items[place]["title"], "score": score}
                    | {name: value for name, value in items[place].items() if name not in first}
                    for place, score in request["best"]
                ]
            )
        return answers

    def _ensure_tensor_on_device(self, inputs: Any, device: torch.device) -> Any:
        return inputs  # `encode` moves batches one by one, and scores are computed where float64 is

    # -- candidates --------------------------------------------------------------------------------

    def _vectors(self, candidates: "Candidates") -> Tensor:
        key = (candidates.titles, self._weights())
        if key not in self._encoded:
            texts = [self.processor.layout_item(ids) for ids in self.processor.tokenize_titles(candidates.titles)]
            self._encoded[key] = encode(self.model.get_item_embeddings, self.processor, texts, self.device)
            while len(self._encoded) > KEPT_LISTS:
                self._encoded.popitem(last=False)
        self._encoded.move_to_end(key)
        return self._encoded[key]

    def _weights(self) -> tuple[Any, ...]:
        """Which adapters are at work: with others, candidates have other vectors."""
        layers = (module for module in self.model.modules() if module is not self.model and hasattr(module, "lora_A"))
        layer = next(layers, None)
        return () if layer is None else (tuple(layer.active_adapters), layer.disable_adapters)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save model, code and processor: the folder that the model came from."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)


class Candidates:
    """A list of candidates, checked once.

    Args:
        given: titles, or mappings with `title` and perhaps `domain`.

    Raises:
        ValueError: for an empty list, or a candidate without a title, naming its place.
    """

    def __init__(self, given: Iterable[str | Mapping[str, Any]]) -> None:
        if isinstance(given, (str, Mapping)):
            raise ValueError("candidates must be a list of titles, or of dicts with a title.")
        self.items = [dict(one) if isinstance(one, Mapping) else {"title": one} for one in given]
        if not self.items:
            raise ValueError("candidates is an empty list: there is nothing to rank.")
        for place, item in enumerate(self.items):
            title = item.get("title")
            if not isinstance(title, str) or not title.strip():
                raise ValueError(f"Candidate {place} has the title {title!r}: it must be a non-blank string.")
        self.titles = tuple(item["title"] for item in self.items)
        self._by_title: dict[str, list[int]] = {}
        self._by_domain: dict[Any, list[int]] = {}
        for place, item in enumerate(self.items):
            self._by_title.setdefault(item["title"], []).append(place)
            if item.get("domain") is not None:
                self._by_domain.setdefault(item["domain"], []).append(place)

    def allowed(self, domain: Any, excluded_titles: Iterable[str]) -> Tensor:
        """(candidates,) bool: of this domain, and none of these titles.

        Raises:
            ValueError: where no candidate is of this domain.
        """
        mask = torch.full((len(self.items),), domain is None)
        if domain is not None:
            if domain not in self._by_domain:
                known = (
                    ", ".join(repr(name) for name in sorted(map(str, self._by_domain))) or "none: no candidate has one"
                )
                raise ValueError(f"No candidate is of the domain {domain!r}; there are {known}.")
            mask[self._by_domain[domain]] = True
        for title in set(excluded_titles):
            mask[self._by_title.get(title, [])] = False
        return mask


__all__ = ["RecommendationPipeline"]
