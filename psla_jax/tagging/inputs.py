"""Sound in the forms that other libraries have it in, as an audio file or as an array of samples.

No library is imported for this: an object is recognised by its methods.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from psla_jax.audio import decode, segments
from psla_jax.audio.decode import AudioError, Reading, StrPath
from psla_jax.config import Channel

Audio = Any
"""Any form that :func:`read_input` accepts."""
ACCEPTED = (
    "a path, a file opened in binary mode, the bytes of an audio file, an array of samples with its sample_rate, "
    "(samples, rate), (rate, samples), or a dictionary with array and sampling_rate"
)
"""What :func:`read_input` accepts, for messages."""
MAX_CHANNELS = 64
"""Maximum number of channels: a longer axis of an array is time."""


@dataclass(frozen=True)
class AudioFile:
    """An audio file on the disk or in memory."""

    path: StrPath
    """Its path, a segment of it, or what messages call it if it is in memory."""
    content: memoryview | None = None
    """Its bytes; None for a file on the disk."""
    rate: None = None
    """Not known before its blocks are read."""

    @property
    def name(self) -> str:
        """Its path as text."""
        return os.fsdecode(self.path)

    def blocks(
        self, channel: Channel, reading: Reading | None = None, sample_rate: int = decode.SAMPLE_RATE
    ) -> Iterator[np.ndarray]:
        """Yields its waveform as :func:`psla_jax.audio.decode.blocks` does, and sets `reading` to what this shows."""
        settings: dict[str, Any] = {"channel": channel, "reading": reading, "sample_rate": sample_rate}
        if self.content is None:
            return segments.blocks(self.path, **settings)
        return decode.blocks(self.path, content=self.content, **settings)


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples in memory."""

    name: str
    """What messages call them."""
    array: np.ndarray
    """``(samples,)``, or of two axes in either order, see :func:`channel_axis`."""
    rate: float | None = None
    """Samples per second; None if it is not known."""
    axis: int | None = None
    """Axis of the channels, where it is known whatever the shape."""

    def blocks(
        self, channel: Channel, reading: Reading | None = None, sample_rate: int = decode.SAMPLE_RATE
    ) -> Iterator[np.ndarray]:
        """Yields the waveform, float32 ``(samples,)``, as a single block; `reading` receives its peaks."""
        array, _ = self.channels_last()
        yield decode.from_samples(
            array, self.rate or 0, channel=channel, name=self.name, reading=reading, sample_rate=sample_rate
        )

    def channels_last(self, previous: int | None = None) -> tuple[np.ndarray, int | None]:
        """Returns ``(samples,)`` or ``(samples, channels)``, and the axis that had the channels, if any.

        `previous` is that axis in the previous block; errors are those of :func:`channel_axis`.
        """
        if self.array.ndim == 1:
            return self.array, previous
        axis = channel_axis(self.name, self.array, previous) if self.axis is None else self.axis
        return np.moveaxis(self.array, axis, -1), axis


Source = AudioFile | Samples


def read_input(audio: Audio, name: str = "") -> Source:
    """Recognises sound in any accepted form.

    Args:
        audio: a path; an open binary file; the bytes of an audio file; samples as an array of any library or as a list,
            alone, with their rate as ``(samples, rate)`` or ``(rate, samples)``, or as ``{"array", "sampling_rate"}``;
            or an audio decoder of Hugging Face or torchcodec.
        name: what messages call it, unless it has a path.

    Raises:
        AudioError: it is nothing of this.
    """
    for accepts, convert in _CONVERTERS:
        if accepts(audio):
            return convert(audio, name)
    return Samples(name or "the array", to_array(name or "the audio", audio))


def read_block(block: Any) -> Samples:
    """Recognises a block of a stream: samples as in :func:`read_input`, or bytes of 16-bit little-endian mono samples.

    Raises:
        AudioError: it is nothing of this.
    """
    if isinstance(block, bytes | bytearray | memoryview):
        if len(content := memoryview(block).cast("B")) % 2:
            raise AudioError("the block", f"has {len(content)} bytes, not a whole number of 16-bit samples: push more.")
        return Samples("the block", np.frombuffer(content, "<i2"))
    source = read_input(block, "the block")
    if isinstance(source, AudioFile):
        raise AudioError("the block", "is an audio file: push its samples, or use Tagger.tag.")
    return source


def to_array(name: str, values: Any) -> np.ndarray:
    """Converts samples to a NumPy array in the byte order of the machine; raises AudioError if they are not numbers."""
    if hasattr(values, "detach"):  # PyTorch converts no tensor that requires a gradient or is on a GPU.
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values  # NumPy has no bfloat16.
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise AudioError(name, f"is not an array: give {ACCEPTED}.") from error
    if array.dtype.name == "bfloat16":
        return array.astype(np.float32)
    if array.dtype.kind not in "biufc":
        kind = type(values).__name__ if array.dtype == object else array.dtype
        raise AudioError(name, f"is of type {kind}: give {ACCEPTED}.")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def channel_axis(name: str, array: np.ndarray, previous: int | None = None) -> int:
    """Returns the axis of the channels: the one with at most 64 entries, where the other one has more.

    If both are that short, it is that of the previous block, if any, and otherwise the second one, which must then not
    be the longer one except for one sample of two channels.

    Raises:
        AudioError: the array has not two axes, both are longer, or their order is not known.
    """
    if array.ndim != 2:
        raise AudioError(
            name, f"has the shape {array.shape}: give (samples,), (samples, channels) or (channels, samples)."
        )
    first_is_time, second_is_time = (length > MAX_CHANNELS for length in array.shape)
    if first_is_time != second_is_time:
        return int(first_is_time)
    if first_is_time:
        raise AudioError(
            name, f"has the shape {array.shape}, but no sound has more than {MAX_CHANNELS} channels: give one channel."
        )
    if previous is None and 2 < array.shape[1] > array.shape[0]:
        raise AudioError(
            name, f"has the shape {array.shape}, in which either axis may be time: transpose it to (samples, channels)."
        )
    return 1 if previous is None else previous


def _is(*types: type) -> Callable[[Any], bool]:
    return lambda audio: isinstance(audio, types)


def _has(*names: str) -> Callable[[Any], bool]:
    return lambda audio: all(hasattr(audio, name) for name in names)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) or getattr(value, "shape", None) == ()


def _is_pair(audio: Any) -> bool:
    """Whether this is samples and their rate: a rate is a number, and samples are not."""
    return isinstance(audio, tuple | list) and len(audio) == 2 and _is_number(audio[0]) != _is_number(audio[1])


def _from_pair(audio: Any, name: str) -> Samples:
    rate, samples = audio if _is_number(audio[0]) else reversed(audio)
    name = name or "the array"
    return Samples(name, to_array(name, samples), rate.item() if hasattr(rate, "item") else rate)


def _from_path(audio: Any, name: str) -> AudioFile:
    return AudioFile(audio)


def _from_bytes(audio: Any, name: str) -> AudioFile:
    name, content = name or "the file in memory", memoryview(audio).cast("B")
    if not content:
        raise AudioError(name, "is empty: record or download it again.")
    return AudioFile(name, content)


def _from_file(audio: Any, name: str) -> AudioFile:
    path = getattr(audio, "name", None)
    name = path if isinstance(path, str) else name or "the file in memory"
    try:
        content = audio.read()
    except (OSError, ValueError) as error:
        raise AudioError(name, f"cannot be read ({error}): open it again.") from error
    if not isinstance(content, bytes):
        raise AudioError(
            name, f"gives {type(content).__name__} instead of bytes: open it in binary mode, or give samples."
        )
    if not content:
        raise AudioError(name, "has nothing left to read: rewind it with seek(0), or record it again.")
    return AudioFile(name, memoryview(content))


def _from_mapping(audio: Mapping[str, Any], name: str) -> Source:
    """Reads the dictionaries of Hugging Face, with decoded samples, or with the file or its path only."""
    path, content = audio.get("path"), audio.get("bytes")
    if (key := next((key for key in ("array", "raw") if key in audio), None)) is not None:
        name = path or name or "the array"
        return Samples(name, to_array(name, audio[key]), audio.get("sampling_rate"))
    if content is not None:
        return _from_bytes(content, path or name)
    if path is not None:
        return _from_path(path, name)
    raise AudioError(name or "the dictionary", f"has the keys {list(audio)}: give {ACCEPTED}.")


def _from_decoder(audio: Any, name: str) -> Samples:
    try:
        decoded = audio.get_all_samples()
    except Exception as error:  # Decoders raise errors of their libraries.
        raise AudioError(name or "the audio", f"cannot be decoded ({error}): record or download it again.") from error
    return _from_decoded(decoded, name)


def _from_decoded(audio: Any, name: str) -> Samples:
    """Reads samples of torchcodec, which are ``(channels, samples)`` always."""
    name = name or "the array"
    return Samples(name, to_array(name, audio.data), float(audio.sample_rate), axis=0)


_CONVERTERS: tuple[tuple[Callable[[Any], bool], Callable[[Any, str], Source]], ...] = (
    (_is(AudioFile, Samples), lambda audio, name: audio),
    (_is(str, os.PathLike), _from_path),
    (_is(bytes, bytearray, memoryview), _from_bytes),
    (_is(Mapping), _from_mapping),
    (_has("get_all_samples"), _from_decoder),
    (_has("data", "sample_rate"), _from_decoded),
    (_has("read"), _from_file),
    (_is_pair, _from_pair),
)
"""Forms of sound and their conversions, tried in this order; everything else should be an array."""
