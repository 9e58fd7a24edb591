"""Transfer of labels from one datafile to another: published enhanced labels for a local copy of the audio."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np

from psla_jax.audio.segments import fragment
from psla_jax.data import datafile
from psla_jax.data.clip_ids import ClipIdError, Matching, match
from psla_jax.data.datafile import Datafile, Record
from psla_jax.runtime.files import atomic_text, removed_on_failure
from psla_jax.vocabulary.vocabulary import Vocabulary

Unmatched = Literal["keep", "drop"]
Mids = tuple[str, ...]
_MAX_EXAMPLES = 5
"""Number of clips shown on the screen; the CSV file lists all."""


class RelabelError(ValueError):
    """Datafiles that do not match, or an output path that cannot be used; the message names them and the remedy."""


@dataclass(frozen=True)
class Relabelled:
    """Result of :func:`relabel`."""

    out: str
    """The datafile written."""
    clips: int
    """Number of clips in the local datafile."""
    matching: Matching
    missing: tuple[str, ...]
    """Local clips that are not in the enhanced datafile."""
    ambiguous: tuple[str, ...]
    """Local clips that cannot be matched because other clips share their name or id."""
    unused: int
    """Number of clips of the enhanced datafile without a local counterpart."""
    unmatched: Unmatched
    changed: int
    added: int
    removed: int
    """Number of clips whose labels changed, and of labels added and removed."""
    new_classes: tuple[str, ...]
    """Mids that no local clip had before."""
    unmatched_list: str
    """CSV of the clips that were not matched; empty if there are none."""

    def report(self) -> str:
        """Returns the coverage and the clips that were not matched as lines for the screen."""
        found, ways = self.matching.num_matched, self.matching.summary()
        outcome = "labels unchanged" if self.unmatched == "keep" else "dropped"
        lines = [
            f"{found:,} of {self.clips:,} clips ({found / self.clips:.1%}) got the enhanced labels, matched {ways}",
            f"labels added: {self.added:,}, removed: {self.removed:,}, clips changed: {self.changed:,}",
        ]
        unmatched = {"not found": self.missing, "ambiguous, because other clips share their id": self.ambiguous}
        lines += [
            f"{reason}: {len(clips):,}, {outcome}: {_examples(clips)}" for reason, clips in unmatched.items() if clips
        ]
        if self.unused:
            lines.append(f"enhanced clips that are not among yours: {self.unused:,}")
        if self.new_classes:
            new = f"{len(self.new_classes):,}, {_examples(self.new_classes)}"
            lines.append(f"classes that none of your clips had before, please check: {new}")
        lines.append(f"{self.out}: the datafile, with its weights beside it")
        return "\n".join(lines + [f"{self.unmatched_list}: the clips without new labels"] * bool(self.unmatched_list))


def _examples(items: tuple[str, ...]) -> str:
    return ", ".join(items[:_MAX_EXAMPLES]) + (", ..." if len(items) > _MAX_EXAMPLES else "")


def relabel(enhanced: str, onto: str, out: str, *, unmatched: Unmatched = "keep", force: bool = False) -> Relabelled:
    """Writes a copy of the datafile `onto` with the labels of the same clips in `enhanced`, sorted, and its weights.

    Clips are matched by :func:`psla_jax.data.clip_ids.match`, independent of folders and audio formats.

    Args:
        enhanced: datafile with the labels to use.
        onto: datafile with the local paths.
        out: datafile to write.
        unmatched: whether clips of `onto` without a counterpart keep their labels or are dropped.
        force: whether to replace existing files.

    Raises:
        RelabelError, DatafileError, ClipIdError: a file cannot be used, the datafiles have no clip in common, a clip is
            listed twice, or an output file already exists.
    """
    unmatched_list = f"{os.path.splitext(out)[0]}_unmatched.csv"
    _check_paths(out, (out, datafile.weight_path(out), unmatched_list), (enhanced, onto), force)
    source, local = _read(enhanced, allow_repeats=True), _read(onto)
    matching = match(list(local), list(source))
    if not matching.num_matched:
        raise RelabelError(
            f"none of the {len(local):,} clips of {onto}, such as {next(iter(local))}, is among the {len(source):,} of "
            f"{enhanced}, such as {next(iter(source))}: name datafiles of the same recordings."
        )
    enhanced_records = list(source.values())
    new_labels = {
        clip: tuple(enhanced_records[i].mids) for clip, i in zip(local, matching.positions.tolist()) if i >= 0
    }
    missing, ambiguous = (tuple(np.array(list(local), object)[c]) for c in (matching.missing(), matching.ambiguous()))
    for stale in (datafile.weight_path(out), unmatched_list):
        Path(stale).unlink(missing_ok=True)
    folder = os.path.dirname(os.path.abspath(onto))
    prefix = "" if folder == os.path.dirname(os.path.abspath(out)) else folder
    records = list(_records(local, new_labels, unmatched, prefix))
    exclusive = datafile.declares_exclusive(onto) and all(len(record.mids) == 1 for record in records)
    with removed_on_failure([out, datafile.weight_path(out), unmatched_list]):
        datafile.write(out, records, exclusive=exclusive)
        _write_weights(out)
        if missing or ambiguous:
            _write_unmatched(unmatched_list, {"not found": missing, "ambiguous": ambiguous})
    return Relabelled(
        out=out,
        clips=len(local),
        matching=matching,
        missing=missing,
        ambiguous=ambiguous,
        unused=len(source) - len(new_labels),
        unmatched=unmatched,
        unmatched_list=unmatched_list if missing or ambiguous else "",
        changed=sum(set(mids) != set(local[clip].mids) for clip, mids in new_labels.items()),
        added=sum(len(set(mids) - set(local[clip].mids)) for clip, mids in new_labels.items()),
        removed=sum(len(set(local[clip].mids) - set(mids)) for clip, mids in new_labels.items()),
        new_classes=tuple(sorted(set(chain(*new_labels.values())) - {mid for r in local.values() for mid in r.mids})),
    )


def _check_paths(out: str, outputs: tuple[str, ...], inputs: tuple[str, ...], force: bool) -> None:
    for path in inputs:
        if os.path.realpath(path) in map(os.path.realpath, outputs):
            raise RelabelError(f"{out} would replace the input {path}: choose another file with --out.")
    existing = [path for path in outputs if os.path.exists(path)]
    if existing and not force:
        raise RelabelError(f"{existing[0]} would be overwritten: choose another --out, or replace it with --force.")


def _read(path: str, *, allow_repeats: bool = False) -> dict[str, Record]:
    """Returns the clips by path and times; with `allow_repeats`, one may be listed again with the same labels."""
    clips: dict[str, Record] = {}
    for number, record in enumerate(datafile.records(path)):
        record = record._replace(wav=os.path.normpath(record.wav))
        clip = record.wav + fragment(record.start, record.end)
        if clip in clips and not (allow_repeats and set(clips[clip].mids) == set(record.mids)):
            difference = " with other labels" if allow_repeats else ""
            raise ClipIdError(f"clip {number} of {path} repeats {clip}{difference}: keep one of the two records.")
        clips[clip] = record
    if not clips:
        raise RelabelError(f"{path} has no clip: name a datafile.")
    return clips


def _records(
    local: dict[str, Record], new_labels: dict[str, Mids], unmatched: Unmatched, prefix: str
) -> Iterator[Record]:
    for clip, record in local.items():
        if clip in new_labels or unmatched == "keep":
            mids = tuple(sorted(new_labels[clip])) if clip in new_labels else record.mids
            yield record._replace(wav=os.path.join(prefix, record.wav), mids=mids)


def _write_weights(path: str) -> None:
    mids = sorted({mid for record in datafile.records(path) for mid in record.mids})
    if mids:
        data = Datafile.read(path, Vocabulary(tuple(mids), tuple(mids)))
        datafile.write_weights(data, datafile.weight_path(path))


def _write_unmatched(path: str, clips: dict[str, tuple[str, ...]]) -> None:
    with atomic_text(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["wav", "reason"])
        writer.writerows((wav, reason) for reason, wavs in clips.items() for wav in wavs)
