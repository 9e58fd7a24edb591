"""Evaluates event times with sed_eval: from the attention head, from sliding windows, and without localisation.

    pip install sed_eval 'setuptools<81'    # sed_eval needs a part of setuptools that newer versions lack
    python scripts/events.py DIR MODEL [--seeds 0 1 2] [--clips 40]

DIR is the output directory of ``psla prepare fsd50k``; MODEL must not have been trained on its evaluation recordings.
Test clips of 10 to 30 s are composed of recordings without their silent ends, at known times on faint noise, with gaps
or slight overlaps. The third method reports the scores of the whole clip for its entire duration. The threshold of each
method is tuned on clips composed of validation recordings; the metrics are for clips composed of evaluation recordings,
which differ between seeds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from tyro.conf import Positional

from psla_jax.audio import decode, segments
from psla_jax.audio.decode import SAMPLE_RATE
from psla_jax.audio.windows import Grid
from psla_jax.data.datafile import Datafile
from psla_jax.tagging.events import Rules, find_events
from psla_jax.tagging.recording import FrameOutputs
from psla_jax.tagging.tagger import Failure, load_tagger
from psla_jax.vocabulary.vocabulary import Vocabulary

CLIP_SECONDS = (10.0, 30.0)
"""Minimum and maximum duration of a clip."""
GAPS = (-0.5, 3.0)
"""Minimum and maximum gap between two recordings, in seconds; recordings overlap where it is negative."""
NOISE = 1e-3
"""Standard deviation of the background noise: 60 dB below full scale."""
AUDIBLE = 0.01
"""Level of the start and end of a recording, relative to its maximum level, over 10 ms: 40 dB below."""
TUNING_SEED = 1_000_000
THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
METHODS = ("head", "sliding window", "whole clip")
Metric = Callable[[list[str]], Any]
"""Makes an empty sed_eval metric for a list of class names."""


def sed_metrics() -> dict[str, Metric]:
    """Returns the metrics of the table by name."""
    from sed_eval.sound_event import EventBasedMetrics, SegmentBasedMetrics

    return {
        "event, 0.2 s": lambda names: EventBasedMetrics(names, t_collar=0.2, percentage_of_length=0.2),
        "event, 0.5 s": lambda names: EventBasedMetrics(names, t_collar=0.5, percentage_of_length=0.2),
        "onset, 0.5 s": lambda names: EventBasedMetrics(names, t_collar=0.5, evaluate_offset=False),
        "segment, 1 s": lambda names: SegmentBasedMetrics(names, time_resolution=1.0),
    }


@dataclass(frozen=True)
class Options:
    """Command-line arguments."""

    data: Positional[str]
    """Output directory of psla prepare fsd50k."""
    model: Positional[str]
    """Model directory or run directory."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the sets of evaluation clips."""
    clips: int = 40
    """Number of clips per set."""


@dataclass(frozen=True)
class Source:
    """A recording without its silent ends."""

    waveform: np.ndarray
    """float32 ``(samples,)`` at 16 kHz, with a peak of 1."""
    labels: tuple[int, ...]
    """Indices of its classes, including their ancestors."""


@dataclass(frozen=True, order=True)
class Event:
    """An event of class `label`, with onset and offset in seconds."""

    onset: float
    offset: float
    label: int


@dataclass(frozen=True)
class Clip:
    """A composed clip with its reference events."""

    path: str
    duration: float
    events: tuple[Event, ...]


def trimmed(waveform: np.ndarray) -> np.ndarray:
    """Removes silence at the beginning and end of a waveform, at a resolution of 10 ms."""
    size = SAMPLE_RATE // 100
    frames = waveform[: len(waveform) // size * size].reshape(-1, size)
    level = np.sqrt(np.mean(np.square(frames), axis=1))
    loud = np.flatnonzero(level >= AUDIBLE * level.max())
    return waveform[loud[0] * size : (loud[-1] + 1) * size]


def sources(datafile: Datafile) -> list[Source]:
    """Returns all recordings of a set that are not silent."""
    recordings = []
    for i in range(len(datafile)):
        waveform = segments.read(datafile.audio(i))
        peak = np.abs(waveform).max()
        if peak > 0:
            recordings.append(Source(trimmed(waveform / peak), tuple(map(int, datafile.labels(i)))))
    return recordings


def compose(rng: np.random.Generator, recordings: Sequence[Source]) -> tuple[np.ndarray, list[Event]]:
    """Composes the waveform of a random clip and returns it with its events."""
    size = int(rng.uniform(*CLIP_SECONDS) * SAMPLE_RATE)
    waveform = rng.normal(0, NOISE, size).astype(np.float32)
    events: list[Event] = []
    start = int(rng.uniform(0, GAPS[1]) * SAMPLE_RATE)
    while True:
        source = recordings[int(rng.integers(len(recordings)))]
        stop = start + len(source.waveform)
        if stop > size:
            return waveform, merge(events)
        waveform[start:stop] += source.waveform * np.float32(rng.uniform(0.1, 0.5))
        events += [Event(start / SAMPLE_RATE, stop / SAMPLE_RATE, label) for label in source.labels]
        start = max(start, stop + int(rng.uniform(*GAPS) * SAMPLE_RATE))


def merge(events: Sequence[Event]) -> list[Event]:
    """Merges overlapping and adjacent events of the same class; returns the events in the order of their onsets."""
    merged: dict[int, list[Event]] = {}
    for event in sorted(events):
        earlier = merged.setdefault(event.label, [])
        if earlier and event.onset <= earlier[-1].offset:
            earlier[-1] = replace(earlier[-1], offset=max(earlier[-1].offset, event.offset))
        else:
            earlier.append(event)
    return sorted(event for class_events in merged.values() for event in class_events)


def compose_set(folder: Path, seed: int, count: int, recordings: Sequence[Source]) -> list[Clip]:
    """Writes clips to files in a folder; their content depends on the seed only."""
    clips = []
    for number in range(count):
        waveform, events = compose(np.random.default_rng([seed, number]), recordings)
        path = folder / f"{seed}-{number}.wav"
        decode.write_pcm16(path, waveform)
        clips.append(Clip(str(path), len(waveform) / SAMPLE_RATE, tuple(events)))
    return clips


def timelines(model: str, clips: Sequence[Clip]) -> dict[str, list[np.ndarray]]:
    """Returns the scores of the output frames of every clip, each ``(frames, classes)``, by method."""
    scores_by_method: dict[str, list[np.ndarray]] = {method: [] for method in METHODS}
    for method, times in (("head", "head"), ("sliding window", "windows")):
        for state in load_tagger(model, times=times).analyse(
            (clip.path for clip in clips), FrameOutputs(timeline=True)
        ):
            assert not isinstance(state, Failure), state
            scores = state.timeline().scores.astype(np.float32)
            scores_by_method[method].append(scores)
            if times == "windows":
                scores_by_method["whole clip"].append(np.broadcast_to(state.result().scores, scores.shape))
    return scores_by_method


def detect(scores: np.ndarray, clip: Clip, rules: Rules) -> Iterator[Event]:
    """Yields the events in the frame scores of a clip; events of the last frame extend to the end of the clip."""
    for span in find_events(scores, rules):
        stop = clip.duration if span.stop == len(scores) else Grid().frame_start(span.stop)
        yield Event(Grid().frame_start(span.start), stop, span.column)


def f1(
    metric: Metric, vocabulary: Vocabulary, clips: Sequence[Clip], scores: Sequence[np.ndarray], rules: Rules
) -> float:
    """Returns the F1 score over all events, or segments, of a set of clips."""
    counts = metric(list(vocabulary.names))
    for clip, frame_scores in zip(clips, scores):
        counts.evaluate(
            _to_sed_eval(clip.events, vocabulary, clip.path),
            _to_sed_eval(detect(frame_scores, clip, rules), vocabulary, clip.path),
        )
    value = counts.results_overall_metrics()["f_measure"]["f_measure"]
    return 0.0 if np.isnan(value) else float(value)


def _to_sed_eval(events: Iterable[Event], vocabulary: Vocabulary, path: str) -> list[dict[str, Any]]:
    return [
        {"filename": path, "onset": e.onset, "offset": e.offset, "event_label": vocabulary.names[e.label]}
        for e in events
    ]


def main(options: Options) -> None:
    """Composes and scores the clips, tunes the thresholds, and prints the table."""
    metrics = sed_metrics()
    tables = Path(options.data) / "datafiles"
    vocabulary = load_tagger(options.model).vocabulary
    splits = {
        split: sources(Datafile.read(tables / f"fsd50k_{split}_full.json", vocabulary)) for split in ("val", "eval")
    }
    with tempfile.TemporaryDirectory() as name:
        tuning = compose_set(Path(name), TUNING_SEED, options.clips, splits["val"])
        tests = [compose_set(Path(name), seed, options.clips, splits["eval"]) for seed in options.seeds]
        tuning_scores = timelines(options.model, tuning)
        test_scores = [timelines(options.model, clips) for clips in tests]
    print(f"\nF1 on {options.clips} clips per seed, mean over seeds {options.seeds} (minimum to maximum); threshold\n")
    print("| | " + " | ".join(metrics) + " |\n|---|" + "---|" * len(metrics))
    for method in METHODS:
        cells = []
        for metric in metrics.values():
            tuned = [f1(metric, vocabulary, tuning, tuning_scores[method], Rules(t)) for t in THRESHOLDS]
            best = Rules(THRESHOLDS[int(np.argmax(tuned))])
            values = [f1(metric, vocabulary, clips, scores[method], best) for clips, scores in zip(tests, test_scores)]
            cells.append(f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f}); {best.threshold:g}")
        print(f"| {method} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
