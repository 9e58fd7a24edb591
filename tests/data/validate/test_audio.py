"""Each defect of a recording is reported for that recording, and recordings without defects give no findings."""

from __future__ import annotations

import numpy as np
import pytest
import soxr
from recordings import MIDS, clean, measure, noise, only, write

from psla_jax.config import FrontendConfig
from psla_jax.data.validate import audio
from psla_jax.data.validate.audio import (
    check_bandwidth,
    check_clipping,
    check_completeness,
    check_lengths,
    check_log_mel,
    check_rates,
    check_readability,
    check_scale,
    check_silence,
)
from psla_jax.data.validate.findings import LogMelStatistics

CHECKS = (
    check_readability, check_scale, check_silence, check_bandwidth, check_log_mel, check_lengths, check_clipping,
    check_completeness, check_rates,
)  # fmt: skip


def quiet(level: float) -> np.ndarray:
    return noise(9) * level / np.abs(noise(9)).max()


def full(share: float) -> np.ndarray:
    samples = noise(9)
    samples[: int(share * len(samples))] = 1.0
    return samples


def antiphase() -> np.ndarray:
    return np.stack([noise(9), -noise(9)], axis=1)


def cut_short(path) -> None:
    write(path, noise(9, 2.0))
    path.write_bytes(path.read_bytes()[:20_000])


NOT_FINITE = "holds samples that are not finite or too large for a recording, the first "

# Function that writes the defective file; kind, severity and reported detail of the finding.
DEFECTS = {
    "missing": (lambda p: None, "unreadable", "error", "is missing: "),
    "empty": (lambda p: p.write_bytes(b""), "unreadable", "error", "is an empty file: "),
    "text": (lambda p: p.write_text("hello"), "unreadable", "error", "cannot be read as audio"),
    "a folder": (lambda p: p.mkdir(), "unreadable", "error", "is not a file: "),
    "no samples": (lambda p: write(p, noise(9)[:0]), "unreadable", "error", "contains no samples: "),
    "NaN": (lambda p: write(p, noise(9) * np.nan, subtype="FLOAT"), "unreadable", "error", NOT_FINITE),
    "one infinity": (lambda p: write(p, np.r_[noise(9), np.inf], subtype="DOUBLE"), "unreadable", "error", NOT_FINITE),
    "one huge value": (lambda p: write(p, np.r_[noise(9), 1e30], subtype="FLOAT"), "unreadable", "error", NOT_FINITE),
    "integers": (
        lambda p: write(p, noise(9) * 32768, subtype="FLOAT"), "scale-integers", "error", "  peak 3.28e+03"
    ),
    "scaled twice": (lambda p: write(p, noise(9) / 32768, subtype="FLOAT"), "scale-twice", "error", "  peak 3.05e-06"),
    "loud floats": (lambda p: write(p, noise(9) * 30, subtype="FLOAT"), "loud", "warning", "  peak 3"),
    "zeros": (lambda p: write(p, noise(9) * 0), "silent", "warning", "  all samples are 0"),
    "zero floats": (lambda p: write(p, noise(9) * 0, subtype="FLOAT"), "silent", "warning", "  all samples are 0"),
    "floats as integers": (lambda p: write(p, quiet(1 / 32768)), "silent", "warning", "  peak -90 dB"),
    "faint": (lambda p: write(p, quiet(0.0009)), "silent", "warning", "  peak -61 dB"),
    "antiphase": (lambda p: write(p, antiphase()), "silent", "warning", "  its channels cancel each other"),
    "8 kHz": (lambda p: write(p, noise(9, 1.0, 8000), 8000), "band", "warning", "  8,000 Hz, ends at 4.0 kHz"),
    "from 8 kHz": (
        lambda p: write(p, soxr.resample(noise(9, 1.0, 8000), 8000, 16_000)),
        "band", "warning", "  16,000 Hz, ends at 3.8 kHz",
    ),
    "cut short": (cut_short, "truncated", "warning", "  holds 0.62 s of the 2.00 s that its header states"),
    "long": (lambda p: write(p, noise(9, 45.0)), "very-long", "warning", "  1 min"),
    "10 ms": (lambda p: write(p, noise(9, 0.010)), "too-short", "warning", "  10.0 ms"),
    "longer than the input": (lambda p: write(p, noise(9, 3.0)), "cut", "note", "  3.0 s"),
    "clipped": (lambda p: write(p, full(0.01)), "clipped", "warning", "  1.0% of its samples"),
    "44.1 kHz": (lambda p: write(p, noise(9, 1.0, 44_100), 44_100), "rates", "note", "  44,100 Hz"),
}  # fmt: skip


def findings(folder, records):
    dataset = measure(folder, records, frontend=FrontendConfig(target_length=200))
    return [finding for check in CHECKS for finding in check(dataset)]


def test_recordings_without_defects_have_no_findings(tmp_path):
    assert findings(tmp_path, clean(tmp_path)) == []


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_reported_for_its_clip(tmp_path, monkeypatch, defect):
    if defect == "long":
        monkeypatch.setattr(audio, "LONG_SECONDS", 40.0)
    make, kind, severity, detail = DEFECTS[defect]
    records = clean(tmp_path)
    make(tmp_path / "bad.wav")
    found = {
        finding.kind: finding for finding in findings(tmp_path, [*records[:2], ("bad.wav", MIDS[:1]), *records[2:]])
    }
    assert kind in found
    finding = found.pop(kind)
    assert finding.severity == severity
    assert finding.count == 1
    assert "1 of 5 clips" in finding.title
    (item,) = finding.items
    assert item.startswith(str(tmp_path / "bad.wav") + (" " if kind == "unreadable" else "") + detail)
    assert finding.meaning.endswith(".")
    assert finding.remedy.endswith(".")
    # A file at 8 kHz also has another rate, and a long file is also cut.
    assert set(found) <= {"8 kHz": {"rates"}, "44.1 kHz": set(), "long": {"cut"}}.get(defect, set())


@pytest.mark.parametrize(
    "samples",
    [full(0.0005), quiet(0.002), np.stack([noise(9), noise(8)], axis=1), quiet(0.999), noise(9, 2.0)],
    ids=["a few peaks", "soft", "stereo", "loud", "long enough"],
)
def test_recordings_that_are_not_defective(tmp_path, samples):
    write(tmp_path / "good.wav", samples)
    assert findings(tmp_path, [("good.wav", MIDS[:1])]) == []


def test_floats_within_full_scale_are_no_defect(tmp_path):
    write(tmp_path / "a.wav", 1.2 * noise(1, level=1.0), subtype="FLOAT")
    assert [f.kind for f in findings(tmp_path, [("a.wav", MIDS[:1])])] == ["clipped"]


def test_the_worst_clipped_clips_come_first(tmp_path):
    for name, share in (("a", 0.002), ("b", 0.2), ("c", 0.02)):
        write(tmp_path / f"{name}.wav", full(share))
    finding = only(check_clipping, measure(tmp_path, [(f"{name}.wav", MIDS[:1]) for name in "abc"]))
    assert [item.split("  ")[1] for item in finding.items] == [f"{x} of its samples" for x in ("20.0%", "2.0%", "0.2%")]


def test_the_unused_share_of_long_clips(tmp_path):
    write(tmp_path / "a.wav", noise(0, 4.015))
    write(tmp_path / "b.wav", noise(1, 1.985))
    dataset = measure(tmp_path, [("a.wav", []), ("b.wav", [])], frontend=FrontendConfig(target_length=200))
    finding = only(check_lengths, dataset)
    assert "the 2.0 s input of the model" in finding.title
    assert "33.3% of all audio" in finding.meaning


def test_bands_and_rates_are_counted(tmp_path):
    for i, rate in enumerate((8000, 8000, 11_025)):
        write(tmp_path / f"{i}.wav", noise(i, 1.0, rate), rate)
    dataset = measure(tmp_path, [(f"{i}.wav", []) for i in range(3)])
    assert "The spectrum ends at 4 kHz (2), 5.5 kHz (1). Model" in only(check_bandwidth, dataset).meaning
    assert "8 kHz (2), 11.025 kHz (1)." in only(check_rates, dataset).meaning


def test_bands_rates_and_lengths_are_those_of_the_frontend(tmp_path):
    write(tmp_path / "16.wav", noise(0, 1.0))
    write(tmp_path / "32.wav", noise(1, 1.0, 32_000), 32_000)
    frontend = FrontendConfig(target_length=40, sample_rate=32_000, mean="auto", std="auto")
    dataset = measure(tmp_path, [("16.wav", []), ("32.wav", [])], frontend=frontend, log_mel=LogMelStatistics(-9, 2, 2))
    assert list(check_log_mel(dataset)) == []
    band, rates = only(check_bandwidth, dataset), only(check_rates, dataset)
    assert band.title.startswith("Nothing above 14 kHz")
    assert [item.partition("  ")[2] for item in band.items] == ["16,000 Hz, ends at 8.0 kHz"]
    assert (len(rates.items), rates.remedy) == (1, "Write a copy at 32 kHz with psla pack --sample-rate 32000.")
    assert "the 0.4 s input of the model" in only(check_lengths, dataset).title


@pytest.mark.parametrize(
    ("mean", "std", "fits"),
    [
        (-4.6, 4.5, True),
        (-6.8, 4.6, True),
        (-7.0, 4.6, False),
        (-2.3, 4.6, False),
        (-4.6, 5.8, False),
        (-4.6, 3.6, False),
    ],
)
def test_the_normalisation_fits_within_half_a_deviation(tmp_path, mean, std, fits):
    dataset = measure(tmp_path, clean(tmp_path), log_mel=LogMelStatistics(mean, std, 4))
    found = list(check_log_mel(dataset))
    assert [f.severity for f in found] == ([] if fits else ["warning"])
    if not fits:
        assert f"--frontend.mean {mean:.4f} --frontend.std {std:.4f}" in found[0].remedy


def test_a_data_set_without_readable_clips(tmp_path):
    (finding,) = findings(tmp_path, [("a.wav", []), ("b.wav", [])])
    assert finding.title.endswith("2 of 2 clips")
