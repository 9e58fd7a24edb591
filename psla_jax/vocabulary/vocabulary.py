"""Classes of a model, and the CSV files that list them."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from psla_jax.runtime.files import atomic_text
from psla_jax.runtime.streams import regular_file
from psla_jax.runtime.terminal import printable

_HEADER = ["index", "mid", "display_name"]
BUNDLED = ("audioset", "fsd50k", "demo")
"""Names of the class lists that are part of the package: two published ones (CC BY 4.0), and that of the demo set."""


class VocabularyError(ValueError):
    """An invalid vocabulary, or a class that it does not contain."""


@dataclass(frozen=True)
class Vocabulary:
    """Classes in the order of a model's outputs. Classes of different vocabularies are matched by mid.

    Raises VocabularyError if there is no class, a mid is empty, repeated or contains a comma (datafiles join mids by
    commas), or a mid or name contains control characters.
    """

    mids: tuple[str, ...]
    """Machine identifiers, such as ``/m/09x0r``."""
    names: tuple[str, ...]
    """Display names, such as ``Speech``."""

    def __post_init__(self) -> None:
        if not self.mids:
            raise VocabularyError("the vocabulary has no class: give at least one.")
        if len(self.mids) != len(self.names):
            raise VocabularyError(
                f"the vocabulary has {len(self.mids)} mids and {len(self.names)} names: give one each."
            )
        seen: set[str] = set()
        for index, mid in enumerate(self.mids):
            if not mid or "," in mid:
                raise VocabularyError(f"class {index} has the mid {mid!r}: use one that is not empty and has no comma.")
            if mid in seen:
                raise VocabularyError(f"class {index} has the mid {mid!r} of an earlier class: keep one of them.")
            seen.add(mid)
            for text in (mid, self.names[index]):
                if printable(text) != text or "\n" in text:
                    raise VocabularyError(f"class {index} is called {text!r}: remove the control characters.")

    def __len__(self) -> int:
        return len(self.mids)

    def __contains__(self, mid: object) -> bool:
        return mid in self.indices

    @cached_property
    def indices(self) -> Mapping[str, int]:
        """Index of every mid."""
        return {mid: index for index, mid in enumerate(self.mids)}

    def index(self, mid: str) -> int:
        """Returns the index of a class among the model's outputs; raises VocabularyError if it is not one of them."""
        try:
            return self.indices[mid]
        except KeyError:
            raise VocabularyError(
                f"{mid!r} is not among the {len(self)} classes of the vocabulary: use the label file that contains it."
            ) from None

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Vocabulary:
        """Reads a label file: CSV with the header ``index,mid,display_name`` and one line per class, numbered from 0.

        The paths ``audioset``, ``fsd50k`` and ``demo`` stand for the bundled class lists of these data sets, unless
        such a file exists. Raises VocabularyError if the file is missing, is empty or has another format.
        """
        file_path = os.fspath(path)
        if file_path in BUNDLED and (not os.path.exists(file_path) or os.path.isdir(file_path)):
            file_path = os.path.join(os.path.dirname(__file__), f"{file_path}.csv")
        label_file = f"the label file {file_path}"
        try:
            with regular_file(file_path) as name, open(name, encoding="utf-8-sig", newline="") as file:
                rows = [(number, row) for number, row in enumerate(csv.reader(file), 1) if any(map(str.strip, row))]
        except OSError as error:
            raise VocabularyError(f"{label_file} cannot be read ({error.strerror}): check the path.") from error
        except (UnicodeDecodeError, csv.Error) as error:
            raise VocabularyError(f"{label_file} is not a CSV file ({error}): save it as UTF-8 text.") from error
        header = ",".join(_HEADER)
        if not rows:
            raise VocabularyError(f"{label_file} is empty: it needs the header {header}.")
        if [cell.strip() for cell in rows[0][1]] != _HEADER:
            raise VocabularyError(f"{label_file} starts with {','.join(rows[0][1])!r}: it needs the header {header}.")
        lines = enumerate(rows[1:])
        classes = [_parse_row(f"line {number} of {label_file}", row, index) for index, (number, row) in lines]
        try:
            return cls(tuple(mid for mid, _ in classes), tuple(name for _, name in classes))
        except VocabularyError as error:
            raise VocabularyError(f"in {label_file}, {error}") from None

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes a label file for :meth:`read` atomically, replacing an existing file."""
        with atomic_text(path) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(_HEADER)
            writer.writerows((index, mid, name) for index, (mid, name) in enumerate(zip(self.mids, self.names)))

    def to_json(self) -> list[list[str]]:
        """Returns ``[[mid, name], ...]`` in class order, for :func:`json.dump`."""
        return [[mid, name] for mid, name in zip(self.mids, self.names)]

    @classmethod
    def from_json(cls, value: Any) -> Vocabulary:
        """Returns the vocabulary of a value of :meth:`to_json`; raises VocabularyError for another format."""
        if not isinstance(value, list):
            raise VocabularyError(f"a vocabulary is a list of [mid, name], not {value!r:.80}.")
        for pair in value:
            if not (isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(item, str) for item in pair)):
                raise VocabularyError(f"a vocabulary is a list of [mid, name], and one item is {pair!r:.80}.")
        return cls(tuple(pair[0] for pair in value), tuple(pair[1] for pair in value))


def _parse_row(line: str, row: list[str], index: int) -> tuple[str, str]:
    """Returns mid and name of one row, after validating it; errors name its `line`."""
    if len(row) != len(_HEADER):
        raise VocabularyError(f"{line} has {len(row)} fields, not 3: put names with a comma in quotes.")
    if row[0].strip() != str(index):
        raise VocabularyError(
            f"{line} has the index {row[0]!r} where {index} belongs: number the classes 0, 1, 2, ... in order."
        )
    return row[1].strip(), row[2].strip()
