"""A model card as a page, about as the Hub shows it."""

import re
from html.parser import HTMLParser
from pathlib import Path

from markdown_it import MarkdownIt

STYLE = """
body { margin: 0; font: 16px/1.6 "Source Sans 3", "Helvetica Neue", Arial, sans-serif; color: #374151; }
article { max-width: 46rem; margin: 2rem auto; padding: 0 1.5rem; }
h1, h2, h3 { color: #111827; line-height: 1.3; } h2 { border-bottom: 1px solid #e5e7eb; padding-bottom: .3rem; }
a { color: #2563eb; } img { max-width: 100%; }
code { background: #f3f4f6; padding: .1em .3em; border-radius: 4px; font-size: .9em; }
pre { background: #f9fafb; border: 1px solid #e5e7eb; border-radius: 8px; padding: .8rem; overflow-x: auto; }
pre code { background: none; padding: 0; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: .92em; }
th, td { border: 1px solid #e5e7eb; padding: .3rem .6rem; } th { background: #f9fafb; }
"""


def page(card: Path) -> str:
    """The HTML of a card without its metadata; images keep their relative paths."""
    text = re.sub(r"\A---\n.*?\n---\n", "", card.read_text(encoding="utf-8"), count=1, flags=re.DOTALL)
    body = MarkdownIt("commonmark").enable("table").render(text)
    return f'<!doctype html><meta charset="utf-8"><style>{STYLE}</style><article>{body}</article>'


class Outline(HTMLParser):
    """What a page holds: the rows of its tables, its images, its text and its code."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.images: list[str] = []
        self.headings: list[str] = []
        self.text, self._cell, self._inside = "", None, []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self._inside.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "img":
            self.images.append(dict(attrs)["src"])
        elif tag in ("h1", "h2", "h3"):
            self.headings.append("")

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "style" in self._inside:
            return
        self.text += data
        if {"td", "th"} & set(self._inside):
            self.tables[-1][-1][-1] += data
        elif {"h1", "h2", "h3"} & set(self._inside):
            self.headings[-1] += data
