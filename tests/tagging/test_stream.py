"""The stream against the same sound tagged at once, and its latency against sounds at known times."""

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
from psla_jax.audio import AudioError
from psla_jax.tagging.events import Rules
from psla_jax.tagging.stream import Stream, StreamError, Update
from psla_jax.tagging.tagger import Tagger
from psla_jax.tagging.windows import STEP_SAMPLES

SIZE = 400 + 160 * 95


@pytest.fixture(scope="module")
def finder(saved, sound):
    """From a kind of model and an overlap to a tagger that finds many events in the sound."""

    @functools.cache
    def loaded(kind: str) -> tuple[Tagger, Rules]:
        tagger = psla_jax.load(saved(kind), trust=True, batch_size=1)
        scores = tagger.timeline(sound, 16_000).scores.astype(np.float32)
        return tagger, Rules(np.sort(scores, axis=0)[9:11].mean(axis=0) + 1e-4, release=0.97)

    def find(kind: str, overlap: float = 0.5) -> Tagger:
        tagger, rules = loaded(kind)
        tagger = copy.copy(tagger)  # with the same compiled program
        tagger.options = replace(tagger.options, overlap=overlap, rules=rules)
        return tagger

    return find


def heard(tagger: Tagger, samples: np.ndarray, rate: float = 16_000, block: int = 5_000, **options) -> list[Update]:
    with Stream(tagger, rate, **options) as stream:
        updates = [u for i in range(0, len(samples), block) for u in stream.push(samples[i : i + block])]
        return updates + stream.close()


def ended(updates: list[Update]) -> list[tuple]:
    found = [(u.event.onset, u.event.offset, u.event.mid, u.event.score) for u in updates if u.kind == "end"]
    return sorted(found)


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
    assert ended(heard(tagger, samples, rate, early=early)) == expected


def test_blocks_of_any_size_tell_the_same(finder, sound):
    tagger = finder("attention", overlap=0.7)
    samples = soxr.resample(sound, 16_000, 22_050)
    whole = heard(tagger, samples, 22_050, block=10**7)
    assert {u.kind for u in whole} >= {"start", "update", "end"}
    for block in (333, 7_056, 50_000):
        assert heard(tagger, samples, 22_050, block=block) == whole
    stereo = (np.stack([samples, samples], axis=1)[:33_075] * 32_767).astype(np.int16)
    assert heard(tagger, stereo, 22_050, block=1) == heard(tagger, stereo, 22_050, block=33_075)


@pytest.mark.parametrize("length", [SIZE - 1, SIZE, 9_000, 400, 399, 1, 0])
def test_sound_that_is_no_longer_than_a_window(finder, sound, length):
    tagger = finder("attention")
    samples = sound[17_000 : 17_000 + length]
    updates = heard(tagger, samples, block=1_000)
    assert ended(updates) == (offline(tagger, samples) if length >= 400 else [])
    assert {u.id for u in updates if u.kind == "start"} == {u.id for u in updates if u.kind in ("end", "cancel")}


def test_silence(finder):
    tagger = finder("attention")
    quiet = np.zeros(80_000, np.float32)
    assert ended(heard(tagger, quiet)) == offline(tagger, quiet)
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
    assert ended(heard(tagger, sound)) == expected


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
        assert ended(heard(tagger, sound, early=early)) == expected
    few = heard(tagger, sound, classes=[1])
    assert ended(few) == [e for e in expected if e[2] == "/t/high"]


@pytest.mark.parametrize("early", [True, False])
def test_every_event_is_told_once_from_its_start_to_its_end(finder, sound, early):
    updates = heard(finder("attention", overlap=0.7), np.tile(sound, 2), early=early)
    stories: dict[int, list[Update]] = {}
    for update in updates:
        stories.setdefault(update.id, []).append(update)
    assert sorted(stories) == list(range(1, len(stories) + 1))
    for story in stories.values():
        assert [u.kind for u in story[:1]] == ["start"]
        assert {u.kind for u in story[1:-1]} <= {"update"}
        assert story[-1].kind in ("end", "cancel")
        assert len({u.event.mid for u in story}) == 1
        assert all(u.event.onset < u.event.offset <= max(u.heard, u.event.offset) for u in story)
    assert [u.heard for u in updates] == sorted(u.heard for u in updates)
    assert any(u.kind == "cancel" for u in updates) == early, "what is certain is never taken back"


def loud_steps(self: Tagger, number: int, window) -> tuple[np.ndarray, np.ndarray]:
    """In the place of a network: the first class has the loudness of each step, the others are never there."""
    steps = window.steps
    padded = np.zeros(steps * STEP_SAMPLES, np.float32)
    padded[: len(window.samples)] = window.samples[: len(padded)]
    frames = np.full((steps, 4), 0.01, np.float32)
    frames[:, 0] = np.abs(padded.reshape(steps, -1)).max(axis=1)
    return frames.max(axis=0), frames


def bursts(starts: list[int], steps: int, total: int) -> np.ndarray:
    """Sound in some steps, each time for so many."""
    sound = np.zeros(total * STEP_SAMPLES, np.float32)
    for start in starts:
        sound[start * STEP_SAMPLES : (start + steps) * STEP_SAMPLES] = 0.8
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
def test_latency_is_the_longest_that_it_takes(saved, monkeypatch, rules, overlap):
    monkeypatch.setattr(Tagger, "look", loud_steps)
    tagger = psla_jax.load(saved("attention"), overlap=overlap, rules=rules)
    starts = list(range(5, 200, 13))  # at every phase of the hops
    sound = bursts(starts, 3, 220)
    for early in (True, False):
        stream = Stream(tagger, early=early)
        updates = stream.push(sound)
        begun = [u for u in updates if u.kind == "start"]
        assert [u.event.onset for u in begun] == pytest.approx([0.32 * start for start in starts])
        late = max(u.heard - u.event.onset for u in begun)
        assert late == pytest.approx(stream.latency.start if early else stream.latency.certain, abs=0.002)
        over = [u for u in updates if u.kind == "end"]
        assert len(over) == len(starts)
        assert max(u.heard - u.event.offset for u in over) == pytest.approx(stream.latency.end, abs=0.002)


def test_an_event_is_told_before_the_first_window_is_full(saved, monkeypatch):
    monkeypatch.setattr(Tagger, "look", loud_steps)
    tagger = psla_jax.load(saved("attention"), overlap=0.7, rules=Rules(0.5))
    stream = Stream(tagger)
    (start,) = stream.push(bursts([0], 1, 2)[: STEP_SAMPLES + 240 - 1]) + stream.push(np.zeros(1))
    assert (start.kind, start.event.onset, start.event.offset, start.sounding) == ("start", 0.0, 0.32, True)
    assert start.heard == 0.335


def test_what_goes_on_is_told_now_and_then(saved, monkeypatch):
    monkeypatch.setattr(Tagger, "look", loud_steps)
    tagger = psla_jax.load(saved("attention"), overlap=0.7, rules=Rules(0.5))
    sound = bursts([2], 40, 60)
    sound[30 * STEP_SAMPLES : 42 * STEP_SAMPLES] = 0.9
    updates = heard(tagger, sound)
    told = [(u.kind, u.event.onset, u.event.offset, round(u.event.score, 2), u.sounding) for u in updates]
    assert told == [
        ("start", 0.64, 0.96, 0.8, True),
        ("update", 0.64, 6.08, 0.8, True),  # 16 steps longer
        ("update", 0.64, 9.92, 0.9, True),  # louder
        ("update", 0.64, 13.44, 0.9, False),  # over, at first sight
        ("end", 0.64, 13.44, 0.9, False),
    ]


def test_memory_does_not_grow(saved, monkeypatch):
    monkeypatch.setattr(Tagger, "look", loud_steps)
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
    monkeypatch.setattr(Tagger, "look", loud_steps)
    tagger = psla_jax.load(saved("attention"), overlap=0.7, rules=Rules(0.5))
    stream = Stream(tagger)
    stream.push(bursts([2], 10, 12))
    (end,) = [u for u in stream.skip(60.0) if u.kind == "end"]
    assert (end.id, end.event.onset, end.event.offset) == (1, 0.64, 3.84)
    assert stream.heard == 63.84
    stream.push(bursts([1], 10, 11))
    (end,) = [u for u in stream.close() if u.kind == "end"]
    assert (end.id, end.event.onset, end.event.offset) == (2, 64.16, 67.36)
    assert stream.peak == pytest.approx(0.8)


BLOCKS = {
    "rank": (np.zeros((2, 3, 4)), "has the shape (2, 3, 4)"),
    "number": (0.5, "has the shape ()"),
    "turned": (np.zeros((2, 4_000)), "has the shape (2, 4000)"),
    "ragged": ([[0.0], [0.0, 0.0]], "is no array of numbers"),
    "channels": (np.zeros((100, 2)), "has 2 channels, those before it had 1"),
    "NaN": (np.array([0.1, np.nan]), "not finite"),
    "int64": (np.zeros(100, np.int64), "is of type int64"),
    "text": (np.array(["a", "b"]), "is of type <U1"),
    "scale": (np.full(100, 20_000.0), "scale it to [-1, 1]"),
}


def test_a_bad_block_is_refused_and_the_stream_goes_on(finder, sound):
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
def test_a_sample_rate_that_is_none(finder, rate):
    with pytest.raises(AudioError, match="the stream has the sample rate"):
        Stream(finder("attention"), rate)


def test_a_closed_stream(finder, sound):
    told: list[Update] = []
    stream = Stream(finder("attention"), on_event=told.append)
    with stream:
        returned = stream.push(sound)
    assert len(told) > len(returned)
    assert told[-1].kind in ("end", "cancel")
    assert stream.close() == []
    with pytest.raises(StreamError, match="is closed"):
        stream.push(sound)
    with pytest.raises(StreamError, match="is closed"):
        stream.skip(1.0)
    with pytest.raises(StreamError, match="nan seconds cannot be skipped"):
        Stream(finder("attention")).skip(float("nan"))


def test_a_computation_that_fails_closes_the_stream(finder, sound, monkeypatch):
    stream = Stream(finder("attention"))
    monkeypatch.setattr(Tagger, "look", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stream.push(sound)
    with pytest.raises(StreamError, match="is closed"):
        stream.push(sound)
    assert stream.close() == []


def test_it_is_compiled_before_the_first_block(saved, sound):
    tagger = psla_jax.load(saved("attention"))
    said: list[str] = []
    tagger.on_compile = said.append
    stream = Stream(tagger)
    assert [bool(text) for text in said] == [True, False]
    assert 0 < stream.latency.compute < 60
    assert stream.latency.load == pytest.approx(stream.latency.compute / 0.64)
    stream.push(sound)
    stream.close()
    assert len(said) == 2


def test_threads_that_push_wait_for_each_other(finder):
    stream = Stream(finder("attention"))
    quiet = np.zeros(40_000, np.float32)
    threads = [threading.Thread(target=stream.push, args=(quiet,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stream.heard == 10.0
