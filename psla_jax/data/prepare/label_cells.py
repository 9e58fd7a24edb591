"""Labels in the cells of a table: lists of Python or JSON, separators, and signs of labels that were taken apart."""

from __future__ import annotations

import ast
import contextlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from psla_jax.data.prepare.names import class_name, examples

SEPARATORS = {"|": "bars", ";": "semicolons", ",": "commas"}
"""Possible separators of labels with their names; the first of these that occurs in any cell is used."""
_BRACKETS = {"[": "]", "(": ")", "{": "}"}
_MISSING = frozenset({"nan", "<na>"})
"""Text that pandas writes for a missing value, in lower case."""
_MISSING_OR_NAME = frozenset({"none", "null", "n/a", "na", "#n/a", "-", "?"})
"""Text that stands for a missing value in some tables, and for a class in others; in lower case."""
_BARE_LIST = re.compile(r"""[\[{]([^][{}'"|;]*)[]}]""")
"""A list without quotes, such as ``{Dog,Bark}``."""
_CUT_LIST = re.compile(r"""[\[{]\s*['"].*[^]}]|['"].*['"]\s*[]}]""", re.DOTALL)
"""A list of quoted texts without its first or its last bracket."""
_NO_COMMA = re.compile(r"""(['"])\s+(['"])""")
"""Quotes in a list as NumPy prints it; Python would join the two texts."""


class LabelError(ValueError):
    """A cell that looks like a list but cannot be read as one; the message continues a sentence after its line."""

    def __init__(self, cell: int, message: str) -> None:
        super().__init__(message)
        self.cell = cell
        """Index of the cell."""


@dataclass(frozen=True)
class CellLabels:
    """The labels of all cells of a column."""

    labels: list[tuple[str, ...]]
    """Names of the classes of each cell, without duplicates."""
    separated: str
    """How the labels of a cell are separated, such as ``by commas``; empty if every cell is one label."""
    notes: tuple[str, ...]


def parse(cells: Sequence[str], separator: str | None) -> CellLabels:
    """Returns the labels of each cell of a column.

    Args:
        cells: the cells.
        separator: separator of the labels in a cell, one of :data:`SEPARATORS`; empty if a cell is one label. None
            reads lists of Python and JSON such as ``['Dog', 'Bark']``, and detects the separator of other cells.

    Raises:
        LabelError: a cell in brackets is not a list.
    """
    lists: dict[int, list[str]] = {}
    if separator is None:
        bare = any("," in cell and _BARE_LIST.fullmatch(cell) for cell in cells)
        lists = {i: names for i, cell in enumerate(cells) if (names := _list(cell, i, bare)) is not None}
        plain = [cell for i, cell in enumerate(cells) if i not in lists]
        separator = next((mark for mark in SEPARATORS if any(mark in cell for cell in plain)), "")
    pieces = [lists.get(i, cell.split(separator) if separator else [cell]) for i, cell in enumerate(cells)]
    labels = [_names(names) for names in pieces]
    separated = ["in lists"] if lists else []
    separated += [f"separated by {SEPARATORS[separator]}"] if separator else []
    notes = [*_missing_notes(pieces), *(_separator_notes(labels, separator) if separator else ())]
    return CellLabels(labels, " or ".join(separated), tuple(notes))


def _names(pieces: Iterable[str]) -> tuple[str, ...]:
    names = (class_name(piece) for piece in pieces)
    return tuple(dict.fromkeys(name for name in names if name and name.lower() not in _MISSING))


def _list(cell: str, number: int, bare: bool) -> list[str] | None:
    """Returns the items of a cell that is a list, with `bare` also of one without quotes, and None for other cells."""
    if _CUT_LIST.fullmatch(cell):
        raise LabelError(number, f"has the labels {cell:.80}, which are a list without one of its brackets: add it")
    if _BRACKETS.get(cell[:1], "") != cell[-1:] or len(cell) < 2:
        return None
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            value: Any = read(_NO_COMMA.sub(r"\1, \2", cell))
            if isinstance(value, list | tuple | set) and all(isinstance(v, str | int | float | None) for v in value):
                items = sorted(value, key=str) if isinstance(value, set) else value
                return [str(item) for item in items if item is not None]
    if unquoted := _BARE_LIST.fullmatch(cell):
        return unquoted[1].split(",") if bare else None
    if cell[0] == "(" or not any(mark in cell for mark in SEPARATORS):
        return None
    raise LabelError(number, f"has the labels {cell:.80}, which are not a list: separate labels by semicolons")


def _missing_notes(pieces: Sequence[Sequence[str]]) -> Iterator[str]:
    counts = Counter(piece.strip() for names in pieces for piece in names)
    if missing := {text: count for text, count in counts.items() if text.lower() in _MISSING}:
        yield f"the text {examples(missing)} counts as no label, in {sum(missing.values()):,} places"
    if unclear := [text for text in counts if text.lower() in _MISSING_OR_NAME]:
        yield f"the label {examples(unclear)} is a class: leave the cell empty if it stands for no label"


def _separator_notes(labels: Sequence[tuple[str, ...]], separator: str) -> Iterator[str]:
    groups = _inseparable(labels)
    if groups:
        mark = f"{separator} " if separator == "," else separator
        shown = "; ".join(mark.join(group) for group in groups[:3]) + ("; ..." if len(groups) > 3 else "")
        yield (
            f"classes that occur only together, in the same order: {shown}; if each is one name with a "
            f"{SEPARATORS[separator][:-1]} in it, use --separator none or another separator"
        )
    for mark in "|;,".partition(separator)[2]:
        if example := next((name for names in labels for name in names if mark in name), ""):
            yield f"{SEPARATORS[mark]} are parts of names, as in {example}, since {separator} separates labels"


def _inseparable(labels: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Returns runs of classes of which each occurs only next to the same others, the most frequent first."""
    counts = Counter(name for names in labels for name in names)
    pairs = Counter(pair for names in labels for pair in pairwise(names))
    following = {a: b for (a, b), count in pairs.items() if count == counts[a] == counts[b]}
    runs = []
    for start in following.keys() - set(following.values()):
        run = [start]
        while run[-1] in following:
            run.append(following[run[-1]])
        runs.append(tuple(run))
    return sorted(runs, key=lambda run: (-counts[run[0]], run))
