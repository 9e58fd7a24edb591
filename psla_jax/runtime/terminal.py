"""Escaping of control characters in names and messages that are shown in a terminal."""

from __future__ import annotations

import codecs
import io
import re
import sys

_CONTROL_CHARACTERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters except tab and new line, and characters that change the direction of text."""


def accept_any_text() -> None:
    """Lets standard output and error write file names that are not UTF-8 unchanged, and other text in any encoding.

    Characters that the encoding of the terminal lacks, such as those of a table in ASCII, become question marks.
    """
    codecs.register_error("psla", _encode_anyway)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="psla")


def _encode_anyway(error: UnicodeError) -> tuple[str | bytes, int]:
    """Handles an encoding error like ``surrogateescape``, and where that is impossible, like ``replace``."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("replace")(error)


def printable(text: str) -> str:
    """Returns text with control characters escaped, since untrusted names could control the terminal."""
    return _CONTROL_CHARACTERS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """Returns text like :func:`printable`, with tabs and new lines escaped too."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")
