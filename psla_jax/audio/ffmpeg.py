"""Decodes audio with FFmpeg (PyAV): formats that libsndfile lacks, or that it does not read to their end.

What is missing in the middle of a file becomes silence where the format tells how much it is, so that later times are
right. Everything that is not as the header says becomes a note.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from typing import cast

import av
import numpy as np

from psla_jax.audio.layout import Section

Block = tuple[np.ndarray, int]
"""Samples ``(frames, channels)``, floats or integers, and their rate in Hz."""

MIN_SHORTAGE = 0.1
"""Seconds that a file must lack until it is noted: encoders state lengths that are rounded to their frames."""
_MIN_GAP, _MAX_GAP = 0.1, 600.0
"""Seconds by which time stamps must be ahead of the samples for silence to be inserted, and the most of it at once."""
_DEMUXERS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dsf,dts,eac3,flac,flv,matroska,mov,mp3,mpc,mpc8,mpeg,mpegts,ogg,tak,tta,w64,"
    "wav,wv"
)
"""Formats that are accepted. Others, such as playlists, could open further files or addresses."""
_OPTIONS = {"format_whitelist": _DEMUXERS, "err_detect": "crccheck"}
_OPUS = ("opus", "libopus")
_DECODERS = {"opus": "libopus"}
"""Decoders used instead of FFmpeg's own: it is the reference, and the one in libsndfile."""
_ESTIMATED = frozenset({"aac", "ac3", "amr", "dts", "eac3", "mpeg", "mpegts"})
"""Formats without a length in their header, which FFmpeg then estimates from the bit rate."""
_TAGS = (b"ID3", b"TAG", b"APETAGEX")
"""Beginnings of tags, which can be found between the frames of joined MP3 files."""
_XING = re.compile(rb"(?:Xing|Info)\0\0\0[\x01\x03\x05\x07\x09\x0b\x0d\x0f]|VBRI")
"""Header with the number of frames in the first frame of an MP3 file."""


class DecodingError(ValueError):
    """A file that FFmpeg cannot decode."""


class FFmpegSource:
    """An audio file that FFmpeg decodes.

    Attributes:
        rate: sample rate in Hz of the beginning; it may change in joined files.
        channels: number of channels of the beginning.
        is_float: whether samples are stored as floating-point numbers.
        notes: a sentence, without the name of the file, for each defect; complete after the last block.
    """

    def __init__(self, file: Section, *, length_known: bool = True) -> None:
        """Opens a file; without `length_known`, WAV samples extend to its end, whatever length its header states.

        Raises:
            DecodingError: the file has no audio in an accepted format.
        """
        self._file, self._length_known = file, length_known
        self.notes: list[str] = []
        with self._opened() as (_, stream):
            codec = stream.codec_context
            self.rate, self.channels, self.is_float = codec.sample_rate, codec.channels, codec.name.startswith("pcm_f")

    def seconds(self) -> float:
        """Returns the duration by the header, or else by the packets, which are counted without decoding them."""
        with self._opened() as (container, stream):
            stated = self._stated_seconds(container, stream)
            if stated is not None:
                return stated
            packets = (packet for packet in container.demux(stream) if packet.size)
            return float(sum((packet.duration or 0) * packet.time_base for packet in packets))

    def seek(self, frame: int) -> bool:
        """Returns False: :meth:`blocks` always begins at the beginning, and parts may have other rates."""
        return False

    def blocks(self, samples: int) -> Iterator[Block]:
        """Yields the content in blocks of about `samples` samples, summed over the channels.

        Raises:
            DecodingError: nothing can be decoded.
        """
        yield from _gathered(self._pieces(), samples)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[av.container.InputContainer, av.AudioStream]]:
        """Opens the file at its beginning, and its main audio stream."""
        options = _OPTIONS if self._length_known else {**_OPTIONS, "ignore_length": "1"}
        file = replace(self._file, position=0)
        with _decoding_errors(), av.open(file, "r", options=options, metadata_errors="replace") as container:
            stream = container.streams.best("audio")
            if not isinstance(stream, av.AudioStream) or not stream.codec_context.sample_rate:
                raise DecodingError("it has no audio track")
            yield container, stream

    def _stated_seconds(self, container: av.container.InputContainer, stream: av.AudioStream) -> float | None:
        """Returns the duration in seconds that the header states; None if it states none, or a wrong one."""
        name = container.format.name
        if name in _ESTIMATED or not self._length_known:
            return None
        if name == "mp3" and not _states_frames(replace(self._file, position=0), stream):
            return None
        if stream.duration is not None and stream.time_base is not None:
            seconds = float(stream.duration * stream.time_base)
            if name != "ogg":
                return seconds
            # The duration of Opus is the time at the end, and pieces of a recording do not begin at 0.
            start = float((stream.start_time or 0) * stream.time_base) if stream.codec_context.name in _OPUS else 0.0
            return seconds - max(start, stream.codec_context.delay / stream.codec_context.sample_rate)
        if container.duration is not None and len(container.streams) == 1:  # Other tracks may be longer.
            # WebM and Matroska state when the sound ends, and pieces of a recording do not begin at 0.
            start = max(container.start_time or 0, 0) if name.startswith("matroska") else 0
            return (container.duration - start) / av.time_base
        return None

    def _pieces(self) -> Iterator[Block]:
        """Yields the decoded frames, and silence in gaps."""
        with self._opened() as (container, stream):
            stated, clock = self._stated_seconds(container, stream), _Clock()
            for time, frame in _frames(container, stream, clock):
                gap, samples, rate = clock.gap(time), _samples(frame), frame.sample_rate
                if stated is not None and container.format.name == "ogg":
                    # The last page tells where the sound ends, which FFmpeg ignores if it is also the first one.
                    samples = samples[: max(0, round((stated - clock.read - gap) * rate))]
                yield from _silence(gap, samples, rate)
                yield samples, rate
                clock.read += gap + len(samples) / rate
            self.notes += clock.notes(stated)


class _Clock:
    """Compares the time stamps of a file with the samples that were read, and records damage."""

    def __init__(self) -> None:
        self._origin = math.nan
        self.read = 0.0
        """Seconds that were read, including inserted silence."""
        self._undecodable_at = self._damaged_at = math.nan
        self._inserted = 0.0

    def gap(self, time: float | None) -> float:
        """Returns the seconds that are missing before a frame with this time stamp."""
        ahead = math.nan if time is None else time - self._origin - self.read
        if time is not None and not -_MIN_GAP < ahead <= _MAX_GAP:  # The first frame, or stamps that start again.
            self._origin, ahead = time - self.read, 0.0
        missing = ahead if ahead >= _MIN_GAP else 0.0
        if math.isnan(self._damaged_at):
            self._damaged_at = self.read if missing else self._undecodable_at
        self._inserted += missing
        return missing

    def add_undecodable(self) -> None:
        """Records a packet that cannot be decoded; before the first frame, that is usual for parts of a broadcast."""
        if self.read and math.isnan(self._undecodable_at):
            self._undecodable_at = self.read

    def notes(self, stated: float | None) -> Iterator[str]:
        """Yields a sentence on damage and one on a missing end, given the seconds that the header states."""
        if self._inserted:
            what = f"{self._inserted:.2f} s without sound that can be decoded are silence in the results"
            yield f"has gaps or is damaged, first at {self._damaged_at:.2f} s: {what}."
        elif not math.isnan(self._damaged_at):
            yield f"is damaged at {self._damaged_at:.2f} s: sound is missing there, and later times may be too early."
        if stated is not None and stated - self.read > MIN_SHORTAGE:
            yield shortage(self.read, stated)
        elif math.isnan(self._damaged_at) and not math.isnan(self._undecodable_at):
            what = f"holds data that cannot be decoded after {self._undecodable_at:.2f} s, such as a tag"
            yield f"{what}; if sound is missing, it was cut off: download or copy it again."


def shortage(seconds: float, stated: float) -> str:
    """Returns the note on a file that holds fewer seconds than its header states."""
    return f"holds {seconds:.2f} s of the {stated:.2f} s that its header states: download or copy it again."


@contextlib.contextmanager
def _decoding_errors() -> Iterator[None]:
    try:
        yield
    except av.error.FFmpegError as error:
        raise DecodingError(error.strerror) from error


def _frames(
    container: av.container.InputContainer, stream: av.AudioStream, clock: _Clock
) -> Iterator[tuple[float | None, av.AudioFrame]]:
    """Yields the decoded frames with their times in seconds; the clock counts the packets that cannot be decoded.

    Raises FFmpegError if nothing can be decoded.
    """
    decoder, failure, found = _decoder(stream), None, False
    number_frames = _flac_time if container.format.name == "flac" else None
    packets = container.demux(stream)
    while True:
        packet = None
        try:
            packet = next(packets, None)
            if packet is None:
                break
            frames = decoder.decode(packet)
        except av.error.FFmpegError as error:
            if packet is None or not bytes(packet).startswith(_TAGS):
                failure = error
                clock.add_undecodable()
            continue
        start = 0.0
        for frame in frames:
            time = frame.time if number_frames is None else number_frames(packet, stream) + start
            seconds = frame.samples / frame.sample_rate
            if not found and decoder is not stream.codec_context and time is not None:
                # The time stamp is that of the packet, whose beginning the decoder leaves out.
                time += max(0.0, float((packet.duration or 0) * packet.time_base) - seconds)
            yield time, frame
            found = True
            start += seconds
    if failure and not found:
        raise failure


def _decoder(stream: av.AudioStream) -> av.AudioCodecContext:
    """Returns the decoder of a stream, which yields floats where it can and no frames with wrong checksums."""
    context = stream.codec_context
    name = _DECODERS.get(context.name)
    if name in av.codecs_available:
        decoder = cast(av.AudioCodecContext, av.CodecContext.create(name, "r"))
        decoder.extradata, decoder.options = context.extradata, {"request_sample_fmt": "flt"}
        return decoder
    if context.name == "flac":
        context.options = {"err_detect": "crccheck+explode"}
    return context


def _flac_time(packet: av.Packet, stream: av.AudioStream) -> float:
    """Returns the time in seconds of the first frame in a packet of a FLAC file, by the number in the frame's header.

    FFmpeg counts the frames that it finds, which does not show what is missing between them.
    """
    head, context = bytes(packet)[:11], stream.codec_context
    has_variable_size, block_size = head[1] & 1, int.from_bytes((context.extradata or b"")[:2], "big")
    return _coded_number(head[4:]) * (1 if has_variable_size else block_size) / context.sample_rate


def _coded_number(data: bytes) -> int:
    """Returns the number at the start of `data` in UTF-8's encoding, which FLAC extends to 36 bits."""
    first = data[0]
    length = next(bits for bits in range(8) if not first & (0x80 >> bits))
    number = first & (0x7F >> length)
    for byte in data[1:length]:
        number = number << 6 | byte & 0x3F
    return number


def _states_frames(file: Section, stream: av.AudioStream) -> bool:
    """Returns whether an MP3 file has a header with the number of its frames, and FFmpeg's duration is that number's.

    For joined files, whose header only tells the first length, FFmpeg ignores it and estimates.
    """
    head = file.read(10)
    start = 10 + sum((byte & 0x7F) << 7 * (3 - i) for i, byte in enumerate(head[6:])) if head[:3] == b"ID3" else 0
    file.seek(start)
    frame = file.read(256)
    found = _XING.search(frame)
    if found is None or stream.duration is None or stream.time_base is None:
        return False
    offset = found.end() + (10 if found[0] == b"VBRI" else 0)
    rate = stream.codec_context.sample_rate
    frame_samples = 1152 if rate >= 32_000 else 576
    stated = int.from_bytes(frame[offset : offset + 4], "big") * frame_samples / rate
    return abs(stated - float(stream.duration * stream.time_base)) < 0.5


def _samples(frame: av.AudioFrame) -> np.ndarray:
    """Returns the samples of a frame, ``(frames, channels)``, in the type in which they are decoded."""
    array = frame.to_ndarray()
    return array.T if frame.format.is_planar else array.reshape(-1, frame.layout.nb_channels)


def _silence(seconds: float, like: np.ndarray, rate: int) -> Iterator[Block]:
    """Yields silence in pieces of at most a second, with the channels and the type of `like`."""
    value = 128 if like.dtype == np.uint8 else 0
    left = round(seconds * rate)
    while left > 0:
        yield np.full((min(left, rate), like.shape[1]), value, like.dtype), rate
        left -= rate


def _gathered(pieces: Iterator[Block], samples: int) -> Iterator[Block]:
    """Joins consecutive pieces of the same rate, channels and type to blocks of at least `samples` samples."""

    def key(piece: Block) -> tuple[int, int, np.dtype]:
        return piece[1], piece[0].shape[1], piece[0].dtype

    for (rate, _, _), group in groupby(pieces, key):
        waiting: list[np.ndarray] = []
        size = 0
        for piece, _ in group:
            waiting.append(piece)
            size += piece.size
            if size >= samples:
                yield np.concatenate(waiting), rate
                waiting, size = [], 0
        if waiting:
            yield np.concatenate(waiting), rate
