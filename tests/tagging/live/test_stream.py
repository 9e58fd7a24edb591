"""The stream against tagging the same audio as a whole, and its latency against sounds at known times."""

from __future__ import annotations

import copy
import functools
import json
import shutil
import threading
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import soxr

import psla_jax
from psla_jax.audio.decode import AudioError
from psla_jax.audio.windows import Grid
from psla_jax.tagging.events import Rules
from psla_jax.tagging.live.stream import Stream, StreamError, Update
from psla_jax.tagging.tagger import Tagger

SIZE = 400 + 160 * 95
GRID = Grid()


@pytest.fixture(scope="module")
def finder(saved, sound):
    """Returns a function from a kind of model and an overlap to a tagger that detects many events in the sound."""

    @functools.cache
    def loaded(kind: str) -> tuple[Tagger, Rules]:
        tagger = psla_jax.load(saved(kind), trust=True, batch_size=1)
        scores = tagger.timeline(sound, 16_000).scores.astype(np.float32)
        return tagger, Rules(np.sort(scores, axis=0)[9:11].mean(axis=0) + 1e-4, release=0.97)

    def find(kind: str, overlap: float = 0.5) -> Tagger:
        tagger, rules = loaded(kind)
        tagger = copy.copy(tagger)  # shares the compiled program
        tagger.options = replace(tagger.options, overlap=overlap, rules=rules)
        return tagger

    return find


def stream_updates(
    tagger: Tagger, samples: np.ndarray, rate: float = 16_000, block: int = 5_000, **options
) -> list[Update]:
    with Stream(tagger, rate, **options) as stream:
        updates = [u for i in range(0, len(samples), block) for u in stream.push(samples[i : i + block])]
        return updates + stream.close()


def ended(updates: list[Update]) -> list[tuple]:
    return sorted((u.event.onset, u.event.offset, u.event.mid, u.event.score) for u in updates if u.kind == "end")


def offline(tagger: Tagger, samples: np.ndarray, rate: float = 16_000) -> list[tuple]:
    return sorted(
        (e.onset, e.offset, e.mid, pytest.approx(e.score, abs=1e-5)) for e in tagger.tag(samples, rate).events
    )


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("overlap", [0.0, 0.7])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_events_are_those_of_the_recording(finder, sound, rate, overlap, early):
    tagger = finder("attention", overlap=overlap)
    samples = sound if rate == 16_000 else soxr.resample(sound, 16_000, rate)
    expected = offline(tagger, samples, rate)
    assert len(expected) > 4
    assert ended(stream_updates(tagger, samples, rate, early=early)) == expected


def test_updates_do_not_depend_on_the_block_size(finder, sound):
    tagger = finder("attention", overlap=0.7)
    samples = soxr.resample(sound, 16_000, 22_050)
    whole = stream_updates(tagger, samples, 22_050, block=10**7)
    assert {u.kind for u in whole} >= {"start", "update", "end"}
    for block in (333, 7_056, 50_000):
        assert stream_updates(tagger, samples, 22_050, block=block) == whole
    stereo = (np.stack([samples, samples], axis=1)[:33_075] * 32_767).astype(np.int16)
    assert stream_updates(tagger, stereo, 22_050, block=1) == stream_updates(tagger, stereo, 22_050, block=33_075)


@pytest.mark.parametrize("length", [SIZE - 1, SIZE, 9_000, 400, 399, 1, 0])
def test_sound_that_is_no_longer_than_a_window(finder, sound, length):
    tagger = finder("attention")
    samples = sound[17_000 : 17_000 + length]
    updates = stream_updates(tagger, samples, block=1_000)
    assert ended(updates) == (offline(tagger, samples) if length >= 400 else [])
    assert {u.id for u in updates if u.kind == "start"} == {u.id for u in updates if u.kind in ("end", "cancel")}


def test_silence(finder):
    tagger = finder("attention")
    quiet = np.zeros(80_000, np.float32)
    assert ended(stream_updates(tagger, quiet)) == offline(tagger, quiet)
    with Stream(tagger) as stream:
        stream.push(quiet)
        assert stream.peak == 0
        stream.push(quiet + 0.5)
        assert stream.peak == 0.5


@pytest.mark.parametrize("kind", ["linear", "custom"])
def test_models_with_other_heads(finder, sound, kind):
    tagger = finder(kind)
    expected = offline(tagger, sound)
    assert expected
    assert ended(stream_updates(tagger, sound)) == expected


def test_an_ensemble_whose_windows_differ(finder, saved, sound, tmp_path):
    shutil.copytree(saved("other"), tmp_path / "longer")
    card = json.loads((tmp_path / "longer" / "model.json").read_text())
    card["frontend"]["target_length"] = 150  # ends within a step
    (tmp_path / "longer" / "model.json").write_text(json.dumps(card))
    models, rules = [saved("attention"), tmp_path / "longer"], finder("attention").options.rules
    tagger = psla_jax.load(models, rules=rules, batch_size=1)
    expected = offline(tagger, sound)
    assert len(expected) > 4
    for early in (True, False):
        assert ended(stream_updates(tagger, sound, early=early)) == expected
    updates = stream_updates(tagger, sound, classes=[1])
    assert ended(updates) == [e for e in expected if e[2] == "/t/high"]


@pytest.mark.parametrize("early", [True, False])
def test_every_event_starts_once_and_ends_once(finder, sound, early):
    updates = stream_updates(finder("attention", overlap=0.7), np.tile(sound, 2), early=early)
    histories: dict[int, list[Update]] = {}
    for update in updates:
        histories.setdefault(update.id, []).append(update)
    assert sorted(histories) == list(range(1, len(histories) + 1))
    for history in histories.values():
        assert [u.kind for u in history[:1]] == ["start"]
        assert {u.kind for u in history[1:-1]} <= {"update"}
        assert history[-1].kind in ("end", "cancel")
        assert len({u.event.mid for u in history}) == 1
        assert all(u.event.onset < u.event.offset <= max(u.position, u.event.offset) for u in history)
    assert [u.position for u in updates] == sorted(u.position for u in updates)
    assert any(u.kind == "cancel" for u in updates) == early, "final events are never cancelled"


def peak_scores(self: Tagger, number: int, window) -> tuple[np.ndarray, np.ndarray]:
    """Replaces the model: the score of the first class is the peak of each frame, the others have score 0.01."""
    count = window.num_frames
    padded = np.zeros(count * GRID.output_samples, np.float32)
    padded[: len(window.samples)] = window.samples[: len(padded)]
    frames = np.full((count, 4), 0.01, np.float32)
    frames[:, 0] = np.abs(padded.reshape(count, -1)).max(axis=1)
    return frames.max(axis=0), frames


def bursts(starts: list[int], length: int, total: int) -> np.ndarray:
    """Returns `total` output frames of silence, with bursts of `length` frames that start at the frames `starts`."""
    sound = np.zeros(total * GRID.output_samples, np.float32)
    for start in starts:
        sound[start * GRID.output_samples : (start + length) * GRID.output_samples] = 0.8
    return sound


@pytest.mark.parametrize(
    "rules",
    [
        Rules(0.5, smooth=1, min_gap=0.0),
        Rules(0.5, smooth=3, min_gap=0.64),
        Rules(0.5, smooth=5, min_gap=1.0, min_duration=0.7),
    ],
    ids=range(3),
)
@pytest.mark.parametrize("overlap", [0.0, 0.4, 0.7])
def test_latency_is_the_maximum_delay(saved, monkeypatch, rules, overlap):
    monkeypatch.setattr(Tagger, "score_window", peak_scores)
    tagger = psla_jax.load(saved("attention"), overlap=overlap, rules=rules)
    starts = list(range(5, 200, 13))  # at every phase of the hop
    sound = bursts(starts, 3, 220)
    for early in (True, False):
        stream = Stream(tagger, early=early)
        updates = stream.push(sound)
        begun = [u for u in updates if u.kind == "start"]
        assert [u.event.onset for u in begun] == pytest.approx([GRID.frame_start(start) for start in starts], abs=0.001)
        late = max(u.position - u.event.onset for u in begun)
        assert late == pytest.approx(stream.latency.start if early else stream.latency.certain, abs=0.002)
        ends = [u for u in updates if u.kind == "end"]
        assert len(ends) == len(starts)
        assert max(u.position - u.event.offset for u in ends) == pytest.approx(stream.latency.end, abs=0.002)


def test_an_event_is_reported_before_the_first_window_is_complete(saved, monkeypatch):
    monkeypatch.setattr(Tagger, "score_window", peak_scores)
    tagger = psla_jax.load(saved("attention"), overlap=0.7, rules=Rules(0.5))
    stream = Stream(tagger)
    (start,) = stream.push(bursts([0], 1, 2)[: GRID.output_samples + 240 - 1]) + stream.push(np.zeros(1))
    assert (start.kind, start.event.onset, start.event.offset, start.sounding) == ("start", 0.0, 0.335, True)
    assert start.position == 0.335


def test_updates_of_a_long_event(saved, monkeypatch):
    monkeypatch.setattr(Tagger, "score_window", peak_scores)
    tagger = psla_jax.load(saved("attention"), overlap=0.7, rules=Rules(0.5))
    sound = bursts([2], 40, 60)
    sound[30 * GRID.output_samples : 42 * GRID.output_samples] = 0.9
    updates = stream_updates(tagger, sound)
    changes = [(u.kind, u.event.offset, round(u.event.score, 2), u.sounding) for u in updates]
    # Positions at which the last spectrogram frame of these output frames is complete.
    now = [(frames * GRID.output_samples + 240) / 16_000 for frames in (3, 19, 31)]
    end = round(GRID.frame_start(42), 3)
    assert [u.event.onset for u in updates] == [round(GRID.frame_start(2), 3)] * 5
    assert changes == [
        ("start", now[0], 0.8, True),
        ("update", now[1], 0.8, True),  # 16 frames longer
        ("update", now[2], 0.9, True),  # with_larger_head
        ("update", end, 0.9, False),  # ended, in the early estimate
        ("end", end, 0.9, False),
    ]


def test_memory_does_not_grow(saved, monkeypatch):
    monkeypatch.setattr(Tagger, "score_window", peak_scores)
    stream = Stream(psla_jax.load(saved("attention"), overlap=0.7, rules=Rules(0.5)), 8_000)
    minute = np.tile(bursts([3], 4, 12)[::2], 16)  # an event every 4 s
    sizes = []
    tracemalloc.start()
    for _ in range(4):
        ends = sum(u.kind == "end" for u in stream.push(minute))
        sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert ends == 16
    assert max(sizes[2:]) < sizes[1] + 20_000


def test_lost_sound_ends_what_was_before_it(saved, monkeypatch):
    monkeypatch.setattr(Tagger, "score_window", peak_scores)
    tagger = psla_jax.load(saved("attention"), overlap=0.7, rules=Rules(0.5))
    stream = Stream(tagger)
    stream.push(bursts([2], 10, 12))
    (end,) = [u for u in stream.skip(60.0) if u.kind == "end"]
    assert (end.id, end.event.onset, end.event.offset) == (1, round(GRID.frame_start(2), 3), 3.84)
    assert stream.position == 63.84
    stream.push(bursts([1], 10, 11))
    (end,) = [u for u in stream.close() if u.kind == "end"]
    assert (end.id, end.event.onset, end.event.offset) == (
        2,
        pytest.approx(63.84 + GRID.frame_start(1), abs=0.001),
        67.36,
    )
    assert stream.peak == pytest.approx(0.8)


BLOCKS = {
    "rank": (np.zeros((2, 3, 4)), "has the shape (2, 3, 4)"),
    "number": (0.5, "has the shape ()"),
    "many": (np.zeros((100, 4_000)), "has the shape (100, 4000)"),
    "half a sample": (b"123", "has 3 bytes"),
    "rate": ((8_000, np.zeros(100)), "has the sample rate 8000, the stream 16000.0"),
    "file": ("a.wav", "is an audio file"),
    "nothing": (None, "is of type NoneType"),
    "ragged": ([[0.0], [0.0, 0.0]], "is not an array"),
    "channels": (np.zeros((100, 2)), "has 2 channels, earlier blocks have 1"),
    "NaN": (np.array([0.1, np.nan]), "not finite"),
    "int64": (np.zeros(100, np.int64), "is of type int64"),
    "text": (np.array(["a", "b"]), "is of type <U1"),
    "scale": (np.full(100, 20_000.0), "scale it to [-1, 1]"),
}


def test_a_bad_block_is_refused_and_the_stream_continues(finder, sound):
    tagger = finder("attention")
    stream, updates = Stream(tagger), []
    for i in range(0, len(sound), 10_000):
        updates += stream.push(sound[i : i + 10_000])
        for block, reason in BLOCKS.values():
            with pytest.raises(AudioError) as caught:
                stream.push(block)
            assert reason in str(caught.value)
            assert str(caught.value).count(". ") == 0
    assert ended(updates + stream.close()) == offline(tagger, sound)


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf"), "16k", True, 10, 1e9])
def test_an_invalid_sample_rate(finder, rate):
    with pytest.raises(AudioError, match="the stream has the sample rate"):
        Stream(finder("attention"), rate)


def test_a_closed_stream(finder, sound):
    reported: list[Update] = []
    stream = Stream(finder("attention"), on_event=reported.append)
    with stream:
        returned = stream.push(sound)
    assert len(reported) > len(returned)
    assert reported[-1].kind in ("end", "cancel")
    assert stream.close() == []
    with pytest.raises(StreamError, match="is closed"):
        stream.push(sound)
    with pytest.raises(StreamError, match="is closed"):
        stream.skip(1.0)
    with pytest.raises(StreamError, match="nan seconds cannot be skipped"):
        Stream(finder("attention")).skip(float("nan"))


def test_a_computation_that_fails_closes_the_stream(finder, sound, monkeypatch):
    stream = Stream(finder("attention"))
    monkeypatch.setattr(Tagger, "score_window", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stream.push(sound)
    with pytest.raises(StreamError, match="is closed"):
        stream.push(sound)
    assert stream.close() == []


def test_it_is_compiled_before_the_first_block(saved, sound, tmp_path, monkeypatch):
    monkeypatch.setenv("PSLA_CACHE", str(tmp_path))
    tagger = psla_jax.load(saved("attention"))
    messages: list[str] = []
    tagger.on_compile = messages.append
    stream = Stream(tagger)
    assert [bool(text) for text in messages] == [True, False]
    assert 0 < stream.latency.compute < 60
    assert stream.latency.load == pytest.approx(stream.latency.compute / 0.64)
    stream.push(sound)
    stream.close()
    assert len(messages) == 2


def test_pushes_of_several_threads_are_serialized(finder):
    stream = Stream(finder("attention"))
    quiet = np.zeros(40_000, np.float32)
    threads = [threading.Thread(target=stream.push, args=(quiet,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stream.position == 10.0
