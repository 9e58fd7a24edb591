"""Measurements of single files, compared with the signals written to them, and of whole data sets."""

from __future__ import annotations

import os
import re
import resource
import struct
import threading

import numpy as np
import pytest
import soundfile
import soxr
from recordings import noise, write

from psla_jax.audio import decode, shards
from psla_jax.audio.decode import AudioError
from psla_jax.data import datafile
from psla_jax.data.validate import measure
from psla_jax.data.validate.measure import ClipMeasurement, evenly_spaced, measure_clips
from psla_jax.runtime import threads


def measured(path, channel="mean") -> ClipMeasurement:
    return measure.measure_file(path, channel)


def test_a_stereo_file(tmp_path):
    left, right = noise(0, 1.0, 22_050, 0.5), noise(1, 1.0, 22_050, 0.25)
    result = measured(write(tmp_path / "a.wav", np.stack([left, right], axis=1), 22_050))
    assert (result.rate, result.channels, result.samples) == (22_050, 2, 22_050)
    assert (result.is_float, result.clipped) == (False, 0.0)
    assert result.peak == pytest.approx(max(abs(left).max(), abs(right).max()), abs=1e-9)
    assert result.mono_peak == pytest.approx(abs(left + right).max() / 2, abs=1e-6)
    assert measured(tmp_path / "a.wav", "first").mono_peak == pytest.approx(abs(left).max(), abs=1e-9)


def test_a_file_is_measured_the_same_in_blocks(tmp_path, monkeypatch):
    path = write(tmp_path / "a.wav", np.stack([noise(0, 3.0), noise(1, 3.0)], axis=1))
    whole = measured(path)
    monkeypatch.setattr(measure, "_BLOCK", 2 * 8192)
    assert measured(path) == whole


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE", "PCM_24", "PCM_16"])
def test_samples_at_full_scale_are_counted(tmp_path, subtype):
    samples = noise(0, 1.0)
    samples[:800], samples[800:1600] = 1.0, -1.0
    result = measured(write(tmp_path / "a.wav", samples, subtype=subtype))
    assert result.clipped == pytest.approx(0.1)
    assert result.is_float == (subtype in ("FLOAT", "DOUBLE"))


@pytest.mark.parametrize(
    ("value", "shown"), [(np.nan, "nan"), (np.inf, "infinite or beyond 3.4e+38"), (-1e30, "-1e+30")]
)
def test_samples_that_no_recording_can_have(tmp_path, value, shown):
    samples = noise(0)
    samples[4000] = value
    what = f"not finite or too large for a recording, the first {shown} at 0.250 s"
    with pytest.raises(AudioError, match=re.escape(what)):
        measured(write(tmp_path / "a.wav", samples, subtype="FLOAT"))


# ---- Content ---------------------------------------------------------------------------------------------------------


def test_the_digest_does_not_depend_on_the_file_format(tmp_path):
    samples = noise(0)
    paths = [write(tmp_path / name, samples) for name in ("a.wav", "b.flac")]
    paths.append(write(tmp_path / "c.wav", samples, subtype="FLOAT"))
    paths.append(write(tmp_path / "d.wav", np.stack([samples, samples], axis=1)))
    shard = str(tmp_path / "a.arrayrecord")
    shards.write(shard, [("a.wav", (tmp_path / "b.flac").read_bytes())])
    digests = {measured(path).digest for path in [*paths, str(shards.Address(shard, 0, "a.wav"))]}
    assert len(digests) == 1
    changed = samples.copy()
    changed[-1] += 1 / 32768
    others = [write(tmp_path / "e.wav", changed), write(tmp_path / "f.wav", samples[:-1])]
    others.append(write(tmp_path / "g.wav", samples, 22_050))
    assert len(digests | {measured(path).digest for path in others}) == 4


# ---- Bandwidth -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("low", [8_000, 11_025])
@pytest.mark.parametrize("level", [0.5, 0.02])
def test_a_file_made_from_a_lower_rate_ends_at_half_of_it(tmp_path, rate, low, level):
    up = soxr.resample(noise(0, 2.0, low, level), low, rate)
    assert measured(write(tmp_path / "a.wav", up, rate)).bandwidth == pytest.approx(low / 2, rel=0.1)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
@pytest.mark.parametrize("kind", ["white", "brown", "steep", "tone", "tone in noise", "silent", "short"])
def test_a_recording_has_no_end_below_half_its_rate(tmp_path, rate, kind):
    time = np.arange(2 * rate) / rate
    white = noise(0, 2.0, rate)
    spectrum, hertz = np.fft.rfft(white), np.maximum(np.fft.rfftfreq(len(white), 1 / rate), 50.0)
    samples = {
        "white": white,
        "brown": np.fft.irfft(spectrum * 500 / hertz),
        "steep": np.fft.irfft(spectrum * (500 / hertz) ** 3),
        "tone": 0.5 * np.sin(2 * np.pi * 2500 * time),
        "tone in noise": 0.5 * np.sin(2 * np.pi * 2500 * time) + 0.01 * white,
        "silent": 0 * white,
        "short": white[:100],
    }[kind]
    assert measured(write(tmp_path / "a.wav", samples, rate)).bandwidth == rate / 2


# ---- Wrong headers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["wav", "flac"])
def test_a_file_that_was_cut_short(tmp_path, ending):
    path, whole = write(tmp_path / f"a.{ending}", noise(0, 2.0)), noise(0, 2.0)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    reading = decode.Reading()
    result = measure.measure_file(path, "mean", reading)
    assert 12_000 < result.samples <= 16_000
    assert result.digest == measured(write(tmp_path / "b.wav", whole[: result.samples])).digest
    (note,) = reading.notes
    assert note.startswith(f"holds {result.samples / 16_000:.2f} s of the 2.00 s that its header states")


@pytest.mark.parametrize("stated", [0, 1000, 0x7FFFFF00, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_wrong_length_of_a_wav_file_is_ignored(tmp_path, stated):
    path = write(tmp_path / "a.wav", noise(0))
    expected = measured(path)
    content = bytearray(path.read_bytes())
    content[40:44] = struct.pack("<I", stated)
    path.write_bytes(content)
    reading = decode.Reading()
    assert measure.measure_file(path, "mean", reading) == expected
    # A length of a thousand bytes may be right, and what follows no sound; the others are placeholders.
    assert [note[:18] for note in reading.notes] == (["has a wrong length"] if stated == 1000 else [])


def test_a_huge_length_in_the_header_takes_no_memory(tmp_path):
    path = write(tmp_path / "a.flac", noise(0))
    expected = measured(path)
    content = bytearray(path.read_bytes())
    offset = content.index(b"fLaC") + 21  # the 36 bits with the number of samples
    content[offset] |= 0x0F
    content[offset + 1 : offset + 5] = b"\xff" * 4
    path.write_bytes(content)
    assert soundfile.info(path).frames == (1 << 36) - 1
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert measured(path) == expected
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_of_a_very_long_file_the_beginning_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "MAX_SECONDS", 1)
    monkeypatch.setattr(measure, "_BLOCK", 4096)
    samples = np.concatenate([noise(0, 1.5), np.ones(50_000)])
    result = measured(write(tmp_path / "a.wav", samples))
    assert result.samples == len(samples)
    assert result.peak < 0.2


def test_many_channels_are_read_in_small_blocks(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", np.tile(noise(0, 0.2)[:, None], 300), 16_000)
    sizes = []
    to_mono = decode.to_mono
    monkeypatch.setattr(
        decode, "to_mono", lambda block, channel: (sizes.append(block.size), to_mono(block, channel))[1]
    )
    result = measured(tmp_path / "a.wav")
    assert result.channels == 300
    assert max(sizes) <= measure._BLOCK


@pytest.mark.parametrize("rate", [100, 2_000_000_000])
def test_extreme_sample_rates(tmp_path, rate):
    path = write(tmp_path / "a.wav", noise(0))
    content = bytearray(path.read_bytes())
    content[24:28] = struct.pack("<I", rate)
    path.write_bytes(content)
    assert measured(path).bandwidth == rate / 2
    content[24:28] = struct.pack("<I", 99)
    path.write_bytes(content)
    with pytest.raises(decode.AudioError, match="an invalid sample rate of 99 Hz: repair its header"):
        measured(path)


# ---- Data sets -------------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path):
    for i in range(6):
        write(tmp_path / f"{i}.wav", noise(i))
    (tmp_path / "1.wav").unlink()
    (tmp_path / "2.wav").write_text("not audio")
    os.unlink(tmp_path / "3.wav")
    os.mkfifo(tmp_path / "3.wav")
    soundfile.write(tmp_path / "5.wav", np.zeros(0), 16_000)
    datafile.write(tmp_path / "a.json", [(f"{i}.wav", ["a"]) for i in range(6)])
    return datafile.read_open_vocabulary(tmp_path / "a.json")[0]


def test_readable_clips_are_measured_and_the_others_reported(data):
    counted = []
    result = measure_clips(data, range(6), channel="mean", workers=3, advance=counted.append)
    assert result.clips.tolist() == [0, 4]
    assert [problem.index for problem in result.problems] == [1, 2, 3, 5]
    reasons = ["is missing", "cannot be read as audio", "is not a file", "contains no samples"]
    for problem, reason in zip(result.problems, reasons, strict=True):
        assert problem.reason.startswith(reason)
    assert sum(counted) == 12
    assert result.table["digest"].tolist() == [measured(data.wav(i)).digest.rstrip(b"\0") for i in (0, 4)]
    assert result.table["samples"].tolist() == [8000, 8000]


def test_all_paths_are_looked_up_when_some_clips_are_read(data):
    result = measure_clips(data, [4], channel="mean")
    assert result.clips.tolist() == [4]
    assert [problem.index for problem in result.problems] == [1, 3]
    assert result.num_requested == 1


def test_a_hanging_decoder_is_abandoned_and_reported(data, monkeypatch):
    release, open_file = threading.Event(), decode.open_audio
    monkeypatch.setattr(threads, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(measure, "READ_TIMEOUT", 0.2)

    def opened(path):
        if path == data.wav(0):
            release.wait(60)
        return open_file(path)

    monkeypatch.setattr(decode, "open_audio", opened)
    try:
        result = measure_clips(data, range(6), channel="mean", workers=1)
    finally:
        release.set()
    assert result.clips.tolist() == [4]
    assert [problem.index for problem in result.problems] == [0, 1, 2, 3, 5]
    assert "the decoder hangs" in result.problems[0].reason


@pytest.mark.parametrize(
    ("count", "limit", "expected"),
    [(10, 0, list(range(10))), (10, 20, list(range(10))), (10, 5, [0, 2, 4, 6, 8]), (10, 3, [0, 3, 6]), (0, 3, [])],
)
def test_a_limit_spreads_evenly(count, limit, expected):
    assert evenly_spaced(count, limit).tolist() == expected
