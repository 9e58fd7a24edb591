"""Writes the fixture of ``tests/audio/test_frontend.py``, Kaldi features from torchaudio, and compares the frontend.

    pip download --no-deps torchaudio==2.9.1 && unzip torchaudio-*.whl
    python scripts/make_fbank_fixtures.py torchaudio/compliance/kaldi.py [RECORDING.wav ...]

Takes a minute on a CPU. Only that one file of torchaudio is loaded, so its binaries need not match the installed torch.
The table lists the maximum differences, in log-mel units, over all frames of every signal at every length: between the
frontend and torchaudio in float64, between the frontend and torchaudio in float32, and between torchaudio's two
precisions. The second column excludes values for which the latter differ by more than 5e-4; the last column is their
share.
Recordings are only compared, not written to the fixture.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch

from psla_jax.audio.decode import SAMPLE_RATE
from psla_jax.audio.frontend import Frontend

LENGTHS = (400, 401, 559, 560, 16_000, 160_000, 192_000)
STORED_FRAMES = 8
FIXTURE = Path(__file__).parents[1] / "tests" / "fixtures" / "fbank.npz"
Fbank = Callable[[np.ndarray, torch.dtype], np.ndarray]


def load_torchaudio(path: Path) -> tuple[Fbank, np.ndarray]:
    """Returns torchaudio's fbank as a function of waveform and precision, and its mel filters ``(128, 256)``."""
    sys.modules.setdefault("torchaudio", types.ModuleType("torchaudio"))
    spec = importlib.util.spec_from_file_location("kaldi", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is not a Python file.")
    kaldi = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kaldi)

    def fbank(waveform: np.ndarray, dtype: torch.dtype) -> np.ndarray:
        return kaldi.fbank(
            torch.from_numpy(waveform).to(dtype)[None],
            htk_compat=True,
            sample_frequency=SAMPLE_RATE,
            use_energy=False,
            window_type="hanning",
            num_mel_bins=128,
            dither=0.0,
            frame_shift=10,
        ).numpy()

    return fbank, kaldi.get_mel_banks(128, 512, SAMPLE_RATE, 20.0, 0.0, 100.0, -500.0, 1.0)[0].numpy()


def signals() -> dict[str, np.ndarray]:
    """Returns one period of each signal: int16, or float32 where quantisation would hide the leakage of the window."""
    rng = np.random.default_rng(0)
    t = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    tones = {f"tone {hz:g} Hz": np.sin(2 * np.pi * hz * t[:3200]) for hz in (31.25, 100, 440, 1000, 3005, 4000, 7990)}
    impulses = np.zeros(1777)
    impulses[[3, 700, 1300]] = 1, -0.5, 1e-3
    floats = {
        **tones,
        "quiet tone": 1e-4 * np.sin(2 * np.pi * 440 * t[:400]),
        "two tones, 100 dB apart": np.sin(2 * np.pi * 500 * t[:320]) + 1e-5 * np.sin(2 * np.pi * 5000 * t[:320]),
        "impulses": impulses,
        "silence": np.zeros(400),
        "constant": np.full(400, 0.7),
        "clipped square": np.clip(30 * np.sin(2 * np.pi * 440 * t[:400]), -1, 1),
    }
    shorts = {
        "white noise": 0.25 * rng.standard_normal(5003),
        "quiet noise": 5e-5 * rng.standard_normal(5003),
        "noise and offset": 0.5 + 0.01 * rng.standard_normal(5003),
        "chirp": 0.9 * np.sin(2 * np.pi * (20 * t + 3990 * t * t)),
        "speech-like": _speech_like(rng),
    }
    return {k: v.astype(np.float32) for k, v in floats.items()} | {
        k: np.int16(np.rint(32767 * v)) for k, v in shorts.items()
    }


def _speech_like(rng: np.random.Generator) -> np.ndarray:
    """Returns glottal pulses of falling pitch through three formants, with a breathy onset and a pause, float64."""
    n = SAMPLE_RATE // 2
    t = np.arange(n) / SAMPLE_RATE
    pulses = np.diff(np.floor(np.cumsum(140 - 60 * t) / SAMPLE_RATE), prepend=0.0) + 0.01 * rng.standard_normal(n)
    voice = np.zeros(n)
    for hz, width in ((700, 130), (1220, 70), (2600, 160)):
        k = np.arange(800) / SAMPLE_RATE
        voice += np.convolve(pulses, np.exp(-np.pi * width * k) * np.sin(2 * np.pi * hz * k))[:n]
    voice *= np.minimum(1, 20 * t) * (t < 0.4)
    return 0.6 * voice / np.abs(voice).max()


def waveform(period: np.ndarray, length: int) -> np.ndarray:
    """Returns ``length`` samples of a periodic signal, float32 in [-1, 1]."""
    scale = np.float32(32768 if period.dtype == np.int16 else 1)
    return np.resize(period, length).astype(np.float32) / scale


def recording(path: Path) -> np.ndarray:
    """Reads a file as a zero-mean mono waveform at 16 kHz."""
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    mono = soxr.resample(samples.mean(axis=1), rate, SAMPLE_RATE)
    return mono - mono.mean()


def compare(name: str, x: np.ndarray, fbank: Fbank, frontend: Frontend) -> tuple[np.ndarray, np.ndarray]:
    """Prints a row of the table; returns torchaudio's features of ``x`` in float32 and in float64."""
    single, double = fbank(x, torch.float32), fbank(x, torch.float64)
    padded = np.pad(x, (0, max(0, frontend.num_samples - len(x))))[None, : frontend.num_samples]
    ours = np.asarray(frontend.log_mel(padded, np.array([len(x)])))[0, : len(double)].astype(np.float64)
    rounding = np.abs(single - double)
    exact = rounding <= 5e-4
    columns = [np.abs(ours - double).max(), np.abs(ours - single)[exact].max(), rounding.max(), 100 * np.mean(~exact)]
    print(f"{name:28} {len(x):7} " + " ".join(f"{value:10.2e}" for value in columns[:3]) + f" {columns[3]:9.3f}%")
    return single, double


def stored_case(period: np.ndarray, length: int, single: np.ndarray, double: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the arrays for the tests: the signal, frames spread over the clip, and the worst frame in float32."""
    error = single - double
    frames = np.linspace(0, len(double) - 1, min(STORED_FRAMES, len(double))).astype(int)
    frames = np.unique(np.append(frames, np.abs(error).max(axis=1).argmax()))
    return {
        "period": period,
        "length": np.int64(length),
        "frames": frames,
        "double": double[frames].astype(np.float32),
        "single_error": error[frames].astype(np.float16),
    }


def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes the arrays atomically as a compressed ``.npz``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    os.replace(part, path)


def main() -> None:
    """Prints the table and replaces the fixture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kaldi", type=Path, help="torchaudio/compliance/kaldi.py")
    parser.add_argument("recordings", type=Path, nargs="*", help="audio files for additional comparisons")
    args = parser.parse_args()
    fbank, filters = load_torchaudio(args.kaldi)
    frontend = Frontend(target_length=1198)
    print(f"{'signal':28} samples    ours-64    ours-32      32-64  excluded")
    arrays = {"mel_filters": filters}
    for index, (name, period) in enumerate(signals().items()):
        results = [compare(name, waveform(period, length), fbank, frontend) for length in LENGTHS]
        chosen = index % len(LENGTHS)
        case = stored_case(period, LENGTHS[chosen], *results[chosen])
        arrays |= {f"{name}/{key}": value for key, value in case.items()}
    for path in args.recordings:
        compare(path.name, recording(path), fbank, frontend)
    write(FIXTURE, arrays)
    print(f"{FIXTURE}: {FIXTURE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
