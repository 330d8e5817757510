"""Markdown with untrusted text (from programs, models and people) escaped so that it cannot break the page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_MARKUP = re.compile(r"[\\`|]|<(?=[A-Za-z/!?])")


def visible(text: str) -> str:
    r"""Return `text` with Python escapes for all characters that a page cannot show, except tabs and newlines.

    >>> print(visible("a\0b"))
    a\x00b
    """
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def inline(text: str) -> str:
    """Return `text` escaped for use inside a line or a table cell: it cannot end either, or start code or HTML."""
    return _MARKUP.sub(r"\\\g<0>", visible(text.replace("\n", " ")))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table. Its cells hold plain text, which is escaped."""
    return [
        f"| {' | '.join(row)} |" for row in (map(inline, head), ["---"] * len(head), *(map(inline, r) for r in rows))
    ]


def fence(lines: Sequence[str], language: str) -> list[str]:
    """Return lines as a code block whose fence is longer than any run of backticks in them."""
    longest = max((len(ticks) for line in lines for ticks in re.findall("`+", line)), default=0)
    ticks = "`" * max(3, longest + 1)
    return [ticks + language, *map(visible, lines), ticks]
