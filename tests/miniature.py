"""A miniature AudioSet in its published form: segment lists, and audio files with various names and formats."""

from __future__ import annotations

import dataclasses
import random
import string
from pathlib import Path

import numpy as np
import soundfile
import sounds

from psla_jax.audio.decode import SAMPLE_RATE
from psla_jax.vocabulary.vocabulary import Vocabulary

MIDS = ("/m/09x0r", "/m/04rlf", "/m/0bt9lr", "/t/dd00003")
"""Mids of AudioSet with both prefixes: speech, music, dog, male singing."""
SIZES = {"balanced_train": 25, "unbalanced_train": 7, "eval": 11}
NAMES = (
    "Y{id}.wav", "{id}.flac", "{id}_{start:.3f}.wav", "{id}_{start_ms:.0f}_{end_ms:.0f}.WAV",
    "Y{id}_{start:.3f}_{end:.3f}.flac", "{id}_{start:.0f}_{end:.0f}.wav", "audio-{id}.ogg", "{id}_{start:06.0f}.wav",
)  # fmt: skip
FOLDERS = ("", "00", "video/a/b", "batch-1/wav")


@dataclasses.dataclass(frozen=True)
class Clip:
    """A clip of a segment list."""

    id: str
    start: float
    mids: tuple[str, ...]

    @property
    def line(self) -> str:
        """Line of the clip in a published segment list."""
        return f'{self.id}, {self.start:.3f}, {self.start + 10:.3f}, "{",".join(self.mids)}"\n'

    def file(self, name: str) -> str:
        """Returns the file name of the clip for a pattern of :data:`NAMES`."""
        end = self.start + 10
        return name.format(id=self.id, start=self.start, end=end, start_ms=1000 * self.start, end_ms=1000 * end)


def clips(sizes: dict[str, int] = SIZES, seed: int = 0) -> dict[str, list[Clip]]:
    """Returns clips with one to three labels by set; their ids contain, and some begin with, ``-`` and ``_``."""
    rng = random.Random(seed)
    mids = Vocabulary.read("audioset").mids
    assert set(MIDS) <= set(mids)
    characters = string.ascii_letters + string.digits + "-_" * 5
    return {
        name: [
            Clip(
                "".join(rng.choices(characters, k=11)),
                float(rng.choice((0, 6, 30, 290))),
                (MIDS[i % len(MIDS)], *rng.sample([mid for mid in mids if mid not in MIDS], rng.randrange(3))),
            )
            for i in range(size)
        ]
        for name, size in sizes.items()
    }


def write_lists(folder: Path, sets: dict[str, list[Clip]]) -> list[str]:
    """Writes the segment lists with their three comment lines and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, listed in sets.items():
        labels = sum(len(clip.mids) for clip in listed)
        head = (
            "# Segments csv created Sun Mar  5 10:54:31 2017\n"
            f"# num_ytids={len(listed)}, num_segs={len(listed)}, num_unique_labels=527, num_positive_labels={labels}\n"
            "# YTID, start_seconds, end_seconds, positive_labels\n"
        )
        (folder / f"{name}_segments.csv").write_text(head + "".join(clip.line for clip in listed))
    return [str(folder / f"{name}_segments.csv") for name in sets]


def write_audio(folder: Path, sets: dict[str, list[Clip]]) -> dict[str, Path]:
    """Writes a short recording per clip with various names in various folders; returns the files by clip id."""
    rng, files = np.random.default_rng(0), {}
    for i, clip in enumerate(clip for listed in sets.values() for clip in listed):
        file = folder / FOLDERS[i % len(FOLDERS)] / clip.file(NAMES[i % len(NAMES)])
        file.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(file, sounds.clip(MIDS.index(clip.mids[0]) % 3, rng), SAMPLE_RATE)
        files[clip.id] = file
    return files
