import pytest
import render
from catalogue import Item
from ranker import Ranking, Result

HUES = render.domain_hues(["Kitchen", "Music"])
HISTORY = ("Espresso <b>Cup</b>", 'Guitar & "Strings"', "Milk 'Jug'")


def answer(*results: Result, history: tuple[str, ...] = HISTORY, first_read: int = 0) -> Ranking:
    return Ranking(history, first_read, 1234, results, 0.25)


def result(score: float, *without: float | None, title: str = "Moka Pot") -> Result:
    return Result(Item(title, "Kitchen"), score, without)


def test_titles_are_text_wherever_they_stand() -> None:
    hostile = "<img src=x onerror='attack()'>\" & <script>attack()</script>"
    shown = result(0.5, 0.3, 0.6, 0.5, title=hostile)
    for page in (
        render.ranking(answer(shown, history=(hostile, *HISTORY[1:])), "Music", 10, HUES),
        render.welcome([[Item(hostile, "Music")]], HUES),
        render.problem(hostile),
    ):
        assert "<img" not in page and "<script" not in page and "onerror='" not in page
        assert "&lt;img src=x onerror=&#x27;attack()&#x27;&gt;&quot; &amp; &lt;script&gt;" in page


@pytest.mark.parametrize(
    ("scores", "sentence"),
    [
        ((0.5, 0.3, 0.6, 0.5), "1</span> <q dir='auto'>Espresso &lt;b&gt;Cup&lt;/b&gt;</q> raised it most: "
         "<b>0.500</b> with it, <b>0.300</b> without."),
        ((0.5, 0.5, 0.8, 0.4), "2</span> <q dir='auto'>Guitar &amp; &quot;Strings&quot;</q> lowered it most: "
         "<b>0.500</b> with it, <b>0.800</b> without."),
        ((0.5, 0.5001, 0.4999, 0.5), "No single title matters here: without any one of them the score would be "
         "the same."),
    ],
)  # fmt: skip
def test_one_sentence_says_what_moved_a_result(scores: tuple, sentence: str) -> None:
    assert render.explanation(result(*scores), HISTORY).endswith(sentence)


def test_bars_and_squares_share_one_scale_over_all_results() -> None:
    page = render.ranking(answer(result(0.5, 0.3, 0.55, 0.5), result(0.4, 0.35, 0.5, 0.4002)), None, 10, HUES)
    assert page.count("class='up' style='width:50.0%'") == 1  # +0.2, the largest of all
    assert page.count("class='down' style='width:12.5%'") == 1  # -0.05
    assert page.count("class='up' style='width:12.5%'") == 1  # +0.05 in the second result
    assert "cell up' style='--heat:1.00'" in page and "cell none' style='--heat:0.00'" in page
    assert "What each title did to result 2. title 1: +0.050; title 2: −0.100; title 3: 0.000" in page
    assert page.count("<details open>") == 1 and page.count("<details>") == 1
    assert "1,234 items ranked in 0.25 s" in page


def test_titles_that_were_not_read_are_told_and_not_drawn() -> None:
    page = render.ranking(answer(result(0.5, 0.5, 0.4, 0.6), first_read=1), None, 2, HUES)
    assert "This model reads the newest 2: title 1 was not read and changed nothing." in page
    assert page.count("class='cell ") == 2
    assert "as many of the newest as fit, here 1: titles 1 to 2 were not read" in render.ranking(
        answer(result(0.5, 0.5, 0.5, 0.6), first_read=2), None, 2, HUES
    )


def test_a_single_title_has_no_squares_and_a_hint() -> None:
    page = render.ranking(answer(result(0.5, None), history=("Tea",)), None, 10, HUES)
    assert "Add a second title" in page and "class='cell " not in page and "<details" not in page


def test_domains_get_hues_of_their_own() -> None:
    hues = render.domain_hues([f"domain {n}" for n in range(30)])
    assert len(set(hues.values())) == 30
