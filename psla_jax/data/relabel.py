"""The labels of one datafile onto the clips of another: somebody's enhanced labels onto one's own copy of the audio."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from psla_jax.data import datafile
from psla_jax.data.clips import ClipIdError, Matching, match
from psla_jax.data.datafile import Datafile
from psla_jax.files import written_aside
from psla_jax.ontology import Vocabulary

Unmatched = Literal["keep", "drop"]
Mids = tuple[str, ...]
_SHOWN = 5
"""Clips named on the screen; the list beside the result has all."""


class RelabelError(ValueError):
    """Datafiles that do not fit together, or a result that has no place; the message names them and the remedy."""


@dataclass(frozen=True)
class Relabelled:
    """What :func:`relabel` did."""

    out: str
    clips: int
    """Clips of one's own datafile."""
    matching: Matching
    missing: tuple[str, ...]
    """Clips that the enhanced datafile does not have."""
    ambiguous: tuple[str, ...]
    """Clips that share their name or id with others, so that it is not known whose labels are theirs."""
    unused: int
    """Clips of the enhanced datafile that one does not have."""
    unmatched: Unmatched
    changed: int
    """Clips whose labels are others now."""
    added: int
    removed: int
    """Labels that were added and taken away."""
    new_classes: tuple[str, ...]
    """Mids that no clip had before."""
    listed: str
    """Where the clips without new labels are listed; empty if there is none."""

    def report(self) -> str:
        """Coverage, and what was not found, in lines for the screen."""
        found, ways = self.matching.found(), self.matching.ways()
        fate = "labels kept as they are" if self.unmatched == "keep" else "left out"
        lines = [
            f"{found:,} of {self.clips:,} clips ({found / self.clips:.1%}) got the enhanced labels, matched {ways}",
            f"labels added: {self.added:,}, removed: {self.removed:,}, clips changed: {self.changed:,}",
        ]
        if self.missing:
            lines.append(f"not found: {len(self.missing):,}, {fate}: {_some(self.missing)}")
        if self.ambiguous:
            lines.append(
                f"ambiguous, as other clips have their id: {len(self.ambiguous):,}, {fate}: {_some(self.ambiguous)}"
            )
        if self.unused:
            lines.append(f"enhanced clips that are not among yours: {self.unused:,}")
        if self.new_classes:
            lines.append(
                f"classes that no clip of yours had, see that you mean them: {len(self.new_classes):,}, "
                f"{_some(self.new_classes)}"
            )
        listed = [f"{self.listed}: the clips without new labels"] if self.listed else []
        return "\n".join([*lines, f"{self.out}: the datafile, its weights beside it", *listed])


def _some(items: tuple[str, ...]) -> str:
    return ", ".join(items[:_SHOWN]) + (", ..." if len(items) > _SHOWN else "")


def relabel(enhanced: str, onto: str, out: str, *, unmatched: Unmatched = "keep", force: bool = False) -> Relabelled:
    """Writes the datafile `onto` with the labels that `enhanced` has for the same clips, sorted, and its weights.

    Clips are the same as :func:`psla_jax.data.clips.match` says, in whatever folder and format they are.

    Args:
        enhanced: the datafile with the labels to take.
        onto: the datafile with one's own paths.
        out: the datafile to write.
        unmatched: whether clips of `onto` without a counterpart keep their labels, or are left out.
        force: replace files that are there.

    Raises:
        RelabelError, DatafileError, ClipIdError: a file cannot be used, no clip is in both, two clips are one, or
            results would replace files.
    """
    listed = f"{os.path.splitext(out)[0]}_unmatched.csv"
    _require_place(out, (out, datafile.weight_path(out), listed), (enhanced, onto), force)
    source, mine = _read(enhanced, twice=True), _read(onto)
    matching = match(list(mine), list(source))
    if not matching.found():
        raise RelabelError(
            f"none of the {len(mine):,} clips of {onto}, such as {next(iter(mine))}, is among the {len(source):,} of "
            f"{enhanced}, such as {next(iter(source))}: name datafiles of the same recordings."
        )
    given = list(source.values())
    taken = {wav: given[place] for wav, place in zip(mine, matching.places.tolist()) if place >= 0}
    missing, ambiguous = (tuple(np.array(list(mine), object)[c]) for c in (matching.missing(), matching.ambiguous()))
    for stale in (datafile.weight_path(out), listed):
        Path(stale).unlink(missing_ok=True)
    datafile.write(out, _records(mine, taken, unmatched, _prefix(onto, out)))
    _write_weights(out)
    if missing or ambiguous:
        _write_list(listed, {"not found": missing, "ambiguous": ambiguous})
    return Relabelled(
        out=out,
        clips=len(mine),
        matching=matching,
        missing=missing,
        ambiguous=ambiguous,
        unused=len(source) - len(taken),
        unmatched=unmatched,
        listed=listed if missing or ambiguous else "",
        **_differences(mine, taken),
    )


def _require_place(out: str, results: tuple[str, ...], inputs: tuple[str, ...], force: bool) -> None:
    for path in inputs:
        if os.path.realpath(path) in map(os.path.realpath, results):
            raise RelabelError(f"{out} would replace {path}, which it is made from: name another file with --out.")
    there = [path for path in results if os.path.exists(path)]
    if there and not force:
        raise RelabelError(f"{there[0]} would be overwritten: name another --out, or replace it with --force.")


def _read(path: str, *, twice: bool = False) -> dict[str, Mids]:
    """The mids of every clip by its path; with `twice`, a clip may stand there again with the same labels."""
    found: dict[str, Mids] = {}
    for number, (wav, mids) in enumerate(datafile.records(path)):
        wav = os.path.normpath(wav)
        if wav in found and not (twice and set(found[wav]) == set(mids)):
            raise ClipIdError(
                f"clip {number} of {path} is {wav}, as one before it{' with other labels' * twice}: keep one of them."
            )
        found[wav] = mids
    if not found:
        raise RelabelError(f"{path} has no clip: name a datafile.")
    return found


def _prefix(onto: str, out: str) -> str:
    """What makes the paths of one datafile hold in another: the folder of the first, where that is another one."""
    folders = [os.path.dirname(os.path.abspath(path)) for path in (onto, out)]
    return "" if folders[0] == folders[1] else folders[0]


def _records(
    mine: dict[str, Mids], taken: dict[str, Mids], unmatched: Unmatched, prefix: str
) -> Iterator[tuple[str, Mids]]:
    for wav, mids in mine.items():
        if wav in taken or unmatched == "keep":
            yield os.path.join(prefix, wav), tuple(sorted(taken[wav])) if wav in taken else mids


def _write_weights(path: str) -> None:
    mids = sorted({mid for _, labels in datafile.records(path) for mid in labels})
    if mids:
        data = Datafile.read(path, Vocabulary(tuple(mids), tuple(mids)))
        datafile.write_weights(data, datafile.weight_path(path))


def _write_list(path: str, clips: dict[str, tuple[str, ...]]) -> None:
    with written_aside(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["wav", "reason"])
        writer.writerows((wav, reason) for reason, wavs in clips.items() for wav in wavs)


def _differences(mine: dict[str, Mids], taken: dict[str, Mids]) -> dict[str, Any]:
    """How the labels of the clips that were found differ from those before."""
    before = {mid for mids in mine.values() for mid in mids}
    new = sorted({mid for mids in taken.values() for mid in mids} - before)
    added = [len(set(mids) - set(mine[wav])) for wav, mids in taken.items()]
    removed = [len(set(mine[wav]) - set(mids)) for wav, mids in taken.items()]
    changed = sum(bool(more or less) for more, less in zip(added, removed))
    return {"changed": changed, "added": sum(added), "removed": sum(removed), "new_classes": tuple(new)}
