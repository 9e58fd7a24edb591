"""Segments of recordings against the whole recording, decoded and cut."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from psla_jax.audio import decode, segments, sources
from psla_jax.audio.decode import AudioError
from psla_jax.audio.segments import Segment

TIMES = [(0.0, 1.0), (0.0, 0.25), (1.2345678, 3.3), (2.5, 4.0), (3.9, 4.9), (3.77, 3.7712), (4.0, math.inf)]


def store(path: Path, rate: int, channels: int = 1, subtype: str = "PCM_16", seconds: float = 5.0, **options) -> str:
    """Writes noise whose loudness changes, which an encoder with a variable bit rate cannot seek in exactly."""
    rng, size = np.random.default_rng(rate), round(rate * seconds)
    loudness = np.repeat(rng.random(round(seconds * 10) + 1) ** 6, rate // 10 + 1)[:size, None]
    samples = np.clip(rng.normal(0, 0.2, (size, channels)) * loudness, -1, 1)
    with soundfile.SoundFile(path, "w", rate, channels, subtype=subtype, **options) as file:
        for start in range(0, size, 4096):  # libsndfile crashes when it encodes long blocks
            file.write(samples[start : start + 4096])
    return str(path)


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (12.5, 15.0, "#t=12.5,15"),
        (0.0, 10.0, "#t=0,10"),
        (0.1, 0.30000000000000004, "#t=0.1,0.30000000000000004"),
        (1e-7, 123456789.0, "#t=0.0000001,123456789"),
        (3.0, math.inf, "#t=3"),
        (0.0, math.inf, ""),
    ],
)
def test_the_name_of_a_segment_has_its_times_in_one_format(start, end, expected):
    name = os.fspath(segments.cut("/a #t=1 b/c,1.wav", start, end))
    assert name == f"{segments.cut('/a #t=1 b/c,1.wav', start, end)}" == f"/a #t=1 b/c,1.wav{expected}"
    assert segments.split_fragment(name) == ("/a #t=1 b/c,1.wav", expected)


@pytest.mark.parametrize(
    ("name", "rate", "options"),
    [
        ("a.wav", 16_000, {}),
        ("a.wav", 44_100, {"channels": 2}),
        ("a.flac", 48_000, {"subtype": "PCM_24"}),
        ("a.wav", 8_000, {"subtype": "FLOAT"}),
        ("a.wav", 44_101, {}),  # has whole samples in common with 16 kHz only every second
        ("a.ogg", 22_050, {"subtype": "VORBIS"}),
        ("a.ogg", 48_000, {"subtype": "OPUS"}),
        ("a.mp3", 44_100, {"subtype": "MPEG_LAYER_III", "bitrate_mode": "VARIABLE", "compression_level": 0.9}),
    ],
)
@pytest.mark.parametrize("channel", ["mean", "first"])
def test_a_segment_has_the_samples_of_the_whole_recording(tmp_path, name, rate, options, channel):
    path = store(tmp_path / name, rate, **options)
    for sample_rate in (16_000, 32_000):
        assert_cut_from_the_whole(path, rate, channel, sample_rate)


def assert_cut_from_the_whole(path, rate: int, channel, sample_rate: int) -> None:
    settings = {"channel": channel, "sample_rate": sample_rate}
    whole = decode.read(path, **settings)
    for start, end in TIMES:
        cut = whole[round(start * sample_rate) : None if math.isinf(end) else round(end * sample_rate)]
        waveform = segments.read(Segment(path, start, end), **settings)
        assert (waveform.dtype, waveform.shape) == (np.float32, cut.shape)
        np.testing.assert_allclose(waveform, cut, atol=0 if rate == sample_rate else 5e-6)
        blocks = np.concatenate(list(segments.blocks(Segment(path, start, end), **settings)))
        np.testing.assert_array_equal(blocks, waveform)
        limited = segments.read(Segment(path, start, end), seconds=0.2, **settings)
        np.testing.assert_array_equal(limited, waveform[: sample_rate // 5])


def test_whole_files_are_read_as_before(tmp_path):
    path = store(tmp_path / "a.wav", 22_050)
    np.testing.assert_array_equal(segments.read(path), decode.read(path))
    np.testing.assert_array_equal(np.concatenate(list(segments.blocks(path))), decode.read(path))
    assert segments.duration(path) == decode.duration(path)


def test_the_rest_of_a_recording_is_not_decoded(tmp_path, monkeypatch):
    decoded, read_blocks = [], decode.read_blocks

    def counted(file, samples):
        for block in read_blocks(file, samples):
            decoded.append(len(block[0]))
            yield block

    monkeypatch.setattr(decode, "read_blocks", counted)
    for name, rate in (("a.wav", 16_000), ("a.flac", 44_100)):
        path = store(tmp_path / name, rate, seconds=60.0)
        decoded.clear()
        segments.read(Segment(path, 55.0, 56.0))
        assert rate <= sum(decoded) < 2 * rate + 2**15


def test_the_end_of_a_recording(tmp_path):
    path = store(tmp_path / "a.wav", 16_000, seconds=2.0)
    whole = decode.read(path)
    rounded = Segment(path, 1.5, 2.4)
    np.testing.assert_array_equal(segments.read(rounded), whole[24_000:])
    assert segments.duration(rounded) == pytest.approx(0.5)
    assert segments.duration(Segment(path, 0.5, 1.75)) == 1.25
    assert segments.duration(Segment(path, 0.5, math.inf)) == 1.5
    for start, end in ((1.5, 3.0), (2.0, 2.2), (5.0, 6.0), (2.0, math.inf)):
        for function in (segments.read, segments.duration):
            with pytest.raises(AudioError) as caught:
                function(Segment(path, start, end))
            assert caught.value.path == os.fspath(Segment(path, start, end))
            assert "is not within the recording, which lasts 2 s: correct the times" in caught.value.reason


def test_unreadable_segments_are_errors_with_their_times(tmp_path):
    path = store(tmp_path / "a.wav", 16_000, seconds=2.0)
    (tmp_path / "text.wav").write_text("hello")
    reasons = {
        Segment(str(tmp_path / "gone.wav"), 0, 1): "is missing: correct the path",
        Segment(str(tmp_path / "text.wav"), 0, 1): "cannot be read as audio",
        Segment(path, 1.0, 1.00001): "is too short",
        Segment(path, 1.99999, math.inf): "is too short",
    }
    for segment, reason in reasons.items():
        with pytest.raises(AudioError, match=reason) as caught:
            segments.read(segment)
        assert str(caught.value).startswith(os.fspath(segment))


def test_samples_that_are_not_finite_matter_only_nearby(tmp_path):
    samples = np.zeros(32_000, np.float32)
    samples[1000] = np.nan
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    with pytest.raises(AudioError, match="not finite"):
        segments.read(Segment(str(tmp_path / "a.wav"), 0.0, 1.0))
    assert not segments.read(Segment(str(tmp_path / "a.wav"), 1.0, 1.5)).any()


def test_frames_at_the_rate_of_the_file(tmp_path):
    path = store(tmp_path / "a.flac", 44_100, channels=2)
    expected = soundfile.read(path, dtype="float32")[0]
    for clip, frames in ((path, expected), (Segment(path, 2.5, 4.0), expected[110_250:176_400])):
        with segments.open_audio(clip) as audio:
            blocks = [block for block, rate in segments.native_blocks(audio, clip, 10_000) if rate == 44_100]
            np.testing.assert_array_equal(np.concatenate(blocks), frames)


def test_the_whole_file_is_searched_for_joined_parts_only_once(tmp_path, monkeypatch):
    searched, find_layout = [], sources.find_layout
    monkeypatch.setattr(sources, "find_layout", lambda file: searched.append(file.name) or find_layout(file))
    path = store(tmp_path / "a.flac", 16_000)
    first = segments.read(Segment(path, 1.0, 2.0))
    np.testing.assert_array_equal(segments.read(Segment(path, 1.0, 2.0)), first)
    assert len(searched) == 1
    store(tmp_path / "a.flac", 8_000)  # another file under the same name
    segments.read(Segment(path, 1.0, 2.0))
    assert len(searched) == 2


def test_times_count_through_joined_files_of_other_rates(tmp_path):
    parts = [store(tmp_path / f"{rate}.flac", rate, seconds=2.0) for rate in (22_050, 44_100)]
    path = tmp_path / "joined.flac"
    path.write_bytes(b"".join(Path(part).read_bytes() for part in parts))
    whole = decode.read(path)
    assert len(whole) == 64_000
    for start, end in ((0.0, 1.0), (0.5, 2.5), (2.25, 3.0), (3.0, math.inf)):
        segment = Segment(str(path), start, end)
        cut = whole[round(start * 16_000) : None if math.isinf(end) else round(end * 16_000)]
        np.testing.assert_array_equal(segments.read(segment), cut)
        with segments.open_audio(segment) as audio:
            seconds = sum(len(block) / rate for block, rate in segments.native_blocks(audio, segment, 10_000))
        assert seconds == pytest.approx(len(cut) / 16_000, abs=1e-4)
    with pytest.raises(AudioError, match="lasts 4 s"):
        segments.read(Segment(str(path), 3.0, 5.0))
