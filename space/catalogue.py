"""The items that the page can recommend: reading them, finding them by a few letters."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import polars as pl
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

CATALOGUE_FILE = "catalogue.parquet"
INDEX_FOLDER = "index"
VECTORS_FILE = "item_embeddings.safetensors"
MOST_STARTERS = 10
"""Popular items of each domain that are suggested before anything is typed."""


class CatalogueError(ValueError):
    """There is no catalogue where one was looked for, or it cannot be used."""


@dataclass(frozen=True)
class Item:
    """A title and where it belongs; `domain` is None for a title that somebody typed."""

    title: str
    domain: str | None


class Catalogue:
    """Titles and domains, by row number.

    Args:
        titles, domains: one an item, in the same order.
        train_count: how often each item was bought in training, where that is known; orders suggestions.

    Raises:
        CatalogueError: no items, or lists of different lengths.
    """

    def __init__(self, titles: Sequence[str], domains: Sequence[str], train_count: Sequence[int] | None = None) -> None:
        self.titles, self.domains = list(titles), list(domains)
        self.train_count = [0] * len(self.titles) if train_count is None else list(train_count)
        if not len(self.titles) == len(self.domains) == len(self.train_count):
            raise CatalogueError("The columns of the catalogue differ in length.")
        if not self.titles:
            raise CatalogueError("The catalogue is empty: there is nothing to recommend.")
        self.domain_names = sorted(set(self.domains))
        self._folded = [fold(title) for title in self.titles]
        self._by_title: dict[str, list[int]] = {}
        self._by_folded: dict[str, int] = {}
        for row, title in enumerate(self.titles):
            self._by_title.setdefault(title, []).append(row)
            self._by_folded.setdefault(self._folded[row], row)
        # Best sellers first; sorting is stable, so equals stay in the order of the catalogue.
        self._popular = sorted(range(len(self.titles)), key=lambda row: -self.train_count[row])
        self._starters = self._popular_of_each_domain()
        self._table = pl.DataFrame(
            {
                "row": self._popular,
                "title": [self.titles[row] for row in self._popular],
                "words": [f" {self._folded[row]}" for row in self._popular],
            }
        )

    def __len__(self) -> int:
        return len(self.titles)

    def item(self, row: int) -> Item:
        return Item(self.titles[row], self.domains[row])

    def rows_with_title(self, title: str) -> list[int]:
        """Every item of exactly this title."""
        return self._by_title.get(title, [])

    def rows_of_domain(self, domain: str) -> list[int]:
        return [row for row, name in enumerate(self.domains) if name == domain]

    def named(self, text: str) -> Item | None:
        """The item whose title this is, small differences of spelling aside; None if there is none."""
        row = self._by_folded.get(fold(text))
        return None if row is None else self.item(row)

    def search(self, text: str, limit: int = 8) -> list[Item]:
        """Items whose titles hold every word of `text`, or words that begin so or hold it; best matches first.

        Titles that begin with the text stand before those where each word begins a word, and those before the others;
        among equals the more popular. A blank text gives popular items, of all domains in turn.
        """
        words = fold(text).split()
        if not words:
            return [self.item(row) for row in self._starters[:limit]]
        title = pl.col("words")
        place = (
            pl.when(title.str.starts_with(" " + " ".join(words)))
            .then(0)
            .when(pl.all_horizontal(title.str.contains(" " + word, literal=True) for word in words))
            .then(1)
            .otherwise(2)
        )
        found = (
            self._table.filter(pl.all_horizontal(title.str.contains(word, literal=True) for word in words))
            .sort(place, maintain_order=True)
            .unique("title", keep="first", maintain_order=True)
            .head(limit)
        )
        return [self.item(row) for row in found["row"]]

    def popular(self) -> list[int]:
        """Rows, those bought most in training first."""
        return self._popular

    def _popular_of_each_domain(self) -> list[int]:
        """Rows of a few popular items of each domain, the domains in turn, each title once."""
        of_domain: dict[str, list[int]] = {name: [] for name in self.domain_names}
        for row in self._popular:
            if len(of_domain[self.domains[row]]) < MOST_STARTERS:
                of_domain[self.domains[row]].append(row)
        turns = zip_longest(*of_domain.values())
        distinct: dict[str, int] = {}
        for row in (row for turn in turns for row in turn if row is not None):
            distinct.setdefault(self.titles[row], row)
        return list(distinct.values())


def fold(text: str) -> str:
    """Text as it is compared: without capitals, accents and punctuation, words apart by one blank."""
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    kept = (c if c.isalnum() else " " for c in decomposed if not unicodedata.combining(c))
    return " ".join("".join(kept).split())


def find_catalogue(catalogue: str | None, model: str, revision: str | None = None) -> tuple[Path, Path | None]:
    """Where the items are, and their vectors if the model's repository has them.

    Args:
        catalogue: a Parquet file, a folder with a `catalogue.parquet`, or the Hub id of a dataset with one. None for
            the one in `index/` beside the model.
        model: folder or Hub id of the model.
        revision: of the model's repository.

    Raises:
        CatalogueError: none is there; says where was looked and what to do.
    """
    if catalogue is None:
        found = _file_of(model, f"{INDEX_FOLDER}/{CATALOGUE_FILE}", revision)
        if found is None:
            raise CatalogueError(
                f"{model} has no {INDEX_FOLDER}/{CATALOGUE_FILE}: name the items to recommend with --catalogue or "
                "LLMREC_CATALOGUE (a Parquet file with the columns title and domain)."
            )
        return found, _file_of(model, f"{INDEX_FOLDER}/{VECTORS_FILE}", revision)
    path = Path(catalogue)
    if path.is_dir():
        path = path / CATALOGUE_FILE
    if path.is_file():
        return path, None
    if path.suffix or catalogue.count("/") != 1:
        raise CatalogueError(f"There is no catalogue at {path}.")
    try:
        return Path(hf_hub_download(catalogue, CATALOGUE_FILE, repo_type="dataset")), None
    except (OSError, ValueError) as error:
        raise CatalogueError(
            f"{catalogue} is neither a file or folder here nor a dataset on the Hub with a {CATALOGUE_FILE} "
            f"that can be reached ({type(error).__name__})."
        ) from error


def read_catalogue(path: Path) -> Catalogue:
    """Read a Parquet file with the columns title and domain, and perhaps train_count.

    Raises:
        CatalogueError: not Parquet, a missing column, a null or a blank title, naming the row.
    """
    try:
        frame = pl.read_parquet(path)
    except pl.exceptions.PolarsError as error:
        raise CatalogueError(f"{path} is not a readable Parquet file ({error}).") from error
    for name in ("title", "domain"):
        if name not in frame.columns:
            raise CatalogueError(f"{path} has no column {name!r}; it has {', '.join(frame.columns)}.")
        texts = frame[name].cast(pl.String)
        blank = (texts.is_null() | (texts.str.strip_chars() == "")).arg_true()
        if len(blank):
            raise CatalogueError(f"{path}: row {int(blank[0]) + 1} has no {name}.")
    counts = frame["train_count"].to_list() if "train_count" in frame.columns else None
    return Catalogue(frame["title"].cast(pl.String).to_list(), frame["domain"].cast(pl.String).to_list(), counts)


def _file_of(model: str, name: str, revision: str | None) -> Path | None:
    """A file of the model's folder or repository; None where it has no such file."""
    folder = Path(model)
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    try:
        return Path(hf_hub_download(model, name, revision=revision))
    except EntryNotFoundError:
        return None
