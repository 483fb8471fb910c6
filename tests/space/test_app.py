"""The page in a real browser: type, choose, click, read; in both sizes and both themes."""

import json
import re
import struct
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import torch

from llmrec.data.catalogue import Catalogue
from tests.space.hostile import HOSTILE

pytestmark = pytest.mark.slow

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
MOKA, TYPED = "Pellingford Stovetop Moka Pot, 6 Cup", "Sourdough starter in a jar"
LONG = ("An exceedingly long title about coffee, grinders and people who love them " * 4)[:200]
FOREIGN = ["Хлеб на закваске", "寿司の作り方", "كتاب القهوة", "W" * 150]

# Contrast of every piece of visible text with what lies behind it, as WCAG computes it; the three lowest.
CONTRASTS = """() => {
  const parse = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return [n[0], n[1], n[2], n[3] ?? 1]; };
  const over = (top, under) => [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3])).concat(1);
  const behind = (node) => {
    if (!node) return [255, 255, 255, 1];
    const colour = parse(getComputedStyle(node).backgroundColor);
    return colour[3] === 1 ? colour : over(colour, behind(node.parentElement));
  };
  const light = (colour) => {
    const [r, g, b] = colour.slice(0, 3).map((c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  const walker = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !node.checkVisibility() || node.closest(".unseen")) continue;
    const under = behind(node), ink = over(parse(getComputedStyle(node).color), under);
    const [a, b] = [light(ink), light(under)].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), walker.currentNode.data.trim().slice(0, 40)]);
  }
  return [found.length, found.sort((x, y) => x[0] - y[0]).slice(0, 3)];
}"""


def box(page: Any) -> Any:
    return page.get_by_role("combobox", name="Your history")


def chosen(page: Any) -> list[str]:
    return page.locator(".chosen .title").all_inner_texts()


def wait_for_results(page: Any, *titles: str) -> None:
    """Wait until the page has answered for exactly this history: the results carry its figures."""
    cells = len(titles) if len(titles) > 1 else 0
    page.wait_for_function(
        """([titles, cells]) => {
            const shown = [...document.querySelectorAll(".chosen .title")].map((node) => node.textContent);
            const first = document.querySelector(".result");
            const told = first ? [...first.querySelectorAll(".bar-title")].map((node) => node.textContent) : null;
            return JSON.stringify(shown) === JSON.stringify(titles) && first !== null && told.length === cells
              && (cells === 0 || JSON.stringify(told) === JSON.stringify(titles));
        }""",
        arg=[list(titles), cells],
    )


def read_results(page: Any) -> list[dict[str, Any]]:
    """What the page shows: of each result the title, domain, score as shown and exact, and the titles' figures."""
    return page.eval_on_selector_all(
        ".result",
        """(rows) => rows.map((row) => ({
            title: row.querySelector("h3").textContent,
            domain: row.querySelector(".domain").textContent,
            shown: Number(row.querySelector(".score").textContent.replace("score ", "")),
            score: Number(row.querySelector(".score").title),
            figures: [...row.querySelectorAll(".figure")].map((node) => Number(node.title)),
            told: [...row.querySelectorAll(".figure")].map((node) => Number(node.textContent.replace("−", "-"))),
        }))""",
    )


def scores(ranker: Any, history: list[str], titles: list[str]) -> list[float]:
    """The model's own scores, computed here and not by the page."""
    with torch.no_grad():
        return ranker.model(**ranker.processor(histories=[history], items=titles)).scores[0].tolist()


def assert_no_overflow(page: Any) -> None:
    width, room = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert width <= room, f"the page is {width} wide on a screen of {room}"


def test_choose_type_read_remove_and_change_the_domain(open_page: Any, ranker: Any, items: Catalogue) -> None:
    page = open_page()
    box(page).fill("moka")
    page.get_by_role("option", name=MOKA).click()
    box(page).fill(TYPED)
    box(page).press("Enter")
    page.get_by_role("button", name="Recommend").click()
    wait_for_results(page, MOKA, TYPED)
    assert page.locator(".chosen .domain").all_inner_texts() == ["Kitchen", "typed by you"]

    both = read_results(page)
    every = scores(ranker, [MOKA, TYPED], items.titles)
    expected = sorted((row for row in range(len(items)) if items.titles[row] != MOKA), key=lambda row: -every[row])[:10]
    assert [(one["title"], one["domain"]) for one in both] == [(items.titles[r], items.domains[r]) for r in expected]
    alone = {title: scores(ranker, [title], [one["title"] for one in both]) for title in (MOKA, TYPED)}
    for place, one in enumerate(both):
        assert one["score"] == pytest.approx(every[expected[place]], abs=1e-4)
        assert one["shown"] == pytest.approx(one["score"], abs=5.1e-4)
        # Without the first title only the second is left, and the other way round.
        assert one["figures"][0] == pytest.approx(one["score"] - alone[TYPED][place], abs=1e-4)
        assert one["figures"][1] == pytest.approx(one["score"] - alone[MOKA][place], abs=1e-4)
        assert one["told"] == pytest.approx(one["figures"], abs=5.1e-4)

    # Removing a title shows the very scores that its figures spoke of.
    page.get_by_role("button", name=f"Remove {TYPED}").click()
    wait_for_results(page, MOKA)
    one_title = {one["title"]: one["score"] for one in read_results(page)}
    common = [one for one in both if one["title"] in one_title]
    assert common
    for one in common:
        assert one_title[one["title"]] == pytest.approx(one["score"] - one["figures"][1], abs=1e-5)
    assert "Add a second title" in page.locator("#results .note").inner_text()

    page.get_by_label("Garden").check(force=True)
    page.get_by_role("heading", name="Top 10 in Garden").wait_for()
    page.get_by_label("5", exact=True).check(force=True)
    page.get_by_role("heading", name="Top 5 in Garden").wait_for()
    garden = [row for row in range(len(items)) if items.domains[row] == "Garden"]
    values = scores(ranker, [MOKA], [items.titles[row] for row in garden])
    best = sorted(range(len(garden)), key=lambda place: -values[place])[:5]
    assert [one["title"] for one in read_results(page)] == [items.titles[garden[place]] for place in best]

    # The address holds it all: opened elsewhere it shows the same.
    page.wait_for_url(re.compile("domain=Garden"))
    again = open_page("?" + page.url.split("?", 1)[1])
    again.get_by_role("heading", name="Top 5 in Garden").wait_for()
    assert read_results(again) == read_results(page)


def test_everything_works_from_the_keyboard(open_page: Any) -> None:
    page = open_page(width=390, height=844)
    box(page).focus()
    page.keyboard.press("ArrowDown")
    page.get_by_role("option").first.wait_for()
    assert box(page).get_attribute("aria-expanded") == "true"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")  # from the first to the last
    last = page.get_by_role("option").last
    assert last.get_attribute("aria-selected") == "true"
    assert box(page).get_attribute("aria-activedescendant") == last.get_attribute("id")
    name = last.locator(".title").inner_text()
    page.keyboard.press("Enter")
    wait_for_results(page, name)
    page.keyboard.type("tea")
    page.get_by_role("option").first.wait_for()
    page.keyboard.press("Escape")
    assert page.get_by_role("option").count() == 0 and box(page).get_attribute("aria-expanded") == "false"
    page.keyboard.press("Enter")
    wait_for_results(page, name, "tea")
    # The focus follows to the neighbour, and to the box where there is none.
    for left in (1, 0):
        page.locator(".chosen .remove").last.focus()
        page.keyboard.press("Enter")
        page.wait_for_function("(left) => document.querySelectorAll('.chosen .remove').length === left", arg=left)
        assert page.evaluate("document.activeElement.matches('.remove, #title-input')")
    page.get_by_role("heading", name="What comes next?").wait_for()


def test_what_is_wrong_is_said_in_the_page(open_page: Any) -> None:
    page = open_page()
    complaint, problem = page.locator(".complaint"), page.locator(".problem")
    page.get_by_role("button", name="Recommend").click()
    problem.get_by_text("Nothing is chosen yet").wait_for()
    assert page.locator(".example").count() == 3  # a way out stands below
    box(page).fill("   ")
    box(page).press("Enter")
    complaint.get_by_text("Type a title first").wait_for()
    assert box(page).get_attribute("aria-invalid") is not None
    for _ in range(2):
        box(page).fill("Tea Kettle")
        box(page).press("Enter")
        page.locator(".chosen li").wait_for()
    complaint.get_by_text("“Tea Kettle” is in your list already.").wait_for()
    assert chosen(page) == ["Tea Kettle"]

    page = open_page("?title=Tea&domain=Gardn")
    problem = page.locator(".problem")
    problem.get_by_text("asks for the domain “Gardn”, which is not here. There are: Books, Garden").wait_for()
    page = open_page("?" + urlencode([("title", "Tea"), ("title", "x" * 501)]))
    page.locator(".problem").get_by_text("Title 2 has 501 characters").wait_for()


def test_an_example_fills_the_history(open_page: Any) -> None:
    page = open_page()
    example = page.locator(".example").nth(1)
    titles = example.locator("li").all_inner_texts()
    example.click()
    wait_for_results(page, *titles)
    page.get_by_role("button", name="Remove all").click()
    page.locator(".example").first.wait_for()
    assert chosen(page) == []


def test_titles_are_text_and_a_crowd_of_them_fits(open_page: Any) -> None:
    titles = [*[f"Plain title {number}" for number in range(22)], LONG, *FOREIGN, *HOSTILE]
    for width, height in SIZES.values():
        page = open_page("?" + urlencode([("title", title) for title in titles]), width=width, height=height)
        page.locator(".result").first.wait_for()
        assert chosen(page) == titles
        read = page.locator(".result").first.locator(".bar-title").all_text_contents()
        assert read == titles[20:]  # the newest ten
        assert "titles 1 to 20 were not read" in page.locator(".note").inner_text()
        assert page.locator(".chosen li.unread").count() == 20
        assert_no_overflow(page)
        assert page.evaluate("window.attacked") is None
        assert page.locator("#results img, #picker img, #results script").count() == 0
    # As suggestions, and as results, they are text too.
    page = open_page()
    box(page).fill("tea towel")
    assert HOSTILE[0] in page.get_by_role("option").first.inner_text()
    box(page).fill("Garden Gloves with ${x} {{y}}")
    box(page).press("Enter")
    page.get_by_role("heading", name=HOSTILE[1]).wait_for()
    assert page.evaluate("window.attacked") is None


def test_quick_hands_lose_nothing(open_page: Any) -> None:
    """Titles typed before the answers to earlier ones, or to the opening of the page, have arrived."""
    page = open_page()
    titles = [f"Quickly typed {number}" for number in range(6)]
    for title in titles:
        box(page).fill(title)
        box(page).press("Enter")
    wait_for_results(page, *titles)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_it_looks_right_in_each_size_and_theme(open_page: Any, tmp_path: Path, size: str, theme: str) -> None:
    width, height = SIZES[size]
    query = "?" + urlencode([("title", title) for title in (MOKA, TYPED, "Coffee for Beginners", "Tent Pegs")])
    page = open_page(query, width=width, height=height, theme=theme)
    page.locator(".result").nth(9).wait_for()
    assert_no_overflow(page)
    backdrop = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", backdrop)[:3])) < 200) is (theme == "dark")
    number, lowest = page.evaluate(CONTRASTS)
    assert number > 60 and lowest[0][0] >= 4.5, f"text of too little contrast: {lowest}"
    assert page.get_by_text("Use via API").count() == page.locator("footer a").count() == 0
    side_by_side = page.evaluate(
        """() => document.getElementById("answer").getBoundingClientRect().top
             < document.getElementById("question").getBoundingClientRect().bottom - 10"""
    )
    assert side_by_side is (size == "desktop")
    if size == "phone":
        page.get_by_role("button", name="Recommend").click()
        page.wait_for_function("document.getElementById('results').getBoundingClientRect().top < 100")
    shot = page.screenshot(path=tmp_path / f"{size}-{theme}.png")
    assert struct.unpack(">II", shot[16:24]) == (width, height)
    page.get_by_role("button", name="Remove all").click()
    page.locator(".example").first.wait_for()
    number, lowest = page.evaluate(CONTRASTS)
    assert number > 20 and lowest[0][0] >= 4.5, f"text of too little contrast: {lowest}"
    assert_no_overflow(page)


def test_many_domains_are_a_menu() -> None:
    gradio = pytest.importorskip("gradio")
    from page import ALL_DOMAINS, MOST_PILLS, _choice

    names = [ALL_DOMAINS, *(f"domain {number}" for number in range(MOST_PILLS))]
    assert isinstance(_choice(names, ALL_DOMAINS, "Recommend from", "domain"), gradio.Dropdown)
    assert isinstance(_choice(names[:-1], ALL_DOMAINS, "Recommend from", "domain"), gradio.Radio)


def test_programs_get_the_same_from_the_api(address: str, ranker: Any) -> None:
    def call(*data: Any) -> tuple[str, Any]:
        url = f"{address}/gradio_api/call/recommend"
        body = json.dumps({"data": data}).encode()
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        event = json.load(urllib.request.urlopen(request, timeout=30))["event_id"]
        lines = urllib.request.urlopen(f"{url}/{event}", timeout=30).read().decode().splitlines()
        return lines[0].removeprefix("event: "), json.loads(lines[1].removeprefix("data: "))

    event, (found,) = call([MOKA, TYPED], "Books", 3)
    assert event == "complete"
    expected = ranker.rank([MOKA, TYPED], "Books", 3).results
    assert [one["title"] for one in found] == [one.item.title for one in expected]
    for one, ours in zip(found, expected, strict=True):
        assert one["score"] == pytest.approx(ours.score, abs=1e-5)
        assert one["contributions"] == pytest.approx(ours.contributions, abs=1e-5)
    event, error = call([MOKA], "Gardn", 3)
    assert event == "error" and "no domain “Gardn” here" in json.dumps(error, ensure_ascii=False)
