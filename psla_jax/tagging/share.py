"""Many recordings among several processes: each takes every n-th one, and the last to end joins what all have found.

A process writes parts, ``tags.csv.part0of4`` and so on, with a note of its own of what is done. Processes need no
connection: where all notes say that their part is finished, whoever sees it first joins the parts, in the order of the
recordings.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from psla_jax.files import whole
from psla_jax.locks import Held, locked

PROGRESS = ".progress"
"""Added to the name of the first output: what is done so far, while it is not all."""
JOINING = ".joining"
Item = TypeVar("Item")


class FolderError(ValueError):
    """Recordings or outputs that cannot be used; the message names the path."""


@dataclass(frozen=True)
class Share:
    """Which of the recordings a process takes."""

    index: int
    count: int

    def of(self, items: Sequence[Item]) -> list[Item]:
        """This process's."""
        return list(items[self.index :: self.count])

    def part(self, path: str) -> str:
        """Where this process writes what belongs to that file."""
        return path if self.count == 1 else f"{path.rstrip('/')}.part{self.index}of{self.count}"

    def note(self, first: str) -> Path:
        """Where it notes what is done; `first` is the first of all outputs."""
        return Path(f"{self.part(first.rstrip('/'))}{PROGRESS}")

    def all(self) -> list[Share]:
        """Those of all processes."""
        return [Share(index, self.count) for index in range(self.count)]

    def require_alone(self, first: str) -> None:
        """Raises FolderError if the outputs were begun by another number of processes."""
        place = Path(first.rstrip("/"))
        mine = {share.note(first).name for share in self.all()}
        others = {note.name for note in place.parent.glob(f"{place.name}.part*of*{PROGRESS}")} - mine
        if self.count > 1 and Share(0, 1).note(first).exists():
            others.add(Share(0, 1).note(first).name)
        if others:
            raise FolderError(
                f"{first} was begun by another number of processes ({min(others)} is there): start as many again to go "
                "on, or delete what they left."
            )

    def join(self, files: Mapping[str, str], first: str, clips: Sequence[str]) -> bool:
        """Joins the parts of all processes, if they are finished and nobody else does it.

        Args:
            files: the outputs, each with its header.
            first: of all outputs, after which the notes are named.
            clips: all recordings, in their order.
        """
        notes = {share: noted(share.note(first)) for share in self.all()}
        if not all(note and note[-1].get("finished") for note in notes.values()):
            return False
        lock = Path(f"{first.rstrip('/')}{JOINING}")
        try:
            with locked(lock):
                for path, header in files.items():
                    _joined(path, header, clips, notes)
                for share in notes:
                    for path in files:
                        Path(share.part(path)).unlink(missing_ok=True)
                    share.note(first).unlink(missing_ok=True)
                lock.unlink(missing_ok=True)
        except Held:
            return False
        return True


WHOLE = Share(0, 1)
"""All recordings."""


def _joined(path: str, header: str, clips: Sequence[str], notes: Mapping[Share, list[dict[str, Any]]]) -> None:
    """Writes a file from its parts, clip by clip; it appears whole."""
    places = {clip: place for share, note in notes.items() for clip, place in _places(share, path, header, note)}
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(open(stack.enter_context(whole(path)), "wb"))
        parts = {share: stack.enter_context(open(share.part(path), "rb")) for share in notes}
        target.write(header.encode())
        for clip in clips:
            share, start, end = places[clip]
            parts[share].seek(start)
            target.write(parts[share].read(end - start))


def _places(
    share: Share, path: str, header: str, note: list[dict[str, Any]]
) -> list[tuple[str, tuple[Share, int, int]]]:
    """Of each clip in a part, where its bytes begin and end."""
    places, start = [], len(header.encode())
    for line in note:
        if "clip" in line:
            places.append((line["clip"], (share, start, line["sizes"][path])))
            start = line["sizes"][path]
    return places


def noted(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a note; the last one may have been cut short."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return []
    try:
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    except ValueError as error:
        raise FolderError(
            f"{path} is not what psla tag noted there: delete it, or begin with --overwrite True."
        ) from error
