"""The right-hand side of the page as HTML. Every title is escaped; nothing else comes from outside."""

from collections.abc import Mapping, Sequence
from html import escape

from catalogue import Item
from ranker import Ranking, Result

NO_DIFFERENCE = 0.0005
"""A contribution smaller than this is shown as 0.000."""
TYPED = "typed by you"
GOLDEN_ANGLE = 137.508
"""Degrees between the hues of neighbouring domains: any number of them stay apart."""


def domain_hues(names: Sequence[str]) -> dict[str, int]:
    """A hue of the colour circle, in degrees, for each domain."""
    return {name: round(200 + number * GOLDEN_ANGLE) % 360 for number, name in enumerate(names)}


def welcome(examples: Sequence[Sequence[Item]], hues: Mapping[str, int]) -> str:
    """What stands on the right before anything is chosen."""
    cards = []
    for number, items in enumerate(examples):
        titles = "".join(
            f"<li>{_dot(item.domain, hues)}<span dir='auto'>{escape(item.title)}</span></li>" for item in items
        )
        cards.append(
            f"<button type='button' class='example' data-example='{number}'>"
            f"<span class='example-name'>Example {number + 1}</span><ul>{titles}</ul></button>"
        )
    return (
        "<section class='welcome' aria-labelledby='welcome-title'>"
        "<h2 id='welcome-title'>What comes next?</h2>"
        "<p>Put a few titles into your history, from any domain, oldest first. The items most likely to follow appear "
        "here, and beside each of them what every one of your titles did to it.</p>"
        "<p class='try'>Or begin with one of these:</p>"
        f"<div class='examples'>{''.join(cards)}</div></section>"
    )


def problem(text: str) -> str:
    """A message that tells the visitor what to put right."""
    return (
        "<section class='problem' role='alert'><span class='problem-sign' aria-hidden='true'>!</span>"
        f"<p>{escape(text)}</p></section>"
    )


def ranking(answer: Ranking, domain: str | None, window: int, hues: Mapping[str, int]) -> str:
    """The results, best first, each with what the titles of the history did to it."""
    where = f"in {escape(domain)}" if domain else "in all domains"
    largest = max((abs(c) for result in answer.results for c in result.contributions if c is not None), default=0.0)
    parts = [
        "<section class='ranking' aria-labelledby='ranking-title'><header>",
        f"<h2 id='ranking-title'>Top {len(answer.results)} {where}</h2>",
        f"<p role='status'>{_number(answer.candidates)} items ranked in {answer.seconds:.2f} s</p></header>",
    ]
    if answer.first_read:
        parts.append(f"<p class='note'>{_unread(answer, window)}</p>")
    if len(answer.history) > 1:
        parts.append(
            "<p class='legend'>The squares are your titles, by number: "
            "<span><i class='key up'>+</i> raised the score</span> "
            "<span><i class='key down'>−</i> lowered it</span></p>"
        )
    else:
        parts.append("<p class='note'>Add a second title to see what each of them does to every score.</p>")
    parts.append("<ol>")
    for place, result in enumerate(answer.results, start=1):
        parts.append(_result(place, result, answer, largest, hues))
    parts.append("</ol>")
    if len(answer.history) > 1:
        parts.append(
            "<p class='small'>A title’s figure is the score with it minus the score without it, all others left as "
            "they are. Titles can stand in for each other, so the figures need not add up to the score.</p>"
        )
    parts.append("</section>")
    return "".join(parts)


def explanation(result: Result, history: Sequence[str]) -> str:
    """One sentence about a history of several titles: which of them moved this result most, and how far. HTML."""
    known = [(position, c) for position, c in enumerate(result.contributions) if c is not None]
    position, contribution = max(known, key=lambda pair: abs(pair[1]))
    if abs(contribution) < NO_DIFFERENCE:
        return "No single title matters here: without any one of them the score would be the same."
    without = result.without[position]
    verb = "raised it" if contribution > 0 else "lowered it"
    return (
        f"{_badge(position)} <q dir='auto'>{escape(_shortened(history[position]))}</q> {verb} most: "
        f"<b>{result.score:.3f}</b> with it, <b>{without:.3f}</b> without."
    )


def _result(place: int, result: Result, answer: Ranking, largest: float, hues: Mapping[str, int]) -> str:
    title = f"<h3 dir='auto'>{escape(result.item.title)}</h3>"
    head = (
        f"<div class='place' aria-hidden='true'>{place}</div><div class='what'>{title}"
        f"<p class='domain'>{_dot(result.item.domain, hues)}{escape(result.item.domain or TYPED)}</p></div>"
        f"<div class='score' title='{result.score:.6f}'><span class='unseen'>score </span>{result.score:.3f}</div>"
    )
    if len(answer.history) == 1:
        return f"<li class='result'>{head}</li>"
    read = [(i, c) for i, c in enumerate(result.contributions) if c is not None and i >= answer.first_read]
    cells = "".join(
        f"<span class='cell {_sign(c)}' style='--heat:{_share(c, largest):.2f}' "
        f"title='{escape(_shortened(answer.history[i]), quote=True)}: {_signed(c)}'>{i + 1}</span>"
        for i, c in read
    )
    bars = "".join(_bar(i, c, answer.history[i], largest) for i, c in read)
    spoken = "; ".join(f"title {i + 1}: {_signed(c)}" for i, c in read)
    opened = " open" if place == 1 else ""
    return (
        f"<li class='result'>{head}<p class='because'>{explanation(result, answer.history)}</p><details{opened}>"
        f"<summary aria-label='What each title did to result {place}. {spoken}'>"
        f"<span class='cells'>{cells}</span><span class='more' aria-hidden='true'></span></summary>"
        f"<ul class='bars'>{bars}</ul></details></li>"
    )


def _bar(position: int, contribution: float, title: str, largest: float) -> str:
    width = 50 * _share(contribution, largest)
    drawn = f"<span class='{_sign(contribution)}' style='width:{width:.1f}%'></span>"
    return (
        f"<li>{_badge(position)}<span class='bar-title' dir='auto'>{escape(title)}</span>"
        f"<span class='bar' aria-hidden='true'>{drawn}</span>"
        f"<span class='figure' title='{contribution:+.6f}'>{_signed(contribution)}</span></li>"
    )


def _unread(answer: Ranking, window: int) -> str:
    read = len(answer.history) - answer.first_read
    why = f"the newest {window}" if read == window else f"as many of the newest as fit, here {read}"
    older = "title 1 was" if answer.first_read == 1 else f"titles 1 to {answer.first_read} were"
    return f"This model reads {why}: {older} not read and changed nothing."


def _badge(position: int) -> str:
    return f"<span class='badge'>{position + 1}</span>"


def _dot(domain: str | None, hues: Mapping[str, int]) -> str:
    if domain is None:
        return "<i class='dot typed' aria-hidden='true'></i>"
    return f"<i class='dot' style='--hue:{hues[domain]}' aria-hidden='true'></i>"


def _share(contribution: float, largest: float) -> float:
    return abs(contribution) / largest if largest > 0 else 0.0


def _sign(contribution: float) -> str:
    return "none" if abs(contribution) < NO_DIFFERENCE else "up" if contribution > 0 else "down"


def _signed(value: float) -> str:
    """With a sign of the same width on both sides of zero."""
    return "0.000" if abs(value) < NO_DIFFERENCE else f"{value:+.3f}".replace("-", "−")


def _number(value: int) -> str:
    return f"{value:,}"


def _shortened(title: str, most: int = 60) -> str:
    return title if len(title) <= most else title[: most - 1].rstrip() + "…"
