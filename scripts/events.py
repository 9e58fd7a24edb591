"""How well times are found, judged by sed_eval: from the head, from the scores of sliding windows, and by saying of a
whole clip what is somewhere in it.

pip install sed_eval 'setuptools<81'    # it asks for a part of setuptools that newer ones lack
python scripts/events.py DIR MODEL [--seeds 0 1 2] [--clips 40]

DIR is where ``psla prepare fsd50k`` put its datafiles; MODEL must not have been trained on its evaluation recordings.
Clips of 10 to 30 s are built from recordings whose silent ends were cut off, at known times on faint noise, one after
the other or overlapping a little. Each way gets the threshold that does best on clips built from validation recordings
and is then judged on clips built from evaluation recordings, new ones for every seed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import sed_eval
import tyro
from tyro.conf import Positional

from psla_jax import audio
from psla_jax.audio import SAMPLE_RATE
from psla_jax.data.datafile import Datafile
from psla_jax.ontology import Vocabulary
from psla_jax.tagging.clip import Wanted
from psla_jax.tagging.events import Rules, find_events
from psla_jax.tagging.tagger import Failure, load
from psla_jax.tagging.windows import beginning_of

SHORTEST, LONGEST = 10.0, 30.0
"""Seconds of a clip."""
GAPS = (-0.5, 3.0)
"""Seconds from the end of one recording to the beginning of the next; they overlap where it is negative."""
NOISE = 1e-3
"""Standard deviation of the noise under everything: 60 dB below full scale."""
AUDIBLE = 0.01
"""A recording begins and ends where its level, over 10 ms, is this fraction of its highest: 40 dB below."""
TUNING_SEED = 1_000_000
THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
WAYS = ("head", "sliding window", "whole clip")
Judge = Callable[[list[str]], Any]
JUDGES: dict[str, Judge] = {
    "event, 0.2 s": lambda names: sed_eval.sound_event.EventBasedMetrics(names, t_collar=0.2, percentage_of_length=0.2),
    "event, 0.5 s": lambda names: sed_eval.sound_event.EventBasedMetrics(names, t_collar=0.5, percentage_of_length=0.2),
    "onset, 0.5 s": lambda names: sed_eval.sound_event.EventBasedMetrics(names, t_collar=0.5, evaluate_offset=False),
    "segment, 1 s": lambda names: sed_eval.sound_event.SegmentBasedMetrics(names, time_resolution=1.0),
}


@dataclass(frozen=True)
class Options:
    """What to measure."""

    data: Positional[str]
    """Where psla prepare fsd50k put its datafiles."""
    model: Positional[str]
    """A model or run directory."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """A set of evaluation clips each."""
    clips: int = 40
    """Of every set."""


@dataclass(frozen=True)
class Source:
    """A recording without its silent ends."""

    waveform: np.ndarray
    """float32 ``(samples,)`` at 16 kHz, with a peak of 1."""
    labels: tuple[int, ...]
    """Its classes, those above them among them."""


@dataclass(frozen=True, order=True)
class Sound:
    """A class that sounds from one moment to another, in seconds."""

    onset: float
    offset: float
    label: int


@dataclass(frozen=True)
class Clip:
    """A clip whose events are known."""

    path: str
    duration: float
    truth: tuple[Sound, ...]


def trimmed(waveform: np.ndarray) -> np.ndarray:
    """A waveform without what is silent before and after it; at the resolution of 10 ms."""
    size = SAMPLE_RATE // 100
    frames = waveform[: len(waveform) // size * size].reshape(-1, size)
    level = np.sqrt(np.mean(np.square(frames), axis=1))
    loud = np.flatnonzero(level >= AUDIBLE * level.max())
    return waveform[loud[0] * size : (loud[-1] + 1) * size]


def sources(datafile: Datafile) -> list[Source]:
    """All recordings of a set that are not silent."""
    found = []
    for i in range(len(datafile)):
        waveform = audio.read(datafile.wav(i))
        peak = np.abs(waveform).max()
        if peak > 0:
            found.append(Source(trimmed(waveform / peak), tuple(map(int, datafile.labels(i)))))
    return found


def build(rng: np.random.Generator, given: Sequence[Source]) -> tuple[np.ndarray, list[Sound]]:
    """A clip's waveform and what sounds in it when."""
    size = int(rng.uniform(SHORTEST, LONGEST) * SAMPLE_RATE)
    waveform = rng.normal(0, NOISE, size).astype(np.float32)
    sounds: list[Sound] = []
    start = int(rng.uniform(0, GAPS[1]) * SAMPLE_RATE)
    while True:
        source = given[int(rng.integers(len(given)))]
        stop = start + len(source.waveform)
        if stop > size:
            return waveform, merged(sounds)
        waveform[start:stop] += source.waveform * np.float32(rng.uniform(0.1, 0.5))
        sounds += [Sound(start / SAMPLE_RATE, stop / SAMPLE_RATE, label) for label in source.labels]
        start = max(start, stop + int(rng.uniform(*GAPS) * SAMPLE_RATE))


def merged(sounds: Sequence[Sound]) -> list[Sound]:
    """The same with those of one class that overlap or touch as one, in order of their onset."""
    joined: dict[int, list[Sound]] = {}
    for sound in sorted(sounds):
        before = joined.setdefault(sound.label, [])
        if before and sound.onset <= before[-1].offset:
            before[-1] = replace(before[-1], offset=max(before[-1].offset, sound.offset))
        else:
            before.append(sound)
    return sorted(sound for of_class in joined.values() for sound in of_class)


def build_set(folder: Path, seed: int, count: int, given: Sequence[Source]) -> list[Clip]:
    """Clips as files in a folder; the same for the same seed."""
    clips = []
    for number in range(count):
        waveform, truth = build(np.random.default_rng([seed, number]), given)
        path = folder / f"{seed}-{number}.wav"
        audio.write_pcm16(path, waveform)
        clips.append(Clip(str(path), len(waveform) / SAMPLE_RATE, tuple(truth)))
    return clips


def timelines(model: str, clips: Sequence[Clip]) -> dict[str, list[np.ndarray]]:
    """By way, the scores of every clip's steps, each ``(steps, classes)``."""
    found: dict[str, list[np.ndarray]] = {way: [] for way in WAYS}
    for way, times in (("head", "head"), ("sliding window", "windows")):
        for state in load(model, times=times).analyse((clip.path for clip in clips), Wanted(timeline=True)):
            assert not isinstance(state, Failure), state
            scores = state.timeline().scores.astype(np.float32)
            found[way].append(scores)
            if times == "windows":
                found["whole clip"].append(np.broadcast_to(state.result().scores, scores.shape))
    return found


def events(scores: np.ndarray, clip: Clip, rules: Rules) -> Iterator[Sound]:
    """What rules make of a timeline; an event of its last step lasts to the end."""
    for span in find_events(scores, rules):
        stop = clip.duration if span.stop == len(scores) else beginning_of(span.stop)
        yield Sound(beginning_of(span.start), stop, span.column)


def f1(
    judge: Judge, vocabulary: Vocabulary, clips: Sequence[Clip], scores: Sequence[np.ndarray], rules: Rules
) -> float:
    """F1 over all events, or segments, of a set."""
    metrics = judge(list(vocabulary.names))
    for clip, timeline in zip(clips, scores):
        metrics.evaluate(
            _for_judge(clip.truth, vocabulary, clip.path),
            _for_judge(events(timeline, clip, rules), vocabulary, clip.path),
        )
    value = metrics.results_overall_metrics()["f_measure"]["f_measure"]
    return 0.0 if np.isnan(value) else float(value)


def _for_judge(sounds: Sequence[Sound] | Iterator[Sound], vocabulary: Vocabulary, path: str) -> list[dict[str, Any]]:
    return [
        {"filename": path, "onset": s.onset, "offset": s.offset, "event_label": vocabulary.names[s.label]}
        for s in sounds
    ]


def main(options: Options) -> None:
    """Builds, tags, tunes, judges, and prints the table."""
    tables = Path(options.data) / "datafiles"
    vocabulary = load(options.model).vocabulary
    splits = {
        split: sources(Datafile.read(tables / f"fsd50k_{split}_full.json", vocabulary)) for split in ("val", "eval")
    }
    with tempfile.TemporaryDirectory() as name:
        tuning = build_set(Path(name), TUNING_SEED, options.clips, splits["val"])
        tested = [build_set(Path(name), seed, options.clips, splits["eval"]) for seed in options.seeds]
        tuning_scores = timelines(options.model, tuning)
        tested_scores = [timelines(options.model, clips) for clips in tested]
    print(f"\nF1 on {options.clips} clips a seed, mean of seeds {options.seeds} (lowest to highest); threshold\n")
    print("| | " + " | ".join(JUDGES) + " |\n|---|" + "---|" * len(JUDGES))
    for way in WAYS:
        cells = []
        for judge in JUDGES.values():
            tried = [f1(judge, vocabulary, tuning, tuning_scores[way], Rules(t)) for t in THRESHOLDS]
            best = Rules(THRESHOLDS[int(np.argmax(tried))])
            found = [f1(judge, vocabulary, clips, scores[way], best) for clips, scores in zip(tested, tested_scores)]
            cells.append(f"{np.mean(found):.3f} ({min(found):.3f} to {max(found):.3f}); {best.threshold:g}")
        print(f"| {way} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main(tyro.cli(Options))
