"""Names of classes and files: one Unicode form, and notes on names that are probably the same."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator

_MAX_EXAMPLES = 5
_NUMBER = re.compile(r"\d+")


def nfc(text: str) -> str:
    """Returns text in Unicode's composed form; macOS stores names in the decomposed one, which looks the same."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def class_name(text: str) -> str:
    """Returns the name of a class as it is spelled in a folder or a cell, without white space around it."""
    return nfc(text).strip()


def examples(names: Collection[str]) -> str:
    """Returns the first names, separated by commas."""
    return ", ".join(list(names)[:_MAX_EXAMPLES]) + ", ..." * (len(names) > _MAX_EXAMPLES)


def spelling_notes(names: Iterable[str]) -> Iterator[str]:
    """Yields notes on class names that differ only in case, spaces, hyphens or underscores, or only in a number."""
    alike, numbered = defaultdict(list), defaultdict(list)
    for name in names:
        alike[re.sub(r"[\s_-]+", " ", name).casefold()].append(name)
        numbered[_NUMBER.sub("#", name)].append(name)
    for group in alike.values():
        if len(group) > 1:
            yield f"{len(group)} classes differ only in case or spaces: {examples(group)}; are they the same class?"
    if len(numbered) == 1:
        (group,) = numbered.values()
        if not all(map(str.isdigit, group)):
            yield f"the classes differ only in a number: {examples(group)}; check that they are not speakers or parts"
