"""Synthesis of the demo set's sounds and of clips with these sounds in noise, in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from psla_jax.audio.decode import SAMPLE_RATE as _RATE

Range = tuple[float, float]
Response = Callable[[np.ndarray], np.ndarray]
Sound = Callable[[np.random.Generator, int], np.ndarray]


def clip(
    rng: np.random.Generator,
    sounds: Sequence[str],
    *,
    seconds: Range,
    snr_db: Range,
    second_db: Range,
    peak_db: Range,
    equaliser_db: float,
) -> np.ndarray:
    """Synthesises a recording: events at random times in background noise, with the response of room and microphone.

    `sounds` are the names of the events, keys of :data:`SOUNDS`; :class:`psla_jax.data.demo.dataset.Recipe` describes
    the other settings. Returns float64 ``(samples,)`` at 16 kHz, within [-1, 1].
    """
    samples = int(_RATE * rng.uniform(*seconds))
    mix = np.zeros(samples)
    for order, name in enumerate(sounds):
        span = int(samples * rng.uniform(0.45, 1.0))
        event = SOUNDS[name](rng, span)
        start = rng.integers(samples - span + 1)
        level = rng.uniform(*second_db) if order else 0.0
        mix[start : start + span] += _amplitude(level) * event / _loudness(event)
    slope = rng.choice([-0.4, 0.0, 0.5, 1.0])  # blue, white, pink, brown
    noise = _noise(rng, samples, lambda hertz: hertz**-slope)
    mix += _amplitude(-rng.uniform(*snr_db)) * noise / _loudness(noise)
    recording = _record(rng, mix, equaliser_db)
    return _amplitude(rng.uniform(*peak_db)) * recording / np.abs(recording).max()


def _record(rng: np.random.Generator, dry: np.ndarray, equaliser_db: float) -> np.ndarray:
    """Applies a room with a short echo and a microphone with an uneven frequency response."""
    length = _RATE // 4
    echo = rng.standard_normal(length) * np.exp(-np.arange(length) / (_RATE * rng.uniform(0.01, 0.06)))
    echo *= rng.uniform(0, 0.7) / np.sqrt(np.sum(echo**2))
    echo[0] += 1.0
    size = _fft_size(len(dry) + length)
    hertz = _frequencies(size)
    decibel = sum(rng.normal(0, equaliser_db) * _band(hertz, _log_uniform(rng, 80, 7000), 1.0) for _ in range(3))
    spectrum = np.fft.rfft(dry, size) * np.fft.rfft(echo, size) * 10 ** (decibel / 20)
    return np.fft.irfft(spectrum, size)[: len(dry)]


def _amplitude(decibel: float) -> float:
    return 10 ** (decibel / 20)


def _loudness(wave: np.ndarray) -> float:
    """Returns the root mean square of the loudest 50 ms."""
    block = min(len(wave), _RATE // 20)
    power = wave[: len(wave) // block * block].reshape(-1, block) ** 2
    return float(np.sqrt(power.mean(axis=1).max()) + 1e-9)


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return low * (high / low) ** rng.uniform()


def _fft_size(samples: int) -> int:
    """Rounds up to a product of small factors: a Fourier transform of prime size is ten times slower."""
    return -(-samples // 1024) * 1024


def _frequencies(size: int) -> np.ndarray:
    """Returns the frequencies of ``np.fft.rfft`` of `size` samples, at least 20 Hz."""
    return np.maximum(np.arange(size // 2 + 1) * (_RATE / size), 20.0)


def _band(hertz: np.ndarray, centre: float, octaves: float) -> np.ndarray:
    """Gaussian response over log frequency, 1 at its centre."""
    return np.exp(-0.5 * (np.log2(hertz / centre) / octaves) ** 2)


def _filter(wave: np.ndarray, response: Response) -> np.ndarray:
    """Multiplies each frequency of the wave by a real response."""
    size = _fft_size(len(wave))
    return np.fft.irfft(np.fft.rfft(wave, size) * response(_frequencies(size)), size)[: len(wave)]


def _noise(rng: np.random.Generator, samples: int, response: Response) -> np.ndarray:
    return _filter(rng.standard_normal(samples), response)


def _smooth_noise(rng: np.random.Generator, samples: int, rate: float) -> np.ndarray:
    """Random curve of about unit variance, interpolated between `rate` random values per second."""
    knots = int(samples / _RATE * rate) + 3
    position = np.linspace(0, knots - 1, samples)
    before = np.minimum(position.astype(int), knots - 2)
    weight = 0.5 - 0.5 * np.cos(np.pi * (position - before))
    values = rng.standard_normal(knots)
    return values[before] * (1 - weight) + values[before + 1] * weight


def _phase(hertz: np.ndarray) -> np.ndarray:
    """Returns the phase, in cycles, of an oscillator with the frequency `hertz` at each sample."""
    return np.cumsum(hertz) / _RATE


def _fade(wave: np.ndarray, seconds: float) -> np.ndarray:
    """Applies linear ramps at both ends."""
    ramp = np.arange(len(wave)) / (seconds * _RATE)
    return wave * np.minimum(1.0, np.minimum(ramp, ramp[::-1]))


def _sine(rng: np.random.Generator, samples: int, slowest: float, fastest: float) -> np.ndarray:
    """Sine with a random frequency in hertz and a random phase."""
    return np.sin(2 * np.pi * (rng.uniform(slowest, fastest) * np.arange(samples) / _RATE + rng.uniform()))


def _hits(rng: np.random.Generator, samples: int, hit: Callable[[int], np.ndarray]) -> np.ndarray:
    """One to four hits at a nearly constant rate."""
    wave = np.zeros(samples)
    interval = _RATE / rng.uniform(2.5, 7.0)
    for number in range(rng.integers(1, 5)):
        start = int(interval * (number + rng.uniform(0, 0.15)))
        if start < samples:
            length = min(samples - start, _RATE // 2)
            wave[start : start + length] += rng.uniform(0.6, 1.0) * hit(length)
    return wave


def _drum(rng: np.random.Generator, samples: int, pitch: Range, drop: Range, decay: Range, click: float) -> np.ndarray:
    """Drum head: a tone that falls from ``drop`` times ``pitch`` to ``pitch``, with the click of the stick."""
    hertz, start, seconds = _log_uniform(rng, *pitch), rng.uniform(*drop), _log_uniform(rng, *decay)
    glide, stick = rng.uniform(0.015, 0.05), rng.uniform(0, click)

    def hit(length: int) -> np.ndarray:
        time = np.arange(length) / _RATE
        turns = 2 * np.pi * _phase(hertz * (1 + (start - 1) * np.exp(-time / glide)))
        tone = np.sin(turns) + 0.3 * np.sin(1.59 * turns) * np.exp(-time / (0.4 * seconds))
        return tone * np.exp(-time / seconds) + stick * rng.standard_normal(length) * np.exp(-time / 0.004)

    return _hits(rng, samples, hit)


def _snare(rng: np.random.Generator, samples: int) -> np.ndarray:
    pitch, decay, centre = _log_uniform(rng, 160, 260), _log_uniform(rng, 0.04, 0.14), _log_uniform(rng, 1500, 4000)
    body = rng.uniform(0.1, 0.6)

    def hit(length: int) -> np.ndarray:
        time = np.arange(length) / _RATE
        rattle = _noise(rng, length, lambda hertz: 3 * _band(hertz, centre, 1.0))
        return rattle * np.exp(-time / decay) + body * np.sin(2 * np.pi * pitch * time) * np.exp(-time / (0.6 * decay))

    return _hits(rng, samples, hit)


def _hat(rng: np.random.Generator, samples: int) -> np.ndarray:
    edge, decay = _log_uniform(rng, 3500, 6500), _log_uniform(rng, 0.015, 0.12)

    def hit(length: int) -> np.ndarray:
        metal = _noise(rng, length, lambda hertz: 1 / (1 + (edge / hertz) ** 6))
        return metal * np.exp(-np.arange(length) / (_RATE * decay))

    return _hits(rng, samples, hit)


def _harmonic_tone(rng: np.random.Generator, hertz: np.ndarray) -> np.ndarray:
    """Tone along a frequency curve, with three harmonics of randomly decreasing amplitude."""
    turns, fall = 2 * np.pi * _phase(hertz), rng.uniform(0.05, 0.6)
    return sum((fall**k * np.sin((k + 1) * turns) for k in range(1, 4)), start=np.sin(turns))


def _siren(rng: np.random.Generator, samples: int) -> np.ndarray:
    octaves = rng.uniform(0.15, 0.5) * _sine(rng, samples, 1.5, 5.0)
    return _fade(_harmonic_tone(rng, _log_uniform(rng, 450, 1600) * 2**octaves), 0.02)


def _warble(rng: np.random.Generator, samples: int) -> np.ndarray:
    octaves = rng.uniform(0.1, 0.4) * np.tanh(12 * _sine(rng, samples, 2.5, 8.0))
    return _fade(_harmonic_tone(rng, _log_uniform(rng, 450, 1600) * 2**octaves), 0.02)


def _chirp(rng: np.random.Generator, samples: int, sign: int) -> np.ndarray:
    """One to three equal sweeps, up (`sign` 1) or down (-1)."""
    wave = np.zeros(samples)
    count = int(rng.integers(1, 4))
    period = samples // count
    length = int(period * rng.uniform(0.6, 0.95))
    octaves = sign * rng.uniform(0.4, 1.6) * (np.linspace(0, 1, length) ** rng.uniform(0.6, 1.6) - 0.5)
    sweep = _fade(_harmonic_tone(rng, _log_uniform(rng, 400, 2200) * 2**octaves), 0.015)
    for start in range(0, count * period, period):
        wave[start : start + length] = sweep
    return wave


def _hiss(rng: np.random.Generator, samples: int) -> np.ndarray:
    centre, octaves = _log_uniform(rng, 1500, 6000), rng.uniform(0.5, 1.3)
    wave = _noise(rng, samples, lambda hertz: _band(hertz, centre, octaves))
    return _fade(wave * (1 + 0.15 * _smooth_noise(rng, samples, 4)), rng.uniform(0.01, 0.1))


def _crackle(rng: np.random.Generator, samples: int) -> np.ndarray:
    sparks = (rng.uniform(size=samples) < _log_uniform(rng, 20, 120) / _RATE) * rng.standard_normal(samples)
    sparks[rng.integers(samples)] = 1.5  # at least one
    size = _fft_size(2 * samples)
    tail = np.exp(-np.arange(samples) / (_RATE * _log_uniform(rng, 0.0008, 0.004)))
    bursts = np.fft.irfft(np.fft.rfft(sparks, size) * np.fft.rfft(tail, size), size)[:samples]
    centre = _log_uniform(rng, 1500, 5000)
    body = _filter(bursts * rng.standard_normal(samples), lambda hertz: _band(hertz, centre, 1.0))
    bed = _noise(rng, samples, lambda hertz: _band(hertz, 0.6 * centre, 1.2))
    return _fade(body / _loudness(body) + rng.uniform(0.02, 0.2) * bed / _loudness(bed), 0.02)


def _wind(rng: np.random.Generator, samples: int) -> np.ndarray:
    centre = _log_uniform(rng, 250, 1200)
    wave = np.zeros(samples)
    for part in (0.6 * centre, centre, 1.6 * centre):
        band = _noise(rng, samples, partial(_band, centre=part, octaves=0.5))
        wave += np.exp(0.8 * _smooth_noise(rng, samples, rng.uniform(2, 5))) * band
    return _fade(wave, 0.05)


def _sawtooth(rng: np.random.Generator, hertz: np.ndarray, low: Range, high: Range) -> np.ndarray:
    """Sawtooth along a frequency curve, with one formant in each of two frequency ranges."""
    formants = [(rng.uniform(0.4, 1.0), _log_uniform(rng, *interval)) for interval in (low, high)]
    wave = 2 * (_phase(hertz) % 1.0) - 1
    return _filter(wave, lambda grid: 0.03 + np.sum([h * _band(grid, f, 0.55) for h, f in formants], axis=0))


def _engine(rng: np.random.Generator, samples: int) -> np.ndarray:
    pitch = _log_uniform(rng, 24, 70) * 2 ** (rng.uniform(-0.4, 0.4) * np.linspace(-0.5, 0.5, samples))
    pitch *= 1 + 0.05 * _smooth_noise(rng, samples, 15)
    tone = _sawtooth(rng, pitch, (90, 300), (400, 1500))
    breath = _noise(rng, samples, lambda hertz: hertz**-0.5) * (1 - _phase(pitch) % 1.0)
    return _fade(tone / _loudness(tone) + rng.uniform(0.1, 0.5) * breath / _loudness(breath), 0.03)


def _buzz(rng: np.random.Generator, samples: int) -> np.ndarray:
    pitch = _log_uniform(rng, 75, 190) * (1 + 0.01 * _smooth_noise(rng, samples, 10))
    tone = _sawtooth(rng, pitch, (250, 1200), (1500, 4500))
    return _fade(tone * (1 + rng.uniform(0, 0.4) * _sine(rng, samples, 3, 20)), 0.03)


SOUNDS: dict[str, Sound] = {
    "kick": partial(_drum, pitch=(42, 80), drop=(2.0, 4.5), decay=(0.06, 0.18), click=0.5),
    "tom": partial(_drum, pitch=(85, 210), drop=(1.1, 1.7), decay=(0.08, 0.25), click=0.3),
    "snare": _snare,
    "hat": _hat,
    "siren": _siren,
    "warble": _warble,
    "rising": partial(_chirp, sign=1),
    "falling": partial(_chirp, sign=-1),
    "hiss": _hiss,
    "crackle": _crackle,
    "wind": _wind,
    "engine": _engine,
    "buzz": _buzz,
}
"""Synthesis function of each sound class: random generator and number of samples -> waveform of arbitrary level."""
