"""Clips cut into segments, and the two commands that distill them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sounds
import tiny

from psla_jax.audio.decode import write_pcm16
from psla_jax.audio.segments import read
from psla_jax.config import RunConfig
from psla_jax.config_distill import DistillConfig
from psla_jax.config_fields import ConfigError
from psla_jax.data import datafile
from psla_jax.data.datafile import Datafile, Record
from psla_jax.data.segmented import cut
from psla_jax.evaluation.scores import Scores
from psla_jax.training import loop
from psla_jax.vocabulary.vocabulary import Vocabulary

VOCABULARY = Vocabulary(("/t/a", "/t/b"), ("A", "B"))
SECONDS = {"long": 2.6, "rest": 2.2, "exact": 2.0, "short": 0.4, "one": 1.4}


@pytest.fixture
def data(tmp_path: Path) -> Datafile:
    rng = np.random.default_rng(0)
    for name, seconds in SECONDS.items():
        write_pcm16(tmp_path / f"{name}.wav", rng.normal(0, 0.1, round(16_000 * seconds)).astype(np.float32))
    records = [
        Record("long.wav", ("/t/a", "/t/b")), Record("rest.wav", ()), Record("exact.wav", ("/t/b",)),
        Record("short.wav", ("/t/a",)), Record("gone.wav", ("/t/a",)), Record("one.wav", ("/t/b",)),
        Record("long.wav", ("/t/b",), 0.3, 2.0),
    ]  # fmt: skip
    datafile.write(tmp_path / "all.json", records)
    return Datafile.read(tmp_path / "all.json", VOCABULARY)


def test_every_clip_is_cut_into_segments_with_its_labels(data):
    pieces = cut(data, 1.0)
    names = [pieces.clip_id(clip).rpartition("/")[2] for clip in range(len(pieces))]
    expected = {
        "long.wav#t=0,1": [0, 1], "long.wav#t=1,2": [0, 1], "long.wav#t=2": [0, 1], "rest.wav#t=0,1": [],
        "rest.wav#t=1,2": [], "exact.wav#t=0,1": [1], "exact.wav#t=1,2": [1], "short.wav": [0], "gone.wav": [0],
        "one.wav": [1], "long.wav#t=0.3,1.3": [1], "long.wav#t=1.3,2": [1],
    }  # fmt: skip
    assert dict(zip(names, (pieces.labels(clip).tolist() for clip in range(len(pieces))))) == expected
    whole = read(data.audio(0))
    np.testing.assert_array_equal(np.concatenate([read(pieces.audio(clip)) for clip in range(3)]), whole)
    assert pieces.class_counts().tolist() == [5, 8]
    assert cut(data, 0) is data


def test_a_shared_copy_has_the_segments(data, tmp_path):
    shared = cut(data, 1.0).share(tmp_path / "index")
    other = cut(data, 0.5).share(tmp_path / "index")
    assert [shared.clip_id(clip) for clip in range(3)] == [cut(data, 1.0).clip_id(clip) for clip in range(3)]
    assert len(other) > len(shared)


def test_a_segment_too_short_to_be_heard_is_refused():
    with pytest.raises(ConfigError, match=r"distill.segments is 0.01: use 0.1 s or more"):
        RunConfig(distill=DistillConfig(segments=0.01))


def test_a_training_on_segments_takes_the_scores_of_segments(tmp_path):
    """`psla evaluate --segments` and `psla train --distill.segments`; whole clips have other ids."""
    from psla_jax.aggregation.evaluate_models import evaluate

    sounds.make(tmp_path / "sounds")
    model = tiny.save(tmp_path / "model", "tiny:build")
    scores = tmp_path / "teacher.npz"
    arguments = {"bootstrap": 0, "trust": True, "save": scores, "segments": 0.2}
    evaluate(model, tmp_path / "sounds" / "train.json", **arguments)
    segments = len(Scores.load(scores).clips)
    assert segments > 2 * sounds.SIZES["train"]
    settings = {"teacher": str(scores), "segments": 0.2}
    config = sounds.config(tmp_path / "sounds", tmp_path / "run", distill=DistillConfig(**settings))
    loop.train(config)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert f"scores of {segments:,} of {segments:,} training clips" in log
