"""Files of AudioSet's strong labels, whose tables name a clip by its YouTube id and its start in milliseconds."""

from __future__ import annotations

import re
from collections.abc import Sequence

from psla_jax.data.prepare.audioset import AudioIndex
from psla_jax.data.prepare.audioset_segments import ID_LENGTH, SegmentTable
from psla_jax.data.prepare.locate import find_files as find_by_name
from psla_jax.data.prepare.walk import walk

ID_COLUMN = "segment_id"
"""Column of the clips, such as ``b0RFKhbpFJA_30000``; times in the table count from the start of the clip."""
_ID = re.compile(rf"([\w-]{{{ID_LENGTH}}})_(\d+)", re.ASCII)


def find_files(names: Sequence[str], base: str, *, progress: bool) -> list[list[str]]:
    """Returns the file of each clip, found by its id anywhere in the name of a file, or an empty list.

    Of several files, one with the start of the clip in its name is preferred, in seconds or milliseconds. Names that
    are not such ids are looked up as those of other tables.
    """
    matches = [_ID.fullmatch(name) for name in names]
    if not all(matches):
        return find_by_name(names, base, progress=progress)
    table = SegmentTable()
    for video, start in (match.groups() for match in matches if match):
        table.row_of_id.setdefault(video, len(table.ids))
        table.ids.append(video)
        table.starts.append(int(start) / 1000)
    index = AudioIndex(table)
    for listing in walk([base], progress=progress):
        index.add(listing)
    return [[index.path(row)] if index.names[row] else [] for row in range(len(table.ids))]
