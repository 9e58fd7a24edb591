"""The kinds of sound of the demo set, and clips in which they are heard in noise; NumPy alone, quick and repeatable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from psla_jax.audio import SAMPLE_RATE as _RATE

Range = tuple[float, float]
Response = Callable[[np.ndarray], np.ndarray]
Sound = Callable[[np.random.Generator, int], np.ndarray]


def clip(
    rng: np.random.Generator,
    kinds: Sequence[str],
    *,
    seconds: Range,
    snr_db: Range,
    second_db: Range,
    peak_db: Range,
    equaliser_db: float,
) -> np.ndarray:
    """One recording: events at random times, background noise, and the room and equipment they were recorded with.

    Args:
        rng: all that is random in it.
        kinds: which of :data:`KINDS` are heard.
        seconds: shortest and longest clip.
        snr_db: lowest and highest level of the first event over the background noise.
        second_db: lowest and highest level of any other event against the first.
        peak_db: lowest and highest peak against full scale.
        equaliser_db: standard deviation of each of three broad peaks or dips of the frequency response.

    Returns:
        float64 ``(samples,)`` at 16 kHz, within [-1, 1].
    """
    samples = int(_RATE * rng.uniform(*seconds))
    mix = np.zeros(samples)
    for order, kind in enumerate(kinds):
        span = int(samples * rng.uniform(0.45, 1.0))
        event = KINDS[kind](rng, span)
        start = rng.integers(samples - span + 1)
        level = rng.uniform(*second_db) if order else 0.0
        mix[start : start + span] += _gain(level) * event / _loudness(event)
    slope = rng.choice([-0.4, 0.0, 0.5, 1.0])  # blue, white, pink, brown
    noise = _noise(rng, samples, lambda hertz: hertz**-slope)
    mix += _gain(-rng.uniform(*snr_db)) * noise / _loudness(noise)
    heard = _recorded(rng, mix, equaliser_db)
    return _gain(rng.uniform(*peak_db)) * heard / np.abs(heard).max()


def _recorded(rng: np.random.Generator, dry: np.ndarray, equaliser_db: float) -> np.ndarray:
    """The mix in a room with a short echo, through a microphone with peaks and dips."""
    length = _RATE // 4
    echo = rng.standard_normal(length) * np.exp(-np.arange(length) / (_RATE * rng.uniform(0.01, 0.06)))
    echo *= rng.uniform(0, 0.7) / np.sqrt(np.sum(echo**2))
    echo[0] += 1.0
    size = _quick_size(len(dry) + length)
    hertz = _hertz(size)
    decibel = sum(rng.normal(0, equaliser_db) * _bump(hertz, _between(rng, 80, 7000), 1.0) for _ in range(3))
    heard = np.fft.rfft(dry, size) * np.fft.rfft(echo, size) * 10 ** (decibel / 20)
    return np.fft.irfft(heard, size)[: len(dry)]


# ---- Tools -----------------------------------------------------------------------------------------------------------


def _gain(decibel: float) -> float:
    return 10 ** (decibel / 20)


def _loudness(wave: np.ndarray) -> float:
    """The root mean square of the loudest 50 ms."""
    block = min(len(wave), _RATE // 20)
    power = wave[: len(wave) // block * block].reshape(-1, block) ** 2
    return float(np.sqrt(power.mean(axis=1).max()) + 1e-9)


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    """A positive number whose logarithm is uniform."""
    return low * (high / low) ** rng.uniform()


def _quick_size(samples: int) -> int:
    """At least so many samples, and a product of small factors: a prime makes a Fourier transform ten times as slow."""
    return -(-samples // 1024) * 1024


def _hertz(size: int) -> np.ndarray:
    """The frequencies of ``np.fft.rfft`` of so many samples; 20 Hz stands for anything below."""
    return np.maximum(np.arange(size // 2 + 1) * (_RATE / size), 20.0)


def _bump(hertz: np.ndarray, centre: float, octaves: float) -> np.ndarray:
    """A bell curve over log frequency, 1 at its centre."""
    return np.exp(-0.5 * (np.log2(hertz / centre) / octaves) ** 2)


def _filtered(wave: np.ndarray, response: Response) -> np.ndarray:
    """The wave with each frequency multiplied by a real response."""
    size = _quick_size(len(wave))
    return np.fft.irfft(np.fft.rfft(wave, size) * response(_hertz(size)), size)[: len(wave)]


def _noise(rng: np.random.Generator, samples: int, response: Response) -> np.ndarray:
    return _filtered(rng.standard_normal(samples), response)


def _slow(rng: np.random.Generator, samples: int, rate: float) -> np.ndarray:
    """A smooth random curve of about unit variance that takes about ``rate`` new values a second."""
    knots = int(samples / _RATE * rate) + 3
    where = np.linspace(0, knots - 1, samples)
    before = np.minimum(where.astype(int), knots - 2)
    ease = 0.5 - 0.5 * np.cos(np.pi * (where - before))
    values = rng.standard_normal(knots)
    return values[before] * (1 - ease) + values[before + 1] * ease


def _phase(hertz: np.ndarray) -> np.ndarray:
    """Cycles run through at each sample of a frequency curve."""
    return np.cumsum(hertz) / _RATE


def _faded(wave: np.ndarray, seconds: float) -> np.ndarray:
    """The wave with linear ramps at both ends."""
    ramp = np.arange(len(wave)) / (seconds * _RATE)
    return wave * np.minimum(1.0, np.minimum(ramp, ramp[::-1]))


def _swing(rng: np.random.Generator, samples: int, slowest: float, fastest: float) -> np.ndarray:
    """A sine of a random rate in hertz, from a random phase on."""
    return np.sin(2 * np.pi * (rng.uniform(slowest, fastest) * np.arange(samples) / _RATE + rng.uniform()))


# ---- Drums -----------------------------------------------------------------------------------------------------------


def _hits(rng: np.random.Generator, samples: int, hit: Callable[[int], np.ndarray]) -> np.ndarray:
    """One to four hits at a nearly steady pace."""
    wave = np.zeros(samples)
    pace = _RATE / rng.uniform(2.5, 7.0)
    for number in range(rng.integers(1, 5)):
        start = int(pace * (number + rng.uniform(0, 0.15)))
        if start < samples:
            length = min(samples - start, _RATE // 2)
            wave[start : start + length] += rng.uniform(0.6, 1.0) * hit(length)
    return wave


def _skin(rng: np.random.Generator, samples: int, pitch: Range, drop: Range, decay: Range, click: float) -> np.ndarray:
    """A drum skin: a tone that starts ``drop`` times as high and settles at ``pitch``, with a click of the stick."""
    hertz, start, seconds = _between(rng, *pitch), rng.uniform(*drop), _between(rng, *decay)
    glide, stick = rng.uniform(0.015, 0.05), rng.uniform(0, click)

    def hit(length: int) -> np.ndarray:
        time = np.arange(length) / _RATE
        turns = 2 * np.pi * _phase(hertz * (1 + (start - 1) * np.exp(-time / glide)))
        tone = np.sin(turns) + 0.3 * np.sin(1.59 * turns) * np.exp(-time / (0.4 * seconds))
        return tone * np.exp(-time / seconds) + stick * rng.standard_normal(length) * np.exp(-time / 0.004)

    return _hits(rng, samples, hit)


def _kick(rng: np.random.Generator, samples: int) -> np.ndarray:
    return _skin(rng, samples, (42, 80), (2.0, 4.5), (0.06, 0.18), 0.5)


def _tom(rng: np.random.Generator, samples: int) -> np.ndarray:
    return _skin(rng, samples, (85, 210), (1.1, 1.7), (0.08, 0.25), 0.3)


def _snare(rng: np.random.Generator, samples: int) -> np.ndarray:
    pitch, decay, centre = _between(rng, 160, 260), _between(rng, 0.04, 0.14), _between(rng, 1500, 4000)
    body = rng.uniform(0.1, 0.6)

    def hit(length: int) -> np.ndarray:
        time = np.arange(length) / _RATE
        rattle = _noise(rng, length, lambda hertz: 3 * _bump(hertz, centre, 1.0))
        return rattle * np.exp(-time / decay) + body * np.sin(2 * np.pi * pitch * time) * np.exp(-time / (0.6 * decay))

    return _hits(rng, samples, hit)


def _hat(rng: np.random.Generator, samples: int) -> np.ndarray:
    edge, decay = _between(rng, 3500, 6500), _between(rng, 0.015, 0.12)

    def hit(length: int) -> np.ndarray:
        metal = _noise(rng, length, lambda hertz: 1 / (1 + (edge / hertz) ** 6))
        return metal * np.exp(-np.arange(length) / (_RATE * decay))

    return _hits(rng, samples, hit)


# ---- Signals ---------------------------------------------------------------------------------------------------------


def _voiced(rng: np.random.Generator, hertz: np.ndarray) -> np.ndarray:
    """A tone along a frequency curve, with three harmonics that fall off at random."""
    turns, fall = 2 * np.pi * _phase(hertz), rng.uniform(0.05, 0.6)
    return sum((fall**k * np.sin((k + 1) * turns) for k in range(1, 4)), start=np.sin(turns))


def _siren(rng: np.random.Generator, samples: int) -> np.ndarray:
    octaves = rng.uniform(0.15, 0.5) * _swing(rng, samples, 1.5, 5.0)
    return _faded(_voiced(rng, _between(rng, 450, 1600) * 2**octaves), 0.02)


def _warble(rng: np.random.Generator, samples: int) -> np.ndarray:
    octaves = rng.uniform(0.1, 0.4) * np.tanh(12 * _swing(rng, samples, 2.5, 8.0))
    return _faded(_voiced(rng, _between(rng, 450, 1600) * 2**octaves), 0.02)


def _chirp(rng: np.random.Generator, samples: int, sign: int) -> np.ndarray:
    """One to three equal sweeps, up or down."""
    wave = np.zeros(samples)
    count = int(rng.integers(1, 4))
    share = samples // count
    length = int(share * rng.uniform(0.6, 0.95))
    octaves = sign * rng.uniform(0.4, 1.6) * (np.linspace(0, 1, length) ** rng.uniform(0.6, 1.6) - 0.5)
    sweep = _faded(_voiced(rng, _between(rng, 400, 2200) * 2**octaves), 0.015)
    for start in range(0, count * share, share):
        wave[start : start + length] = sweep
    return wave


def _rising(rng: np.random.Generator, samples: int) -> np.ndarray:
    return _chirp(rng, samples, 1)


def _falling(rng: np.random.Generator, samples: int) -> np.ndarray:
    return _chirp(rng, samples, -1)


# ---- Noises ----------------------------------------------------------------------------------------------------------


def _hiss(rng: np.random.Generator, samples: int) -> np.ndarray:
    centre, octaves = _between(rng, 1500, 6000), rng.uniform(0.5, 1.3)
    wave = _noise(rng, samples, lambda hertz: _bump(hertz, centre, octaves))
    return _faded(wave * (1 + 0.15 * _slow(rng, samples, 4)), rng.uniform(0.01, 0.1))


def _crackle(rng: np.random.Generator, samples: int) -> np.ndarray:
    sparks = (rng.uniform(size=samples) < _between(rng, 20, 120) / _RATE) * rng.standard_normal(samples)
    sparks[rng.integers(samples)] = 1.5  # at least one
    size = _quick_size(2 * samples)
    tail = np.exp(-np.arange(samples) / (_RATE * _between(rng, 0.0008, 0.004)))
    bursts = np.fft.irfft(np.fft.rfft(sparks, size) * np.fft.rfft(tail, size), size)[:samples]
    centre = _between(rng, 1500, 5000)
    body = _filtered(bursts * rng.standard_normal(samples), lambda hertz: _bump(hertz, centre, 1.0))
    bed = _noise(rng, samples, lambda hertz: _bump(hertz, 0.6 * centre, 1.2))
    return _faded(body / _loudness(body) + rng.uniform(0.02, 0.2) * bed / _loudness(bed), 0.02)


def _wind(rng: np.random.Generator, samples: int) -> np.ndarray:
    centre = _between(rng, 250, 1200)
    wave = np.zeros(samples)
    for part in (0.6 * centre, centre, 1.6 * centre):
        band = _noise(rng, samples, partial(_bump, centre=part, octaves=0.5))
        wave += np.exp(0.8 * _slow(rng, samples, rng.uniform(2, 5))) * band
    return _faded(wave, 0.05)


# ---- Motors ----------------------------------------------------------------------------------------------------------


def _pulses(rng: np.random.Generator, hertz: np.ndarray, low: Range, high: Range) -> np.ndarray:
    """A sawtooth along a frequency curve, with a formant in each of two ranges of frequency."""
    formants = [(rng.uniform(0.4, 1.0), _between(rng, *where)) for where in (low, high)]
    wave = 2 * (_phase(hertz) % 1.0) - 1
    return _filtered(wave, lambda grid: 0.03 + np.sum([h * _bump(grid, f, 0.55) for h, f in formants], axis=0))


def _engine(rng: np.random.Generator, samples: int) -> np.ndarray:
    pitch = _between(rng, 24, 70) * 2 ** (rng.uniform(-0.4, 0.4) * np.linspace(-0.5, 0.5, samples))
    pitch *= 1 + 0.05 * _slow(rng, samples, 15)
    tone = _pulses(rng, pitch, (90, 300), (400, 1500))
    breath = _noise(rng, samples, lambda hertz: hertz**-0.5) * (1 - _phase(pitch) % 1.0)
    return _faded(tone / _loudness(tone) + rng.uniform(0.1, 0.5) * breath / _loudness(breath), 0.03)


def _buzz(rng: np.random.Generator, samples: int) -> np.ndarray:
    pitch = _between(rng, 75, 190) * (1 + 0.01 * _slow(rng, samples, 10))
    tone = _pulses(rng, pitch, (250, 1200), (1500, 4500))
    return _faded(tone * (1 + rng.uniform(0, 0.4) * _swing(rng, samples, 3, 20)), 0.03)


KINDS: dict[str, Sound] = {
    "kick": _kick,
    "tom": _tom,
    "snare": _snare,
    "hat": _hat,
    "siren": _siren,
    "warble": _warble,
    "rising": _rising,
    "falling": _falling,
    "hiss": _hiss,
    "crackle": _crackle,
    "wind": _wind,
    "engine": _engine,
    "buzz": _buzz,
}
"""Every kind of sound: a function of a generator and a number of samples that gives so many, at any level."""
