"""Escaping of control characters in names and messages that are shown in a terminal."""

from __future__ import annotations

import re

_CONTROL_CHARACTERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters except tab and new line, and characters that change the direction of text."""


def printable(text: str) -> str:
    """Returns text with control characters escaped, since untrusted names could control the terminal."""
    return _CONTROL_CHARACTERS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """Returns text like :func:`printable`, with tabs and new lines escaped too."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")
