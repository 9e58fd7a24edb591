"""Compressed recordings for tests, and defects of their bytes."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

CODECS = {
    ".aac": "aac", ".flac": "flac", ".m4a": "aac", ".mka": "aac", ".mp3": "libmp3lame", ".opus": "libopus",
    ".webm": "libopus",
}  # fmt: skip


def tones(*hertz: float, rate: int = 48_000, seconds: float = 1.0) -> np.ndarray:
    """Returns one tone after the other, `seconds` long each, in 16 bits."""
    time = np.arange(round(rate * seconds)) / rate
    parts = [0.3 * np.sin(2 * np.pi * pitch * time) for pitch in hertz]
    return np.rint(32768 * np.concatenate(parts)).astype(np.int16)


def pitch(waveform: np.ndarray, start: float, stop: float) -> float:
    """Returns the strongest frequency of a part of a waveform at 16 kHz, in hertz."""
    part = waveform[round(start * 16_000) : round(stop * 16_000)]
    return float(np.abs(np.fft.rfft(part * np.hanning(len(part)))).argmax() * 16_000 / len(part))


def encode(path: Path, samples: np.ndarray, rate: int = 48_000, quality: float = 0.0, **options: str) -> Path:
    """Writes 16-bit samples ``(samples,)`` or ``(samples, channels)`` in the format of the path's suffix.

    `quality` selects a variable bit rate; `options` are those of FFmpeg's muxer.
    """
    block = samples[:, None] if samples.ndim == 1 else samples
    layout = "mono" if block.shape[1] == 1 else "stereo"
    with av.open(path, "w", options=options) as container:
        stream = container.add_stream(CODECS[path.suffix], rate=rate, layout=layout)
        if quality:
            stream.codec_context.flags |= av.codec.context.Flags.qscale
            stream.codec_context.global_quality = round(118 * quality)  # FF_QP2LAMBDA
        fifo = av.AudioResampler(stream.codec_context.format, layout, rate)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block).reshape(1, -1), "s16", layout)
        frame.sample_rate = rate
        for resampled in (*fifo.resample(frame), *fifo.resample(None)):
            container.mux(stream.encode(resampled))
        container.mux(stream.encode(None))
    return path


def zeroed(content: bytes, start: float, stop: float) -> bytes:
    """Overwrites a part of a file, given by fractions of its length, with zeros."""
    first, last = int(start * len(content)), int(stop * len(content))
    return content[:first] + bytes(last - first) + content[last:]
