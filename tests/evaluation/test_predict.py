"""Scoring of a set of clips, and files of scores."""

from __future__ import annotations

import numpy as np
import pytest
import sounds
import tiny
from scoring import scored

import psla_jax
from psla_jax.evaluation.predict import predict
from psla_jax.evaluation.scores import Scores, ScoresError


def test_every_clip_is_scored_once_for_any_batch_size_and_number_of_devices():
    expected = scored(7, 4)
    assert expected.clips.tolist() == [f"clip{i}.wav" for i in range(7)]
    for scores in (scored(7, 7), scored(7, 4, devices=4)):
        np.testing.assert_array_equal(scores.clips, expected.clips)
        np.testing.assert_array_equal(scores.labels, expected.labels)
        np.testing.assert_allclose(scores.scores, expected.scores, atol=1e-6)


def test_a_data_set_of_the_loader_is_scored_as_by_evaluate(tmp_path):
    sounds.make(tmp_path)
    model = psla_jax.load_model(tiny.save(tmp_path / "model"))
    data = psla_jax.read_datafile(tmp_path / "evaluation.json", sounds.VOCABULARY)
    batches = psla_jax.loader(data, model.frontend, batch_size=4)
    ours = predict(model.network, model.frontend, batches)
    assert ours.clips.tolist() == [str(clip) for clip in range(len(data))]
    theirs = psla_jax.evaluate(tmp_path / "model", data.source, save=tmp_path / "scores.npz", bootstrap=0)
    saved = Scores.load(tmp_path / "scores.npz")
    np.testing.assert_allclose(ours.scores, saved.scores, atol=1e-6)
    np.testing.assert_array_equal(ours.labels, saved.labels)
    assert ours.metrics().mAP == pytest.approx(theirs.ensemble.mAP, abs=1e-6)
    exclusive = predict(model.network, model.frontend, batches, exclusive=True, clip_id=data.clip_id)
    np.testing.assert_allclose(exclusive.scores.sum(axis=1), 1.0, atol=1e-6)
    assert exclusive.clips.tolist() == [data.clip_id(clip) for clip in range(len(data))]


def test_an_unreadable_clip_is_excluded_and_named():
    scores = scored(7, 4, missing=(2,))
    assert scores.skipped == ("clip2.wav",)
    assert "clip2.wav" not in scores.clips
    np.testing.assert_allclose(scores.scores, np.delete(scored(7, 4).scores, 2, axis=0), atol=1e-7)


def test_scores_survive_a_round_trip(tmp_path):
    scores = scored(5, 4, missing=(1,))
    scores.save(tmp_path / "deep" / "scores.npz")
    loaded = Scores.load(tmp_path / "deep" / "scores.npz")
    for name in ("clips", "scores", "labels"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(scores, name))
    assert loaded.skipped == scores.skipped
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["scores.npz"]


def test_a_damaged_file_of_scores_is_named(tmp_path):
    (tmp_path / "scores.npz").write_bytes(b"PK nonsense")
    with pytest.raises(ScoresError, match=r"scores\.npz does not hold scores"):
        Scores.load(tmp_path / "scores.npz")


def test_nothing_to_score_is_an_error():
    with pytest.raises(ScoresError, match="no clip to score"):
        scored(0, 4)


def test_only_unreadable_clips_are_an_error_that_names_one():
    with pytest.raises(ScoresError, match=r"none of the 5 clips can be read, such as clip0\.wav: correct the paths"):
        scored(5, 4, missing=tuple(range(5)))
