"""Text for matplotlib: arbitrary file and class names, drawn literally in fonts that have their characters."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

REPLACEMENT = "\ufffd"
"""Replaces characters that no font has."""


def drawable(texts: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Returns texts that matplotlib can draw, and text properties that draw them literally, upright, in normal weight.

    Line breaks and other white space become blanks. Undecodable bytes and characters without a font become a
    replacement character. ``$`` does not start a formula.
    """
    printable = ["".join(c if c.isprintable() else " " if c.isspace() else REPLACEMENT for c in text) for text in texts]
    families, missing = _families(frozenset("".join(printable)))
    table = {ord(character): REPLACEMENT for character in missing}
    properties = {"parse_math": False, "usetex": False, "family": list(families), "weight": "normal"}
    return [text.translate(table) for text in printable], properties


@functools.lru_cache
def _families(characters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Returns font families that cover the characters, the default one first, and the characters that no font has."""
    from matplotlib import font_manager

    default = font_manager.FontProperties()
    families = [default.get_name()]
    missing = _missing(font_manager.findfont(default), characters)
    for font in font_manager.fontManager.ttflist if missing else ():
        regular = font.style == "normal" and font.weight in (400, "normal", "book", "regular")
        # Last-resort fonts have a placeholder box for every character.
        if regular and font.name not in families and "Last Resort" not in font.name:
            still_missing = _missing(font.fname, missing)
            if still_missing < missing:
                families.append(font.name)
                missing = still_missing
    return tuple(families), missing


def _missing(path: str, characters: frozenset[str]) -> frozenset[str]:
    """Returns the characters that a font file lacks; all of them if it is unreadable."""
    from matplotlib import font_manager

    try:
        font = font_manager.get_font(path)
    except (OSError, RuntimeError):
        return characters
    return frozenset(character for character in characters if not font.get_char_index(ord(character)))
