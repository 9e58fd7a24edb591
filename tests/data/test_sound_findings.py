"""Each defect of a recording is made, and found where it is; without it there is nothing to find."""

from __future__ import annotations

import numpy as np
import pytest
import soxr
from recordings import MIDS, clean, examine, noise, only, write

from psla_jax.config import FrontendConfig
from psla_jax.data import sound_findings
from psla_jax.data.findings import LogMel
from psla_jax.data.sound_findings import band, clipping, lengths, log_mel, rates, scale, silence, unreadable

CHECKS = (unreadable, scale, silence, band, log_mel, lengths, clipping, rates)


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


# What makes the defect, then its kind, severity and what is said of the clip.
DEFECTS = {
    "missing": (lambda p: None, "unreadable", "error", "is missing: "),
    "empty": (lambda p: p.write_bytes(b""), "unreadable", "error", "is an empty file: "),
    "text": (lambda p: p.write_text("hello"), "unreadable", "error", "cannot be read as audio"),
    "a folder": (lambda p: p.mkdir(), "unreadable", "error", "is not a file: "),
    "no samples": (lambda p: write(p, noise(9)[:0]), "unreadable", "error", "holds no samples: "),
    "NaN": (lambda p: write(p, noise(9) * np.nan, subtype="FLOAT"), "not-finite", "error", ""),
    "one infinity": (
        lambda p: write(p, np.r_[noise(9), np.inf], subtype="DOUBLE"), "not-finite", "error", ""
    ),
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
    "cut short": (cut_short, "truncated", "warning", "  0.6 s"),
    "long": (lambda p: write(p, noise(9, 45.0)), "very-long", "warning", "  1 min"),
    "10 ms": (lambda p: write(p, noise(9, 0.010)), "too-short", "warning", "  10.0 ms"),
    "longer than heard": (lambda p: write(p, noise(9, 3.0)), "cut", "note", "  3.0 s"),
    "clipped": (lambda p: write(p, full(0.01)), "clipped", "warning", "  1.0% of its samples"),
    "44.1 kHz": (lambda p: write(p, noise(9, 1.0, 44_100), 44_100), "rates", "note", "  44,100 Hz"),
}  # fmt: skip


def findings(folder, records):
    examined = examine(folder, records, frontend=FrontendConfig(target_length=200))
    return [finding for check in CHECKS for finding in check(examined)]


def test_sound_recordings_give_no_finding(tmp_path):
    assert findings(tmp_path, clean(tmp_path)) == []


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_found_where_it_is(tmp_path, monkeypatch, defect):
    if defect == "long":
        monkeypatch.setattr(sound_findings, "LONG", 40.0)
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
    (place,) = finding.places
    assert place.startswith(str(tmp_path / "bad.wav") + (" " if kind == "unreadable" else "") + detail)
    assert finding.means.endswith(".")
    assert finding.remedy.endswith(".")
    # A file at 8 kHz has also another rate, a long one is not all heard, a folder is just that.
    assert set(found) <= {"8 kHz": {"rates"}, "44.1 kHz": set(), "long": {"cut"}}.get(defect, set())


@pytest.mark.parametrize(
    "samples",
    [full(0.0005), quiet(0.002), np.stack([noise(9), noise(8)], axis=1), quiet(0.999), noise(9, 2.0)],
    ids=["a few peaks", "soft", "stereo", "loud", "long enough"],
)
def test_what_is_no_defect(tmp_path, samples):
    write(tmp_path / "good.wav", samples)
    assert findings(tmp_path, [("good.wav", MIDS[:1])]) == []


def test_floats_within_full_scale_are_no_defect(tmp_path):
    write(tmp_path / "a.wav", 1.2 * noise(1, level=1.0), subtype="FLOAT")
    assert [f.kind for f in findings(tmp_path, [("a.wav", MIDS[:1])])] == ["clipped"]


def test_the_worst_clipped_clips_come_first(tmp_path):
    for name, share in (("a", 0.002), ("b", 0.2), ("c", 0.02)):
        write(tmp_path / f"{name}.wav", full(share))
    finding = only(clipping, examine(tmp_path, [(f"{name}.wav", MIDS[:1]) for name in "abc"]))
    assert [place.split("  ")[1] for place in finding.places] == [
        f"{x} of its samples" for x in ("20.0%", "2.0%", "0.2%")
    ]


def test_how_much_is_never_heard(tmp_path):
    write(tmp_path / "a.wav", noise(0, 4.015))
    write(tmp_path / "b.wav", noise(1, 1.985))
    examined = examine(tmp_path, [("a.wav", []), ("b.wav", [])], frontend=FrontendConfig(target_length=200))
    finding = only(lengths, examined)
    assert "the 2.0 s that the model hears" in finding.title
    assert "33.3% of all audio" in finding.means


def test_bands_and_rates_are_counted(tmp_path):
    for i, rate in enumerate((8000, 8000, 11_025)):
        write(tmp_path / f"{i}.wav", noise(i, 1.0, rate), rate)
    examined = examine(tmp_path, [(f"{i}.wav", []) for i in range(3)])
    assert "The band ends at 4 kHz (2), 5.5 kHz (1). The model" in only(band, examined).means
    assert "8 kHz (2), 11.025 kHz (1)." in only(rates, examined).means


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
    examined = examine(tmp_path, clean(tmp_path), log_mel=LogMel(mean, std, 4))
    found = list(log_mel(examined))
    assert [f.severity for f in found] == ([] if fits else ["warning"])
    if not fits:
        assert f"--frontend.mean {mean:.4f} --frontend.std {std:.4f}" in found[0].remedy


def test_a_set_of_which_nothing_can_be_read(tmp_path):
    (finding,) = findings(tmp_path, [("a.wav", []), ("b.wav", [])])
    assert finding.title.endswith("2 of 2 clips")
