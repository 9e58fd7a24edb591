"""Names and messages as a terminal may show them: whatever could command it is written out."""

from __future__ import annotations

import re

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""All control characters but tab and new line, and what turns the direction of writing."""


def printable(text: str) -> str:
    """A text with names from strangers' files in it, which could otherwise move the cursor, or say something else."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """The same of what has to stay in its line."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")
