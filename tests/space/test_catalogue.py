from pathlib import Path

import polars as pl
import pytest
from catalogue import Catalogue, CatalogueError, Item, find_catalogue, fold, read_catalogue

TITLES = [
    "Café Crème Cups",
    "Espresso Beans",
    "Milk Jug for Espresso",
    "Guitar Strings",
    "Bass Guitar",
    "Espresso Beans",
]
DOMAINS = ["Kitchen", "Grocery", "Kitchen", "Music", "Music", "Office"]


@pytest.fixture
def catalogue() -> Catalogue:
    return Catalogue(TITLES, DOMAINS, [1, 2, 3, 4, 5, 6])


def test_what_is_typed_finds_titles_whatever_its_capitals_accents_and_order(catalogue: Catalogue) -> None:
    assert [item.title for item in catalogue.search("cafe creme")] == ["Café Crème Cups"]
    assert [item.title for item in catalogue.search("STRINGS gui")] == ["Guitar Strings"]
    assert catalogue.search("violin") == []


def test_titles_that_begin_with_the_text_come_first_and_each_title_once(catalogue: Catalogue) -> None:
    # "Espresso Beans" is in two domains: the more popular one stands for both.
    assert catalogue.search("espresso") == [Item("Espresso Beans", "Office"), Item("Milk Jug for Espresso", "Kitchen")]
    # A word that begins so stands before one that holds it.
    inside = Catalogue(["Presses", "Wine Press", "Espresso"], ["a", "a", "a"], [1, 2, 3])
    assert [item.title for item in inside.search("press")] == ["Presses", "Wine Press", "Espresso"]


def test_nothing_typed_gives_popular_items_of_all_domains_in_turn(catalogue: Catalogue) -> None:
    assert catalogue.search("  ", limit=4) == [
        Item("Espresso Beans", "Grocery"), Item("Milk Jug for Espresso", "Kitchen"), Item("Bass Guitar", "Music"),
        Item("Café Crème Cups", "Kitchen"),
    ]  # fmt: skip


def test_a_typed_title_is_recognised(catalogue: Catalogue) -> None:
    assert catalogue.named("cafe creme CUPS") == Item("Café Crème Cups", "Kitchen")
    assert catalogue.named("Café") is None
    assert fold("  Größe: L/XL ") == "grosse l xl"
    assert fold("寿司") == "寿司" and fold("Хлеб!") == "хлеб"


def test_a_catalogue_is_found_beside_the_model_or_where_it_is_named(tmp_path: Path) -> None:
    model = tmp_path / "model"
    (model / "index").mkdir(parents=True)
    frame = pl.DataFrame({"title": ["a"], "domain": ["x"]})
    with pytest.raises(CatalogueError, match="has no index/catalogue.parquet.*LLMREC_CATALOGUE"):
        find_catalogue(None, str(model))
    frame.write_parquet(model / "index" / "catalogue.parquet")
    assert find_catalogue(None, str(model)) == (model / "index" / "catalogue.parquet", None)
    (model / "index" / "item_embeddings.safetensors").write_bytes(b"")
    assert find_catalogue(None, str(model))[1] == model / "index" / "item_embeddings.safetensors"
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    frame.write_parquet(prepared / "catalogue.parquet")
    assert find_catalogue(str(prepared), str(model)) == (prepared / "catalogue.parquet", None)
    with pytest.raises(CatalogueError, match="no catalogue at .*nowhere.parquet"):
        find_catalogue(str(tmp_path / "nowhere.parquet"), str(model))
    with pytest.raises(CatalogueError, match="org/items is neither a file.*nor a dataset"):
        find_catalogue("org/items", str(model))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"title": ["a"]}, "no column 'domain'; it has title"),
        ({"title": ["a", None], "domain": ["x", "x"]}, "row 2 has no title"),
        ({"title": ["a", "  "], "domain": ["x", "x"]}, "row 2 has no title"),
        ({"title": ["a"], "domain": [None]}, "row 1 has no domain"),
        ({"title": [], "domain": []}, "empty"),
    ],
)
def test_a_catalogue_that_cannot_be_used_says_why(tmp_path: Path, columns: dict, message: str) -> None:
    pl.DataFrame(columns).write_parquet(tmp_path / "items.parquet")
    with pytest.raises(CatalogueError, match=message):
        read_catalogue(tmp_path / "items.parquet")


def test_a_file_that_is_not_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "items.parquet").write_text("title,domain\na,x\n")
    with pytest.raises(CatalogueError, match="items.parquet is not a readable Parquet file"):
        read_catalogue(tmp_path / "items.parquet")
