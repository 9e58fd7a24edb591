"""Recordings divided among processes that need no connection: each process takes every N-th one.

Process I of N writes its own outputs, such as ``tags.csv.partIofN``, and its own progress file while it is unfinished.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any, TypeVar

PROGRESS = ".progress"
"""Suffix of the progress file, which is named after the first output."""
T = TypeVar("T")


class FolderError(ValueError):
    """Recordings or outputs that cannot be used; the message names the path."""


@dataclass(frozen=True)
class Share:
    """The recordings of process `index` out of `count` processes."""

    index: int
    count: int

    def select(self, recordings: Sequence[T]) -> list[T]:
        """Returns the recordings of this process."""
        return list(recordings[self.index :: self.count])

    def part_path(self, output: str) -> str:
        """Returns the path to which this process writes its part of an output."""
        return output if self.count == 1 else f"{output.rstrip('/')}.part{self.index}of{self.count}"

    def progress_path(self, first_output: str) -> Path:
        """Returns the path of this process's progress file."""
        return Path(f"{self.part_path(first_output.rstrip('/'))}{PROGRESS}")

    def cat_command(self, output: str) -> str:
        """Returns the shell command that joins the parts of an output."""
        return f"cat {shlex.quote(output)}.part*of{self.count} > {shlex.quote(output)}"

    def require_same_count(self, first_output: str) -> None:
        """Raises FolderError if another number of processes has started the outputs and not finished them."""
        own = {Share(index, self.count).progress_path(first_output) for index in range(self.count)}
        whole = ALL.progress_path(first_output)
        parts = whole.parent.glob(f"{escape(whole.name.removesuffix(PROGRESS))}.part*of*{PROGRESS}")
        others = {path for path in (whole, *parts) if path.exists()} - own
        if others:
            raise FolderError(
                f"{first_output} was started by another number of processes ({min(others).name} exists): resume with "
                "the same number, or delete their outputs and progress files."
            )


ALL = Share(0, 1)
"""All recordings."""


def read_progress(path: Path) -> list[dict[str, Any]]:
    """Returns the complete lines of a progress file, without a truncated last line; empty if there is no file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]
    except OSError:
        return []
    except ValueError as error:
        raise FolderError(
            f"{path} is not a progress file of psla tag: delete it, or start over with --overwrite."
        ) from error
