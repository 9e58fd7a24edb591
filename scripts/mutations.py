"""Corrupted and unusual audio files for ``fuzz.py``: truncated, overwritten, or with invalid headers or samples."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile

Rng = np.random.Generator
HEADER = struct.Struct("<4sI4s4sIHHIIHH4sI")


def sound(rng: Rng, seconds: float = 0.5, channels: int = 1) -> np.ndarray:
    """Returns white noise, float64 ``(samples, channels)``."""
    return rng.uniform(-0.3, 0.3, (int(16_000 * seconds), channels))


def encoded(rng: Rng, kind: str = "", **options: object) -> bytes:
    """Returns noise encoded in an audio format of libsndfile, by default a random one."""
    kind = kind or str(rng.choice(["WAV", "FLAC", "OGG", "AIFF", "MP3", "W64", "CAF"]))
    file = io.BytesIO()
    soundfile.write(file, sound(rng), 16_000, format=kind, **options)
    return file.getvalue()


def wav(
    rate: int = 16_000, channels: int = 1, bits: int = 16, form: int = 1, data: bytes = b"", claimed_size: int = -1
) -> bytes:
    """Returns a WAV file with an arbitrary header; `claimed_size` is the number of bytes of data in the header."""
    size = len(data) if claimed_size < 0 else claimed_size
    block = channels * bits // 8
    head = HEADER.pack(
        b"RIFF", (size + 36) & 0xFFFFFFFF, b"WAVE", b"fmt ", 16, form, channels & 0xFFFF, rate & 0xFFFFFFFF,
        (rate * block) & 0xFFFFFFFF, block & 0xFFFF, bits, b"data", size & 0xFFFFFFFF,
    )  # fmt: skip
    return head + data


def noise(rng: Rng, count: int = 16_000) -> bytes:
    return rng.bytes(count)


def cut(rng: Rng) -> bytes:
    content = encoded(rng)
    return content[: rng.integers(1, len(content))]


def zeroed(rng: Rng) -> bytes:
    content = bytearray(encoded(rng))
    start = int(rng.integers(0, len(content)))
    content[start : start + len(content) // 4] = bytes(len(content[start : start + len(content) // 4]))
    return bytes(content)


def flipped(rng: Rng) -> bytes:
    content = bytearray(encoded(rng))
    for position in rng.integers(0, len(content), 20):
        content[position] ^= 1 << int(rng.integers(8))
    return bytes(content)


def head_flipped(rng: Rng) -> bytes:
    content = bytearray(encoded(rng))
    for position in rng.integers(0, 60, 4):
        content[position] = int(rng.integers(256))
    return bytes(content)


def spliced(rng: Rng) -> bytes:
    first, second = encoded(rng), encoded(rng)
    position = int(rng.integers(1, min(len(first), len(second))))
    return first[:position] + second[position:]


def strange_rate(rng: Rng) -> bytes:
    return wav(rate=int(rng.choice([0, 1, 7, 100, 2**31 - 1, 2**32 - 1])), data=noise(rng))


def strange_channels(rng: Rng) -> bytes:
    return wav(channels=int(rng.choice([0, 300, 1024, 65_535])), data=noise(rng))


def strange_bits(rng: Rng) -> bytes:
    return wav(
        bits=int(rng.choice([0, 1, 7, 13, 64, 4096])), form=int(rng.choice([1, 2, 3, 6, 17, 85])), data=noise(rng)
    )


def claims_hours(rng: Rng) -> bytes:
    return wav(data=noise(rng), claimed_size=int(rng.choice([2**31 - 1, 2**32 - 1, 2**32 - 37])))


def not_finite(rng: Rng) -> bytes:
    samples = sound(rng).astype("<f4")
    samples[rng.integers(0, len(samples), 3)] = rng.choice([np.nan, np.inf, -np.inf, 3e38])
    return wav(bits=32, form=3, data=samples.tobytes())


def slow(rng: Rng) -> bytes:
    """A million samples at 1 to 3 Hz: days of audio according to the header."""
    return wav(rate=int(rng.choice([1, 2, 3])), data=noise(rng, 2_000_000))


def rubbish(rng: Rng) -> bytes:
    return noise(rng, int(rng.integers(0, 3000)))


def words(rng: Rng) -> bytes:
    return b"<html><body>404 Not Found</body></html>" * int(rng.integers(1, 9))


MUTATIONS: tuple[Callable[[Rng], bytes], ...] = (
    cut, zeroed, flipped, head_flipped, spliced, strange_rate, strange_channels, strange_bits, claims_hours,
    not_finite, slow, rubbish, words,
)  # fmt: skip
ENDINGS = (".wav", ".flac", ".ogg", ".mp3", ".aiff")


def mutated(folder: Path, count: int, seed: int = 0) -> Iterator[Path]:
    """Writes `count` corrupted files, cycling through :data:`MUTATIONS`, and yields their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        make = MUTATIONS[number % len(MUTATIONS)]
        rng = np.random.default_rng([seed, number])
        path = folder / f"{number:03d}_{make.__name__}{ENDINGS[int(rng.integers(len(ENDINGS)))]}"
        path.write_bytes(make(rng))
        yield path


def hours_of_silence(path: Path, hours: int = 10) -> Path:
    """Writes a valid recording of hours of silence as a sparse file, which occupies almost no disk space."""
    size = hours * 3600 * 16_000 * 2
    with open(path, "wb") as file:
        file.write(wav(data=b"", claimed_size=size))
        file.truncate(44 + size)
    return path
