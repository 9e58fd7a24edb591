"""Opens an audio file with the library that reads it to its end: libsndfile, or else FFmpeg."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
from collections.abc import Iterator
from typing import BinaryIO, Protocol

import soundfile

from psla_jax.audio.ffmpeg import MIN_SHORTAGE, Block, DecodingError, FFmpegSource, no_end, shortage
from psla_jax.audio.layout import Layout, find_layout

_MAX_LAYOUTS = 4096
"""Number of files whose layouts are kept."""
_MAX_FRAMES_PER_BYTE = 8192
"""Frames per byte beyond which the length in a header is not believed; silence in FLAC has up to 5461."""
_CORRECTED = re.compile(r"^ *(?:data|riff|SSND|Data Size) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
"""libsndfile's note, in bytes, on a file that ends before the length in its header."""
_PLACEHOLDER = 0x7F000000
"""Stated lengths from here on are placeholders of programs that write to a pipe and do not know the length."""
_INEXACT_SEEK = ("MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III")
"""Encodings whose frames depend on earlier ones, so that the samples after a seek may differ."""


class Source(Protocol):
    """An open audio file, see :class:`psla_jax.audio.ffmpeg.FFmpegSource`."""

    rate: int
    channels: int
    is_float: bool
    notes: list[str]

    def seconds(self) -> float:
        """Returns the duration, without decoding where the header can be trusted."""
        ...

    def seek(self, frame: int) -> bool:
        """Lets :meth:`blocks` begin at a frame if that is possible without a change of the samples; returns whether."""
        ...

    def blocks(self, samples: int) -> Iterator[Block]:
        """Yields the content in blocks of about `samples` samples, summed over the channels."""
        ...


class SoundfileSource:
    """An audio file that libsndfile decodes; what follows an error of libsndfile is decoded by FFmpeg.

    Attributes:
        rate, channels, is_float, notes: as in :class:`psla_jax.audio.ffmpeg.FFmpegSource`.
    """

    def __init__(self, sound: soundfile.SoundFile, file: BinaryIO | None, layout: Layout | None = None) -> None:
        """Takes an open file and, unless it can be read only once, its bytes and their layout."""
        self._sound, self._file, self._layout = sound, file, layout
        self.rate, self.channels = sound.samplerate, sound.channels
        self.is_float = sound.subtype in ("FLOAT", "DOUBLE")
        self.notes: list[str] = []
        self._first = 0

    def seconds(self) -> float:
        """Returns the duration by the header."""
        return self._sound.frames / self.rate

    def seek(self, frame: int) -> bool:
        """Lets :meth:`blocks` begin at a frame, unless the file cannot seek, or not that far by its header."""
        exact = self._sound.seekable() and self._sound.subtype not in _INEXACT_SEEK and frame <= self._sound.frames
        if exact:
            self._first = self._sound.seek(frame)
        return exact

    def blocks(self, samples: int) -> Iterator[Block]:
        """Yields the content in blocks of at most `samples` samples, summed over the channels.

        No memory is allocated according to the length in the header, which may be wrong.
        """
        count = self._first
        try:
            for block in self._sndfile_blocks(samples):
                count += len(block[0])
                yield block
        except soundfile.SoundFileError as error:
            yield from self._rest(count, samples, error)
            return
        seconds, stated = count / self.rate, self._stated_frames() / self.rate
        if stated - seconds > MIN_SHORTAGE:
            self.notes.append(shortage(seconds, stated))
        elif self._layout is not None and not self._layout.has_end:
            self.notes.append(no_end(seconds))

    def _sndfile_blocks(self, samples: int) -> Iterator[Block]:
        frames = max(1, samples // self.channels)
        # 16-bit samples that are scaled later become the same floats as in libsndfile, in a quarter of the time.
        dtype = "int16" if self._sound.subtype == "PCM_16" else "float32"
        while True:
            block = self._sound.read(frames, dtype=dtype, always_2d=True)
            if len(block):
                yield block, self.rate
            if len(block) < frames:
                return

    def _rest(self, count: int, samples: int, error: soundfile.SoundFileError) -> Iterator[Block]:
        """Yields what FFmpeg decodes after the first `count` frames; raises `error` if it cannot decode the file."""
        if self._file is None or self._layout is None:
            raise error
        try:
            source = FFmpegSource(self._file, self._layout)
            for block, rate in source.blocks(samples):
                skipped, count = min(count, len(block)), max(count - len(block), 0)
                if skipped < len(block):
                    yield block[skipped:], rate
        except DecodingError:
            raise error from None
        self.notes += source.notes

    def _stated_frames(self) -> int:
        """Returns the frames that the header states, which libsndfile corrects for files that end before."""
        corrected = _CORRECTED.search(self._sound.extra_info)
        if corrected is None:
            return self._sound.frames
        stated, actual = map(int, corrected.groups())
        return self._sound.frames * stated // actual if actual < stated < _PLACEHOLDER else self._sound.frames


@contextlib.contextmanager
def open_source(path: str | bytes, file: BinaryIO | None) -> Iterator[Source]:
    """Opens the audio file at a path; `file` has its bytes, and is None if they can be read only once.

    Raises:
        SoundFileError, DecodingError, OSError: no library can decode the file.
    """
    if file is None:
        with soundfile.SoundFile(path) as sound:
            yield SoundfileSource(sound, None)
        return
    layout = _layout(path, file)
    with contextlib.ExitStack() as stack:
        yield _prefer_ffmpeg(file, layout) or _open_soundfile(path, file, layout, stack)


def _layout(path: str | bytes, file: BinaryIO) -> Layout:
    if isinstance(file, io.BytesIO):
        return find_layout(file)
    status = os.fstat(file.fileno())
    return _layout_of_file(path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=_MAX_LAYOUTS)
def _layout_of_file(path: str | bytes, *identity: int) -> Layout:
    """Returns the layout of a file, for which all of it may be read; segments of one recording open it many times."""
    with open(path, "rb") as file:
        return find_layout(file)


def _prefer_ffmpeg(file: BinaryIO, layout: Layout) -> Source | None:
    """Opens a file with FFmpeg if libsndfile may read only a part of it, or leave out a damaged part silently."""
    file.seek(0)
    head = file.read(4)
    is_mpeg = head[:3] == b"ID3" or (len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0)
    if len(layout.parts) == 1 and layout.length_known and layout.intact and not is_mpeg:
        return None
    with contextlib.suppress(DecodingError):
        return FFmpegSource(file, layout)
    return None


def _open_soundfile(path: str | bytes, file: BinaryIO, layout: Layout, stack: contextlib.ExitStack) -> Source:
    """Opens a file with libsndfile, or with FFmpeg if libsndfile cannot or does not know its length."""
    file.seek(0)
    try:
        target = file if isinstance(file, io.BytesIO) else path
        sound = stack.enter_context(soundfile.SoundFile(target))
    except soundfile.SoundFileError as error:
        try:
            return FFmpegSource(file, layout)
        except DecodingError:
            raise error from None
    size = layout.parts[-1][1]
    if sound.format == "MP3" or not 0 < sound.frames <= _MAX_FRAMES_PER_BYTE * size:
        with contextlib.suppress(DecodingError):
            return FFmpegSource(file, layout)
    return SoundfileSource(sound, file, layout)
