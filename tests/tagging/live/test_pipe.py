"""Pipe input against soundfile's decoding of the same bytes; placeholder sizes, truncated input and broken headers."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import soundfile

from psla_jax.audio.decode import AudioError, array_to_mono
from psla_jax.tagging.live.pipe import Layout, Pipe, open_source


class Trickle(io.RawIOBase):
    """A stream that returns a few bytes per read."""

    def __init__(self, data: bytes, at_once: int) -> None:
        self._data, self._at_once = io.BytesIO(data), at_once

    def read(self, size: int = -1, /) -> bytes:
        return self._data.read(min(size, self._at_once))


def wav(samples: np.ndarray, subtype: str = "PCM_16", format: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, 22_050, subtype=subtype, format=format)
    return file.getvalue()


def streamed(data: bytes, size: int = 0xFFFF_FFFF) -> bytes:
    """Replaces the sizes in a WAV header by a placeholder."""
    start = data.index(b"data")
    return data[:4] + struct.pack("<I", size) + data[8 : start + 4] + struct.pack("<I", size) + data[start + 8 :]


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, (1_000, 2))


def everything(pipe: Pipe) -> np.ndarray:
    return np.concatenate([array_to_mono("the pipe", block, "mean") for block in pipe.blocks()])


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("format", ["WAV", "WAVEX"])
@pytest.mark.parametrize("at_once", [7, 100_000])
def test_wav_of_every_kind(noise, subtype, format, at_once):
    data = wav(noise, subtype, format)
    expected = soundfile.read(io.BytesIO(data), dtype="float32")[0]
    for bytes_ in (data, streamed(data), streamed(data, 0), streamed(data, 0x7FFF_FFFF)):
        pipe = Pipe(Trickle(bytes_, at_once), "a pipe")
        assert (pipe.rate, pipe.layout.channels) == (22_050, 2)
        np.testing.assert_allclose(everything(pipe), expected.mean(axis=1), atol=1e-7)
        assert pipe.notes == []


def test_headerless_samples(noise):
    for name, kind in (("f32le", "<f4"), ("f64le", "<f8")):
        pipe = Pipe(io.BytesIO(noise.astype(kind).tobytes()), "a pipe", Layout(name, 16_000, 2))
        np.testing.assert_allclose(everything(pipe), noise.mean(axis=1), atol=1e-7)
    whole = (noise * 32_768).astype("<i2")
    pipe = Pipe(Trickle(whole.tobytes(), 5), "a pipe", Layout("s16le", 16_000, 2))
    np.testing.assert_array_equal(np.concatenate(list(pipe.blocks())), whole)


def test_chunks_after_the_samples_are_ignored(noise):
    data = wav(noise)
    pipe = Pipe(io.BytesIO(data + b"LIST" + struct.pack("<I", 4_000) + bytes(4_000)), "a pipe")
    assert len(everything(pipe)) == 1_000
    assert pipe.notes == []


def test_a_pipe_that_stops_inside_a_sample_gives_the_whole_samples(noise):
    pipe = Pipe(io.BytesIO(streamed(wav(noise))[:-3]), "the pipe")
    assert len(everything(pipe)) == 999
    assert pipe.notes == ["the pipe ended inside a sample: its last 1 bytes of 4 were ignored."]


def test_a_pipe_that_stops_before_the_size_in_its_header(noise):
    pipe = Pipe(io.BytesIO(wav(np.tile(noise, (100, 1)))[:-44_100]), "the pipe")
    assert len(everything(pipe)) == 100_000 - 11_025
    assert pipe.notes == ["the pipe ended after 4.0 s of the 4.5 s that its header declares."]
    pipe = Pipe(io.BytesIO(streamed(wav(noise[:0]))), "the pipe")
    assert list(pipe.blocks()) == []
    assert pipe.notes == ["the pipe contains no samples."]


def header(tag: int = 1, channels: int = 1, rate: int = 16_000, frame: int = 2, bits: int = 16) -> bytes:
    fmt = struct.pack("<HHIIHH", tag, channels, rate, rate * frame, frame, bits)
    return b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0" + fmt + b"data\xff\xff\xff\xff"


BROKEN = {
    "empty": (b"", "is empty"),
    "flac": (b"fLaC" + bytes(40), "begins with b'fLaC', which is not a WAV header"),
    "short": (b"RIFF", "is not a WAV header"),
    "cut": (header()[:30], "ends within its WAV header"),
    "cut between": (header()[:36], "ends within its WAV header"),
    "undescribed": (b"RIFF\0\0\0\0WAVEdata\0\0\0\0", "has a WAV header without a sample format"),
    "huge": (b"RIFF\0\0\0\0WAVEjunk\xff\xff\xff\x7f" + bytes(99), "ends within its WAV header"),
    "mu-law": (header(tag=7, bits=8, frame=1), "8-bit samples of WAV format tag 7"),
    "no channel": (header(channels=0), "WAV header of 0 channels"),
    "rate 0": (header(rate=0), "0 Hz"),
    "frame": (header(frame=3), "3 bytes a sample"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_header_is_one_sentence(kind):
    data, reason = BROKEN[kind]
    with pytest.raises(AudioError) as caught:
        Pipe(io.BytesIO(data), "the pipe")
    assert str(caught.value).startswith("the pipe ")
    assert reason in str(caught.value)


def test_a_source_that_cannot_be_opened_is_named(tmp_path, monkeypatch):
    with pytest.raises(AudioError, match=r"nowhere cannot be read \(No such file"):
        open_source(str(tmp_path / "nowhere"))
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(AudioError, match="standard input is not a pipe"):
        open_source("-")
