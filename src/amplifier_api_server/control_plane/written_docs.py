"""The documentation, as pages of this server: the Markdown of docs/, and one page for each code of a problem.

Owns how they become HTML. Links lead to pages that are served here, or to nowhere at all. Pure but for reading the files,
which are part of the package; it takes tens of milliseconds, so it belongs in a thread.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape
from typing import Final

from markdown_it import MarkdownIt
from markdown_it.token import Token

from amplifier_api_server.control_plane.errors import TITLES
from amplifier_api_server.control_plane.html_page import page
from amplifier_api_server.control_plane.problem_codes import CODES, DOCS, Meaning

NAMES: Final = tuple(sorted(one.name.removesuffix(".md") for one in DOCS.iterdir() if one.name.endswith(".md")))
# What somebody who calls the API reads, in this order; the other pages are for those who run the server or work on it.
FIRST: Final = (
    "introduction",
    "compatibility",
    "errors",
    "authentication",
    "sessions",
    "executions",
    "approvals",
    "idempotency",
    "tenancy",
    "websocket",
    "graphql",
)
WAYS: Final = (
    '<p><a href="/docs">API reference</a> · <a href="/docs/introduction">Introduction</a> · '
    '<a href="/errors">Errors</a></p>'
)

_MARKDOWN: Final = MarkdownIt("commonmark", {"html": False}).enable("table")


def _text_of(name: str) -> str:
    return DOCS.joinpath(f"{name}.md").read_text(encoding="utf-8")


def docs_page(name: str) -> str:
    """One of `NAMES`, as HTML."""
    tokens = _MARKDOWN.parse(_text_of(name))
    title = tokens[1].content if tokens and tokens[0].tag == "h1" else name
    body = _rendered(tokens[3:] if title != name else tokens)
    return page(title, f"{WAYS}\n{body}\n{_all_pages()}", is_wide=True)


def code_page(code: str) -> str:
    """What one of `CODES` means, as HTML."""
    told = "\n".join(_told(one) for one in CODES[code])
    return page(code, f'{WAYS}\n{told}\n<p>How errors look: <a href="/errors">all codes</a></p>', is_wide=True)


def introduction() -> str:
    """Markdown for the OpenAPI document: without the title, and with links that lead to this server's pages."""
    _, _, text = _text_of("introduction").partition("\n\n")
    return re.sub(r"\]\(([^)\s]+)\)", lambda found: f"]({_place(found[1])})", text)


def _told(meaning: Meaning) -> str:
    statuses = ", ".join(f"{one} {TITLES.get(one, '')}".strip() for one in sorted(meaning.statuses))
    rows = {
        "Status": escape(statuses or "none: it is not an answer's"),
        "When": _line(meaning.when),
        "What to do": _line(meaning.remedy),
        "Section": f'<a href="/errors#{anchor_of(meaning.section)}">{escape(meaning.section)}</a>',
    }
    return "<dl>" + "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in rows.items() if text) + "</dl>"


def _line(markdown: str) -> str:
    return _rendered(_MARKDOWN.parseInline(markdown))


def _rendered(tokens: Sequence[Token]) -> str:
    for at, token in enumerate(tokens):
        if token.type == "heading_open":
            token.attrSet("id", anchor_of(tokens[at + 1].content))
        elif token.type == "inline":
            token.children = list(_linked(token.children or []))
    return str(_MARKDOWN.renderer.render(tokens, _MARKDOWN.options, {}))


def _linked(tokens: Sequence[Token]) -> Iterator[Token]:
    """The tokens of a line, whose links lead somewhere; the text of others stays."""
    is_dropped = False
    for token in tokens:
        if token.type == "link_open":
            place = _place(str(token.attrGet("href")))
            is_dropped = place is None
            if place is not None:
                token.attrSet("href", place)
        if not (is_dropped and token.type in ("link_open", "link_close")):
            yield token


def _place(target: str) -> str | None:
    """Where a link of a page of docs/ leads on this server."""
    path, mark, anchor = target.partition("#")
    if re.match(r"https?:", target) or not path:
        return target
    name = path.removesuffix(".md")
    if path.startswith("/"):
        return target
    return f"/docs/{name}{mark}{anchor}" if name in NAMES and path.endswith(".md") else None


def anchor_of(heading: str) -> str:
    """The anchor of a heading, as forges make it."""
    return re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).strip().replace(" ", "-")


def _all_pages() -> str:
    links = [f'<a href="/docs/{name}">{name}</a>' for name in (*FIRST, *(one for one in NAMES if one not in FIRST))]
    return f"<h2>All pages</h2>\n<p>{' · '.join(links)}</p>"
