"""Names of files and classes as matplotlib can draw them: as they are, in whatever fonts have their letters."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

REPLACEMENT = "\ufffd"
"""Stands for a letter that no font has."""


def lettered(texts: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Texts without what cannot be drawn, and the settings with which matplotlib draws them as they stand, upright and
    of the usual weight.

    Line breaks and the like become blanks, bytes that are no text and letters that no font has a replacement
    character, and a ``$`` begins no formula.
    """
    printable = ["".join(_printable(c) for c in text) for text in texts]
    families, missing = _families(frozenset("".join(printable)))
    table = {ord(letter): REPLACEMENT for letter in missing}
    settings = {"parse_math": False, "usetex": False, "family": list(families), "weight": "normal"}
    return [text.translate(table) for text in printable], settings


def _printable(letter: str) -> str:
    if letter.isprintable():
        return letter
    return " " if letter.isspace() else REPLACEMENT


@functools.lru_cache
def _families(letters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Fonts that have these letters, the usual one first, and the letters that none of them has."""
    from matplotlib import font_manager

    usual = font_manager.FontProperties()
    families = [usual.get_name()]
    missing = _missing(font_manager.findfont(usual), letters)
    for font in font_manager.fontManager.ttflist if missing else ():
        upright = font.style == "normal" and font.weight in (400, "normal", "book", "regular")
        # Fonts of last resort have a box for every letter.
        if upright and font.name not in families and "Last Resort" not in font.name:
            left = _missing(font.fname, missing)
            if left < missing:
                families.append(font.name)
                missing = left
    return tuple(families), missing


def _missing(path: str, letters: frozenset[str]) -> frozenset[str]:
    """The letters that a font file lacks; all of them where it cannot be read."""
    from matplotlib import font_manager

    try:
        font = font_manager.get_font(path)
    except (OSError, RuntimeError):
        return letters
    return frozenset(letter for letter in letters if not font.get_char_index(ord(letter)))
