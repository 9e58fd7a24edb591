"""Decoded waveforms against soundfile, SciPy and the written samples."""

from __future__ import annotations

import io
import os
import pickle
import time

import numpy as np
import pytest
import scipy.io.wavfile
import scipy.signal
import soundfile
import soxr

from psla_jax.audio import decode, resampling, shards


def tone(rate: int, seconds: float = 0.5, hertz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


def test_16_khz_pcm_is_read_as_it_is(tmp_path):
    pcm = np.random.default_rng(0).integers(-32768, 32768, 1000).astype(np.int16)
    scipy.io.wavfile.write(tmp_path / "a.wav", 16000, pcm)
    waveform = decode.read(tmp_path / "a.wav")
    assert waveform.dtype == np.float32
    assert waveform.flags.c_contiguous
    np.testing.assert_array_equal(waveform, pcm / 32768)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 32000, 44100, 48000, 96000])
def test_any_rate_becomes_16_khz(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", tone(rate), rate, subtype="FLOAT")
    waveform = decode.read(tmp_path / "a.wav")
    assert abs(len(waveform) - 8000) <= 1
    # The filter rings at the ends; between them, the tone is unchanged.
    np.testing.assert_allclose(waveform[500:7500], tone(16000)[500:7500], atol=1e-3)


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg"])
def test_the_length_of_a_file_is_read_from_its_header(tmp_path, ending):
    soundfile.write(tmp_path / f"a.{ending}", tone(22050, 0.7), 22050)
    assert decode.duration(tmp_path / f"a.{ending}") == pytest.approx(0.7)


def test_a_file_without_duration_is_an_error(tmp_path):
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16000)
    (tmp_path / "text.wav").write_text("hello")
    (tmp_path / "empty.wav").touch()
    reasons = {"none": "holds no samples", "text": "cannot be read", "empty": "is an empty file", "gone": "is missing"}
    for name, reason in reasons.items():
        with pytest.raises(decode.AudioError, match=rf"{name}\.wav {reason}"):
            decode.duration(tmp_path / f"{name}.wav")


def test_resampling_agrees_with_scipy_below_the_cut(tmp_path):
    noise = scipy.signal.sosfiltfilt(
        scipy.signal.butter(8, 3000, fs=48000, output="sos"), np.random.default_rng(1).normal(0, 0.1, 48000)
    )
    soundfile.write(tmp_path / "a.wav", noise, 48000, subtype="FLOAT")
    expected = scipy.signal.resample_poly(noise, 1, 3, window=("kaiser", 12.0))
    np.testing.assert_allclose(decode.read(tmp_path / "a.wav")[500:-500], expected[500:-500], atol=2e-3)


@pytest.mark.parametrize("rate", [8_000, 44_100, 16_000])
def test_resampling_does_not_depend_on_the_blocks(rate):
    noise = np.random.default_rng(0).normal(0, 0.1, 20_000).astype(np.float32)
    resampler = resampling.Resampler(rate)
    pieces = [resampler.push(noise[i : i + 77]) for i in range(0, len(noise), 77)]
    expected = noise if rate == 16_000 else soxr.resample(noise, rate, 16_000)
    np.testing.assert_array_equal(np.concatenate([*pieces, resampler.finish()]), expected)


def test_frequencies_above_8_khz_do_not_alias(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(48000, hertz=11000), 48000, subtype="FLOAT")
    assert np.abs(decode.read(tmp_path / "a.wav")[500:-500]).max() < 1e-3


@pytest.mark.parametrize("channels", [2, 3])
def test_channels_become_their_mean_or_the_first(tmp_path, channels):
    samples = np.random.default_rng(2).uniform(-1, 1, (800, channels)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    np.testing.assert_allclose(decode.read(tmp_path / "a.wav"), samples.mean(axis=1), atol=1e-6)
    np.testing.assert_array_equal(decode.read(tmp_path / "a.wav", channel="first"), samples[:, 0])


@pytest.mark.parametrize(
    ("name", "subtype", "tolerance"),
    [
        ("a.flac", "PCM_24", 2**-23),
        ("a.flac", "PCM_16", 2**-15),
        ("a.wav", "PCM_24", 2**-23),
        ("a.wav", "PCM_U8", 2**-7),
        ("a.wav", "PCM_32", 1e-7),
        ("a.wav", "FLOAT", 1e-7),
        ("a.wav", "DOUBLE", 1e-7),
        ("a.ogg", "VORBIS", 0.05),
        ("a.mp3", "MPEG_LAYER_III", 0.05),
    ],
)
def test_formats(tmp_path, name, subtype, tolerance):
    soundfile.write(tmp_path / name, tone(16000), 16000, subtype=subtype)
    waveform = decode.read(tmp_path / name)
    assert len(waveform) == 8000
    np.testing.assert_allclose(waveform[500:-500], tone(16000)[500:-500], atol=tolerance)


def test_a_file_longer_than_a_block_is_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "_BLOCK", 1000)
    for length in (999, 1000, 1001, 3000):
        samples = np.random.default_rng(3).uniform(-1, 1, (length, 2)).astype(np.float32)
        soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
        np.testing.assert_array_equal(decode.read(tmp_path / "a.wav", channel="first"), samples[:, 0])


def test_a_name_in_any_script(tmp_path):
    path = os.path.join(tmp_path, "Grüße 雨, 1.wav")
    soundfile.write(path, tone(16000), 16000)
    assert len(decode.read(path)) == 8000


def broken_files(folder):
    (folder / "folder.wav").mkdir()
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("<html>404 Not Found</html>")
    (folder / "headless.raw").write_bytes(b"\0" * 64)
    soundfile.write(folder / "none.wav", np.zeros(0), 16000)
    soundfile.write(folder / "short.wav", np.zeros(1), 48000)
    for name, value in (("nan.wav", np.nan), ("inf.wav", np.inf)):
        soundfile.write(folder / name, np.array([0.0, value, 0.0]), 16000, subtype="FLOAT")
    soundfile.write(folder / "huge.wav", np.r_[np.zeros(2000), 1e30, 0.0], 16000, subtype="FLOAT")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere.wav", "is missing"),
        ("nul\0.wav", "is missing"),
        ("folder.wav", "is a folder"),
        ("empty.wav", "is an empty file"),
        ("text.wav", "cannot be read as audio"),
        ("headless.raw", "cannot be read as audio"),
        ("none.wav", "holds no samples"),
        ("short.wav", "too short"),
        ("nan.wav", "not finite"),
        ("inf.wav", "not finite"),
        ("huge.wav", "1e+30 at 0.125 s"),
    ],
)
def test_files_without_waveform_are_errors(tmp_path, name, reason):
    broken_files(tmp_path)
    path = os.path.join(tmp_path, name)
    with pytest.raises(decode.AudioError) as caught:
        decode.read(path)
    assert reason in caught.value.reason
    assert str(caught.value) == f"{path} {caught.value.reason}"
    assert str(caught.value).endswith(".")
    assert ": " in caught.value.reason, "the remedy is missing"


def test_the_error_survives_a_process_boundary():
    error = pickle.loads(pickle.dumps(decode.AudioError("a.wav", "is missing.")))
    assert str(error) == "a.wav is missing."
    assert error.path == "a.wav"
    assert isinstance(error, ValueError)


def test_written_pcm_is_read_by_scipy(tmp_path):
    decode.write_pcm16(tmp_path / "a.wav", np.array([0.0, 0.5, -0.5, 1.0, 1.7, -1.0, -1.7, 2e-5, -2e-5], np.float32))
    rate, pcm = scipy.io.wavfile.read(tmp_path / "a.wav")
    assert rate == 16000
    assert pcm.dtype == np.int16
    np.testing.assert_array_equal(pcm, [0, 16384, -16384, 32767, 32767, -32768, -32768, 1, -1])


def test_reading_and_writing_changes_nothing(tmp_path):
    all_values = np.arange(-32768, 32768).astype(np.int16)
    scipy.io.wavfile.write(tmp_path / "a.wav", 16000, all_values)
    decode.write_pcm16(tmp_path / "b.wav", decode.read(tmp_path / "a.wav"))
    np.testing.assert_array_equal(scipy.io.wavfile.read(tmp_path / "b.wav")[1], all_values)


@pytest.mark.parametrize("bad", [np.zeros((2, 2)), np.zeros(0), np.array([0.0, np.nan])])
def test_a_refused_write_preserves_the_existing_file(tmp_path, bad):
    decode.write_pcm16(tmp_path / "a.wav", np.ones(10))
    before = (tmp_path / "a.wav").read_bytes()
    with pytest.raises(decode.AudioError, match=r"a.wav"):
        decode.write_pcm16(tmp_path / "a.wav", bad)
    assert (tmp_path / "a.wav").read_bytes() == before


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        decode.write_pcm16(tmp_path / "a.wav", np.ones(10))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("workers", [None, 0, 1, 3])
def test_threads_return_in_order(workers):
    assert decode.in_threads(lambda i: i * i, range(20), "Squaring", workers=workers, progress=False) == [
        i * i for i in range(20)
    ]


@pytest.mark.parametrize("in_worker", [True, False], ids=["in the work", "in the progress bar"])
def test_an_interrupt_cancels_calls_that_have_not_started(in_worker, monkeypatch, capfd):
    started = []

    def work(i):
        started.append(i)
        if i == 0 and in_worker:
            raise KeyboardInterrupt
        time.sleep(0.005)

    def interrupted(done, *_, **__):
        yield next(done)
        raise KeyboardInterrupt

    if not in_worker:
        monkeypatch.setattr(decode, "track", interrupted)
    with pytest.raises(KeyboardInterrupt):
        decode.in_threads(work, range(500), "Working", workers=2)
    assert len(started) < 500
    assert capfd.readouterr().out == ""


def test_16_bit_samples_equal_the_floats_of_libsndfile(tmp_path):
    all_values = np.arange(-32768, 32768, dtype=np.int16)
    for name in ("a.wav", "a.flac"):
        soundfile.write(tmp_path / name, all_values, 16_000)
        expected = soundfile.read(tmp_path / name, dtype="float32")[0]
        np.testing.assert_array_equal(decode.read(tmp_path / name), expected)


# ---- clips in a shard


def packed(tmp_path, content: bytes) -> str:
    """Packs a file with this content into a shard and returns the address of the clip."""
    shards.write(str(tmp_path / "a.arrayrecord"), [("clip.wav", content)])
    return str(shards.Address(str(tmp_path / "a.arrayrecord"), 0, "clip.wav"))


def wav(samples: np.ndarray, rate: int = 16_000, **options) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", **options)
    return file.getvalue()


SIXTEEN_BITS = np.random.default_rng(5).integers(-32768, 32768, 40_000, dtype=np.int16)


def tagged(content: bytes) -> bytes:
    """Inserts a chunk with the encoder's name, of odd length, before the samples, as ffmpeg does."""
    head, samples = content[:36], content[36:]
    chunk = b"LIST" + (13).to_bytes(4, "little") + b"INFOISFT\x01\0\0\0x\0"
    return b"RIFF" + (len(content) - 8 + len(chunk)).to_bytes(4, "little") + head[8:] + chunk + samples


@pytest.mark.parametrize("in_shard", [True, False])
@pytest.mark.parametrize("kind", ["plain", "tagged"])
def test_16_bit_wav_at_16_khz_is_read_without_a_decoder(tmp_path, monkeypatch, kind, in_shard):
    content = tagged(wav(SIXTEEN_BITS)) if kind == "tagged" else wav(SIXTEEN_BITS)
    (tmp_path / "clip.wav").write_bytes(content)
    expected = soundfile.read(tmp_path / "clip.wav", dtype="float32")[0]
    path = packed(tmp_path, content) if in_shard else tmp_path / "clip.wav"
    monkeypatch.setattr(decode, "_BLOCK", 16_384)
    monkeypatch.delattr(soundfile, "SoundFile")
    assert [len(block) for block in decode.blocks(path)] == [16_384, 16_384, 7232]
    np.testing.assert_array_equal(decode.read(path), expected)
    np.testing.assert_array_equal(expected, SIXTEEN_BITS / np.float32(32768))


@pytest.mark.parametrize("reads", [3, 4, 5])
def test_a_disk_failure_while_reading_is_an_audio_error(tmp_path, monkeypatch, reads):
    """The disk fails in the header, before the samples, or within them."""

    class Failing(io.BytesIO):
        left = reads

        def read(self, size=-1):
            self.left -= 1
            if not self.left:
                raise OSError(5, "Input/output error")
            return super().read(size)

    (tmp_path / "clip.wav").write_bytes(wav(SIXTEEN_BITS))
    monkeypatch.setattr(decode, "_open_binary", lambda *_: Failing(wav(SIXTEEN_BITS)))
    monkeypatch.setattr(decode, "_BLOCK", 16_384)
    with pytest.raises(decode.AudioError, match=r"clip.wav .*Input/output error"):
        decode.read(tmp_path / "clip.wav")


def replaced(content: bytes, position: int, byte: int) -> bytes:
    return content[:position] + bytes([byte]) + content[position + 1 :]


@pytest.mark.parametrize(
    "content",
    [
        wav(SIXTEEN_BITS, 8000),
        wav(SIXTEEN_BITS.reshape(-1, 2)),
        wav(SIXTEEN_BITS / 40_000, subtype="FLOAT"),
        wav(SIXTEEN_BITS / 40_000, subtype="PCM_24"),
        wav(SIXTEEN_BITS)[:-3000],
        wav(SIXTEEN_BITS) + b"LIST\x04\x00\x00\x00INFO",
        replaced(wav(SIXTEEN_BITS), 32, 4),
    ],
    ids=["8 kHz", "stereo", "floats", "24 bits", "cut short", "more chunks", "odd header"],
)
@pytest.mark.parametrize("in_shard", [True, False])
def test_any_other_file_is_decoded(tmp_path, monkeypatch, content, in_shard):
    (tmp_path / "clip.wav").write_bytes(content)
    samples, rate = soundfile.read(tmp_path / "clip.wav", dtype="float32", always_2d=True)
    expected = decode.from_samples(samples, rate)
    path, opened = packed(tmp_path, content) if in_shard else tmp_path / "clip.wav", []
    decoder = soundfile.SoundFile
    monkeypatch.setattr(soundfile, "SoundFile", lambda *arguments: opened.append(arguments) or decoder(*arguments))
    np.testing.assert_allclose(decode.read(path), expected, atol=1e-6)
    assert opened


@pytest.mark.parametrize("content", [b"", b"RIFF", wav(SIXTEEN_BITS)[:43], wav(SIXTEEN_BITS[:0])])
def test_a_record_without_audio_is_refused(tmp_path, content):
    with pytest.raises(decode.AudioError, match=r"cannot be read as audio|holds no samples"):
        decode.read(packed(tmp_path, content))


@pytest.mark.parametrize("function", [decode.read, decode.duration, decode.header])
def test_a_pipe_without_a_writer_is_not_waited_for(tmp_path, function):
    os.mkfifo(tmp_path / "pipe.wav")
    if function is decode.header:
        assert function(tmp_path / "pipe.wav") == (0.0, 0)
    else:
        with pytest.raises(decode.AudioError, match=r"pipe\.wav is a pipe or a device: save the sound to a file"):
            function(tmp_path / "pipe.wav")
