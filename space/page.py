"""The page: what stands where, and what happens on a click."""

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import gradio as gr
import render
from catalogue import Catalogue, Item
from ranker import LONGEST_TITLE, MOST_TITLES, PageError, Ranker, is_blank

HERE = Path(__file__).parent
ALL_DOMAINS = "All domains"
RESULT_COUNTS = (5, 10, 20, 50)
DEFAULT_COUNT = 10
MOST_PILLS = 12
"""With more domains than this the target is chosen from a menu instead of a row of buttons."""

# Fonts of the visitor's own system: nothing is fetched from elsewhere.
FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "Helvetica Neue", "Arial", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")

# The address bar follows, so that a page can be reloaded, bookmarked and passed on.
KEEP_ADDRESS = """(history, domain, k) => {
  const url = new URL(window.location.href);
  for (const name of ["title", "domain", "k"]) url.searchParams.delete(name);
  for (const item of history || []) url.searchParams.append("title", item.title);
  if (history?.length && domain !== ALL) url.searchParams.set("domain", domain);
  if (history?.length && k !== DEFAULT) url.searchParams.set("k", k);
  window.history.replaceState(window.history.state, "", url);
}""".replace("ALL", json.dumps(ALL_DOMAINS)).replace("DEFAULT", str(DEFAULT_COUNT))

# On a phone the results stand below the fold.
SHOW_RESULTS = """() => {
  const results = document.getElementById("results");
  if (results.getBoundingClientRect().top > window.innerHeight * 0.6) {
    const calm = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
    results.scrollIntoView({behavior: calm ? "auto" : "smooth", block: "start"});
  }
}"""


class Page:
    """The handlers of the page.

    Args:
        ranker: answers.
    """

    def __init__(self, ranker: Ranker) -> None:
        self.ranker = ranker
        self.catalogue: Catalogue = ranker.catalogue
        self.hues = render.domain_hues(self.catalogue.domain_names)
        self.examples = ranker.examples()
        self.welcome = render.welcome(self.examples, self.hues)

    def search(self, text: str) -> dict[str, Any]:
        """Suggestions for what is being typed, and the item that it names if it names one."""
        text = str(text)[:LONGEST_TITLE]
        named = self.catalogue.named(text) if not is_blank(text) else None
        found = self.catalogue.search(text)
        return {"found": [_as_json(item) for item in found], "named": None if named is None else _as_json(named)}

    def refresh(self, history: Any, domain: str, k: int) -> str:
        """The right-hand side after a change: the results, or the welcome where nothing is chosen."""
        return self.answer(history, domain, k) if history else self.welcome

    def answer(self, history: Any, domain: str | None, k: int) -> str:
        """The results, or what to put right."""
        try:
            target = None if domain in (None, ALL_DOMAINS) else str(domain)
            found = self.ranker.rank(_titles(history), target, k)
        except PageError as error:
            return render.problem(str(error)) + ("" if history else self.welcome)
        return render.ranking(found, target, self.ranker.window, self.hues)

    def take_example(self, event: gr.EventData) -> list[dict[str, Any]]:
        """The history of the example that was clicked."""
        number = int(event._data["number"])
        return [_as_json(item) for item in self.examples[number]]

    def open_link(self, query: str) -> tuple[Any, Any, Any, Any]:
        """The history, domain, number of results and right-hand side that an address asks for.

        What it does not ask for is left as it is: somebody may have begun to type before this answer arrives.
        """
        asked = parse_qs(str(query).lstrip("?"))
        titles = asked.get("title", [])
        domain = asked.get("domain", [ALL_DOMAINS])[-1]
        count = asked.get("k", [str(DEFAULT_COUNT)])[-1]
        if domain != ALL_DOMAINS and domain not in self.catalogue.domain_names:
            known = ", ".join(self.catalogue.domain_names)
            text = f"This link asks for the domain “{domain}”, which is not here. There are: {known}."
            return gr.skip(), gr.skip(), gr.skip(), render.problem(text) + self.welcome
        k = int(count) if count in map(str, RESULT_COUNTS) else DEFAULT_COUNT
        if not titles:
            return gr.skip(), domain if "domain" in asked else gr.skip(), k if "k" in asked else gr.skip(), gr.skip()
        history = [_as_json(self.catalogue.named(title) or Item(title, None)) for title in titles]
        return history, domain, k, self.answer(history, domain, k)

    def recommend(self, titles: list[str], domain: str | None = None, k: int = DEFAULT_COUNT) -> list[dict[str, Any]]:
        """Ranked items for a history of titles, oldest first.

        Args:
            titles: the history.
            domain: recommend from this domain only.
            k: how many items.

        Returns:
            One object an item: title, domain, score, and for each title of the history its contribution.
        """
        try:
            found = self.ranker.rank(titles, domain, k)
        except PageError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return [
            {**_as_json(one.item), "score": one.score, "contributions": list(one.contributions)}
            for one in found.results
        ]


def build(ranker: Ranker, model_name: str) -> gr.Blocks:
    """The page for a model and its catalogue; `launch_options` belong to it."""
    page = Page(ranker)
    items, domains = len(page.catalogue), page.catalogue.domain_names

    def search(text: str) -> dict[str, Any]:  # gradio marks what the browser may call, which a method does not take
        return page.search(text)

    # A folder of this machine is nobody's business.
    name = Path(model_name).name if Path(model_name).is_absolute() else model_name
    with gr.Blocks(title="LLM-Rec: what comes next?", analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML(
            "<header class='masthead'><h1>LLM-Rec</h1><p>One language model reads the titles of what you liked, in any "
            f"domain, and ranks {items:,} items by what comes next.</p></header>",
            elem_id="masthead", apply_default_css=False,
        )  # fmt: skip
        with gr.Row(elem_id="columns", equal_height=False):
            with gr.Column(elem_id="question", min_width=280):
                picker = gr.HTML(
                    value=[],
                    html_template=(HERE / "picker.html").read_text(encoding="utf-8"),
                    js_on_load=(HERE / "picker.js").read_text(encoding="utf-8"),
                    server_functions=[search],
                    hues=page.hues, window=ranker.window, most=MOST_TITLES, typed=render.TYPED,
                    elem_id="picker", apply_default_css=False,
                )  # fmt: skip
                domain = _choice([ALL_DOMAINS, *domains], ALL_DOMAINS, "Recommend from", "domain")
                k = _choice(list(RESULT_COUNTS), DEFAULT_COUNT, "How many", "count")
                button = gr.Button("Recommend", variant="primary", elem_id="go")
            with gr.Column(elem_id="answer", min_width=280):
                results = gr.HTML(
                    value=page.welcome,
                    js_on_load="""element.addEventListener("click", (event) => {
                        const card = event.target.closest("[data-example]");
                        if (card) trigger("example", {number: Number(card.dataset.example)});
                    });""",
                    elem_id="results", apply_default_css=False,
                )  # fmt: skip
        gr.HTML(
            f"<footer class='colophon'><p>Model: <code>{escape(name)}</code>, read with the code that stands "
            "beside its weights. What you type stays on the machine that runs this page.</p></footer>",
            elem_id="colophon", apply_default_css=False,
        )  # fmt: skip
        address = gr.Textbox(visible=False)

        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        asked = [picker, domain, k]
        gr.on(
            [picker.change, domain.change, k.change], page.refresh, asked, results, trigger_mode="always_last", **quiet
        ).then(None, asked, None, js=KEEP_ADDRESS, **quiet)
        button.click(page.answer, asked, results, **quiet).then(None, None, None, js=SHOW_RESULTS, **quiet)
        results.example(page.take_example, None, picker, **quiet)
        blocks.load(page.open_link, address, [picker, domain, k, results], js="() => window.location.search", **quiet)
        gr.api(page.recommend, api_name="recommend")
    return blocks


def launch_options() -> dict[str, Any]:
    """How Gradio serves the page: our looks, no footer, nothing recorded, nothing fetched from elsewhere."""
    theme = gr.themes.Base(
        primary_hue=gr.themes.colors.indigo, neutral_hue=gr.themes.colors.slate, font=FONT, font_mono=MONO
    )
    return {
        "theme": theme, "css_paths": HERE / "style.css", "footer_links": [], "run_history": False, "ssr_mode": False,
        "pwa": False, "enable_monitoring": False,
    }  # fmt: skip


def _choice(choices: Sequence[str | int], value: str | int, label: str, name: str) -> Any:
    if len(choices) > MOST_PILLS:
        return gr.Dropdown(list(choices), value=value, label=label, elem_id=name)
    return gr.Radio(list(choices), value=value, label=label, elem_id=name, elem_classes="pills")


def _as_json(item: Item) -> dict[str, Any]:
    return {"title": item.title, "domain": item.domain}


def _titles(history: Any) -> list[str]:
    """The titles of what the browser sends: a list of objects with a title."""
    if not isinstance(history, list) or not all(isinstance(one, dict) and "title" in one for one in history):
        return []
    return [str(one["title"]) for one in history]
