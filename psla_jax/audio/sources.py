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

from psla_jax.audio.ffmpeg import MIN_SHORTAGE, Block, DecodingError, FFmpegSource, shortage
from psla_jax.audio.layout import PLACEHOLDER, Layout, Section, find_layout

_MAX_LAYOUTS = 4096
"""Number of files whose layouts are kept."""
_MAX_FRAMES_PER_BYTE = 8192
"""Frames per byte beyond which the length in a header is not believed; silence in FLAC has up to 5461."""
_CORRECTED = re.compile(r"^ *(?:data|riff|Riff size|SSND|Data Size) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
"""libsndfile's note, in bytes, on a file that ends before the length in its header."""
_PLACEHOLDER_64 = 1 << 62
"""The same as PLACEHOLDER for headers with lengths of 64 bits."""
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

    def __init__(self, sound: soundfile.SoundFile, section: Section | None) -> None:
        """Takes an open file and, unless it can be read only once, its bytes."""
        self._sound, self._section = sound, section
        self.rate, self.channels = sound.samplerate, sound.channels
        self.is_float = sound.subtype in ("FLOAT", "DOUBLE")
        self.notes: list[str] = []
        self._first = 0

    def seconds(self) -> float:
        """Returns the duration by the header."""
        return self._sound.frames / self.rate

    def seek(self, frame: int) -> bool:
        """Lets :meth:`blocks` begin at a frame, unless the file cannot seek, or not that far by its header."""
        if not self._sound.seekable() or self._sound.subtype in _INEXACT_SEEK or frame > self._sound.frames:
            return False
        try:
            self._first = self._sound.seek(frame)
        except soundfile.SoundFileError:  # The file is damaged, and later calls fail, too: FFmpeg will read all of it.
            return False
        return True

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
        elif seconds - stated > MIN_SHORTAGE:
            self.notes.append(_overrun(stated, seconds - stated))

    def _sndfile_blocks(self, samples: int) -> Iterator[Block]:
        frames = max(1, samples // self.channels)
        if self._sound.subtype == "OPUS":
            self._sound.seek(self._first)  # libsndfile's first read after opening includes the codec's delay as sound.
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
        if self._section is None:
            raise error
        try:
            source = FFmpegSource(self._section)
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
        # libsndfile reads Wave64 files, but no others, to their end if that is behind the length in the header.
        limit = _PLACEHOLDER_64 if self._sound.format in ("RF64", "W64") else PLACEHOLDER
        believed = 0 < stated < limit and (actual < stated or self._sound.format == "W64")
        return self._sound.frames * stated // actual if believed else self._sound.frames


class JoinedSource:
    """Several files one after the other in a single one.

    Attributes:
        rate, channels, is_float: those of the first file.
        notes: as in :class:`psla_jax.audio.ffmpeg.FFmpegSource`.
    """

    def __init__(self, file: BinaryIO, layout: Layout) -> None:
        self._sections, self._layout = [Section(file, *part) for part in layout.parts], layout
        self.notes: list[str] = []
        with _opened(self._sections[0], self._layout) as first:
            self.rate, self.channels, self.is_float = first.rate, first.channels, first.is_float

    def seek(self, frame: int) -> bool:
        """Returns False: :meth:`blocks` always begins at the beginning, and parts may have other rates."""
        return False

    def seconds(self) -> float:
        """Returns the sum of the durations."""
        return sum((source.seconds() for source in self._sources() if source is not None), start=0.0)

    def blocks(self, samples: int) -> Iterator[Block]:
        """Yields the blocks of all files."""
        start = elapsed = 0.0
        for source in self._sources():
            for block, rate in () if source is None else source.blocks(samples):
                elapsed += len(block) / rate
                yield block, rate
            notes = ["cannot be decoded: download or copy it again."] if source is None else source.notes
            self.notes += (f"has a part, {start:.2f} s after the beginning, that {note}" for note in notes)
            start = elapsed

    def _sources(self) -> Iterator[Source | None]:
        """Opens one part after the other; None stands for one that cannot be decoded."""
        for section in self._sections:
            with contextlib.ExitStack() as stack:
                source = None
                with contextlib.suppress(soundfile.SoundFileError, DecodingError):
                    source = stack.enter_context(_opened(section, self._layout))
                yield source


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
    whole = Section(file, *layout.parts[0]), layout, None if isinstance(file, io.BytesIO) else path
    joined = len(layout.parts) > 1
    with contextlib.nullcontext(JoinedSource(file, layout)) if joined else _opened(*whole) as source:
        if layout.overrun is not None:
            source.notes.append(_overrun(*layout.overrun))
        if not layout.has_end:
            source.notes.append(
                "ends in the middle of a page or chunk, so it was probably cut off: download or copy it again."
            )
        yield source


def _overrun(stated: float, behind: float) -> str:
    """Returns the note on sound behind the length in a header, both in seconds."""
    what = f"its header states {stated:.2f} s, and the {behind:.2f} s of data behind them are read as sound, too"
    return f"has a wrong length: {what}: check how it sounds after {stated:.2f} s."


@contextlib.contextmanager
def _opened(section: Section, layout: Layout, path: str | bytes | None = None) -> Iterator[Source]:
    """Opens a file or a part of one; `path` is that of a whole file, which libsndfile reads faster."""
    with contextlib.ExitStack() as stack:
        source = _prefer_ffmpeg(section, layout) or _open_soundfile(section, layout, path, stack)
        yield source


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


def _prefer_ffmpeg(section: Section, layout: Layout) -> Source | None:
    """Opens a file with FFmpeg if libsndfile may read only a part of it, or leave out a damaged part silently."""
    section.seek(0)
    head = section.read(3)
    is_mpeg = head == b"ID3" or (len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0)
    if layout.length_known and layout.intact and not is_mpeg:
        return None
    with contextlib.suppress(DecodingError):
        return FFmpegSource(section, length_known=layout.length_known)
    return None


def _open_soundfile(section: Section, layout: Layout, path: str | bytes | None, stack: contextlib.ExitStack) -> Source:
    """Opens a file with libsndfile, or with FFmpeg if libsndfile cannot or does not know its length."""
    section.seek(0)
    try:
        sound = _enter_soundfile(section, path, stack)
    except soundfile.SoundFileError as error:
        try:
            return FFmpegSource(section, length_known=layout.length_known)
        except DecodingError:
            raise error from None
    if sound.format == "MP3" or not 0 < sound.frames <= _MAX_FRAMES_PER_BYTE * (section.stop - section.start):
        with contextlib.suppress(DecodingError):
            return FFmpegSource(section, length_known=layout.length_known)
    return SoundfileSource(sound, section)


def _enter_soundfile(section: Section, path: str | bytes | None, stack: contextlib.ExitStack) -> soundfile.SoundFile:
    """Opens a file with libsndfile by its content: by its name, any file called ``.au`` or ``.vox`` is raw samples."""
    if path is not None:
        sound = stack.enter_context(soundfile.SoundFile(path))
        if sound.format != "RAW":
            return sound
    return stack.enter_context(soundfile.SoundFile(section))
