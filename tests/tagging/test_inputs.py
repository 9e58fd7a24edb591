"""One sound in every accepted form gives the same waveform, and anything else is one sentence."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
import torch

import psla_jax
from psla_jax.audio import decode
from psla_jax.audio.decode import AudioError
from psla_jax.tagging.inputs import read_block, read_input
from psla_jax.tagging.live.stream import Stream
from psla_jax.tagging.tagger import Failure, TaggerError

RATE = 22_050
PCM = np.random.default_rng(0).integers(-20_000, 20_000, 12_000).astype(np.int16)
FLOATS = PCM / 32_768
STEREO = np.stack([FLOATS, 0.5 * FLOATS], axis=1)


class Decoder:
    """As the audio decoder of Hugging Face datasets and torchcodec."""

    def get_all_samples(self) -> SimpleNamespace:
        return SimpleNamespace(data=torch.tensor(STEREO.T, dtype=torch.float32), sample_rate=RATE)


def wav(samples: np.ndarray = PCM) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


MONO = {
    "int16": PCM,
    "int32": PCM.astype(np.int32) * 65_536,
    "big-endian": PCM.astype(">i2"),
    "float32": FLOATS.astype(np.float32),
    "list": FLOATS.tolist(),
    "torch": torch.tensor(FLOATS, requires_grad=True),
    "torch int16": torch.tensor(PCM),
    "jax": jnp.asarray(FLOATS, jnp.float32),
    "(1, N)": FLOATS[None],
    "(N, 1)": FLOATS[:, None],
    "torch (1, N)": torch.tensor(PCM)[None],
    "(2, N)": np.stack([FLOATS, FLOATS]),
}
COARSE = {
    "uint8": (np.round(FLOATS * 128) + 128).astype(np.uint8),
    "int8": np.round(FLOATS * 128).astype(np.int8),
    "float16": FLOATS.astype(np.float16),
    "torch bfloat16": torch.tensor(FLOATS).bfloat16(),
    "jax bfloat16": jnp.asarray(FLOATS, jnp.bfloat16),
}
WITH_RATE = {
    "(rate, samples)": (RATE, PCM),
    "(samples, rate)": (torch.tensor(FLOATS)[None], RATE),
    "[samples, rate]": [FLOATS, np.int64(RATE)],
    "dictionary": {"path": None, "array": FLOATS, "sampling_rate": RATE},
    "raw": {"raw": FLOATS.astype(np.float32), "sampling_rate": RATE},
    "undecoded": {"path": None, "bytes": wav()},
    "bytes": wav(),
    "bytearray": bytearray(wav()),
    "file": io.BytesIO(wav()),
}
TWO = {
    "(N, 2)": STEREO,
    "(2, N)": STEREO.T,
    "torch (2, N)": torch.tensor(STEREO.T),
    "pair": (RATE, STEREO),
    "decoder": Decoder(),
    "decoded": Decoder().get_all_samples(),
}


def waveform(audio: object, channel: str = "mean") -> np.ndarray:
    source = read_input(audio)
    if source.rate is None:
        source = replace(source, rate=RATE)
    return np.concatenate(list(source.blocks(channel)))


@pytest.mark.parametrize("form", [*MONO, *COARSE, *WITH_RATE])
def test_one_channel_in_every_form(form):
    audio = (MONO | COARSE | WITH_RATE)[form]
    expected = decode.from_samples(FLOATS, RATE)
    tolerance = 0.008 if form in COARSE else 1e-6
    np.testing.assert_allclose(waveform(audio), expected, atol=tolerance)


@pytest.mark.parametrize("form", TWO)
@pytest.mark.parametrize("channel", ["mean", "first"])
def test_two_channels_in_every_form(form, channel):
    expected = decode.from_samples(FLOATS * (0.75 if channel == "mean" else 1), RATE)
    np.testing.assert_allclose(waveform(TWO[form], channel), expected, atol=1e-6)


INVALID = {
    "number": (0.5, "has the shape ()"),
    "object": (object(), "the audio is of type object: give a path, a file opened in binary mode"),
    "dictionary": ({"audio": 1}, "the dictionary has the keys ['audio']: give a path"),
    "empty dictionary": ({"path": None, "bytes": None}, "the dictionary has the keys"),
    "three axes": (np.zeros((1, 2, 4_000)), "has the shape (1, 2, 4000)"),
    "ragged": ([[0.0], [0.0, 0.0]], "the audio is not an array"),
    "text file": (io.StringIO("no sound"), "the file in memory gives str instead of bytes: open it in binary mode"),
    "at its end": (io.BytesIO(), "has nothing left to read: rewind it with seek(0)"),
    "no audio": (b"no sound", "the file in memory cannot be read as audio"),
    "no bytes": (b"", "the file in memory is empty: record"),
    "broken decoder": (SimpleNamespace(get_all_samples=lambda: 1 / 0), "cannot be decoded (division by zero)"),
}


@pytest.mark.parametrize("kind", INVALID)
def test_anything_else_is_one_sentence(kind):
    audio, reason = INVALID[kind]
    with pytest.raises(AudioError) as caught:
        waveform(audio)
    assert reason in str(caught.value)
    assert str(caught.value).count(". ") == 0


def test_taggers_take_every_form(saved, tmp_path: Path):
    tagger = psla_jax.load(saved("attention"))
    path = tmp_path / "a.wav"
    path.write_bytes(wav())
    expected = tagger.tag(path)
    for form, audio in WITH_RATE.items():
        if form == "file":
            audio.seek(0)
        tags = tagger.tag(audio)
        np.testing.assert_allclose(tags.scores, expected.scores, atol=5e-6)
        assert tags.duration == expected.duration
    assert tagger.tag({"path": "b.wav", "array": PCM, "sampling_rate": RATE}).clip == "b.wav"
    with open(path, "rb") as file:
        assert tagger.tag(file).clip == str(path)
    np.testing.assert_array_equal(tagger.embed(wav()).clip, tagger.embed(path).clip)
    np.testing.assert_array_equal(tagger.timeline((RATE, PCM)).scores, tagger.timeline(PCM, RATE).scores)
    tagger.plot(io.BytesIO(wav()), tmp_path / "a.png")
    assert (tmp_path / "a.png").exists()
    results = list(tagger.tag_all([path, (RATE, PCM), None, b"no sound", wav()]))
    assert [result.clip for result in results] == [str(path), *(f"recording {i}" for i in (1, 2, 3, 4))]
    assert [isinstance(result, Failure) for result in results] == [False, False, True, True, False]
    assert str(results[3].error).startswith("recording 3 cannot be read as audio")
    np.testing.assert_allclose([results[1].scores, results[4].scores], [expected.scores] * 2, atol=5e-6)
    (only,) = tagger.tag_all([PCM[None]], sample_rate=RATE)
    np.testing.assert_allclose(only.scores, expected.scores, atol=5e-6)


def test_a_rate_is_given_once(saved):
    tagger = psla_jax.load(saved("attention"))
    assert tagger.tag((RATE, PCM), RATE).duration == tagger.tag(PCM, RATE).duration
    with pytest.raises(
        TaggerError, match="sample_rate is 16000, and the array comes with 22050: leave sample_rate out"
    ):
        tagger.tag((RATE, PCM), 16_000)
    with pytest.raises(TaggerError, match=r"sample_rate is 16000 for the file in memory: .* numpy\.frombuffer"):
        tagger.tag(PCM.tobytes(), 16_000)
    with pytest.raises(AudioError, match="the array has the sample rate 0"):
        tagger.tag((0, PCM))


def streamed(tagger, blocks) -> list[tuple]:
    with Stream(tagger, RATE) as stream:
        updates = [update for block in blocks for update in stream.push(block)] + stream.close()
    return [(u.kind, u.event.onset, u.event.offset, u.event.mid) for u in updates]


def test_streams_take_the_same_blocks_and_bytes(saved):
    tagger = psla_jax.load(saved("attention"))
    pieces = [*np.split(PCM[:11_999], [5_000, 9_000, 9_300, 11_900, 11_950]), PCM[11_999:]]
    expected = streamed(tagger, pieces)
    assert len(expected) > 2
    for convert in (
        lambda piece: piece.astype("<i2").tobytes(),
        lambda piece: piece[None],
        lambda piece: piece[:, None],
        lambda piece: torch.tensor(piece / 32_768, requires_grad=True)[None],
        lambda piece: np.stack([piece, piece]),
        lambda piece: (RATE, piece),
        lambda piece: (piece / 32_768).tolist(),
    ):
        assert streamed(tagger, map(convert, pieces)) == expected


def test_samples_are_never_taken_for_channels():
    block = read_block(np.zeros((1, 32)))
    with pytest.raises(AudioError, match=r"has the shape \(1, 32\), in which either axis may be time: transpose it"):
        block.channels_last()
    assert block.channels_last(0)[0].shape == (32, 1)
    assert replace(block, axis=1).channels_last()[0].shape == (1, 32)
    assert read_block(np.zeros((1, 65))).channels_last(1)[0].shape == (65, 1)
    assert read_block(np.zeros((1, 2))).channels_last()[0].shape == (1, 2), "one sample of two channels"
    assert read_block(np.zeros((65, 64))).channels_last()[0].shape == (65, 64)
    with pytest.raises(AudioError, match=r"has the shape \(65, 65\), but no sound has more than 64 channels"):
        read_block(np.zeros((65, 65))).channels_last()
