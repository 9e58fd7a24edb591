"""Scoring of a set of clips, and files of scores."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx
from tiny import build

from psla_jax.audio.frontend import Frontend
from psla_jax.evaluation.predict import Scores, ScoresError, score
from psla_jax.models.state import split_model
from psla_jax.runtime.sharding import Placement

FRONTEND = Frontend(target_length=40)


def stream(clips: int, batch: int, missing: tuple[int, ...] = ()):
    rng = np.random.default_rng(0)
    waveforms = rng.normal(0, 0.1, (clips, FRONTEND.num_samples)).astype(np.float32)
    labels = (rng.random((clips, 5)) < 0.4).astype(np.float32)
    for start in range(0, clips, batch):
        rows = np.arange(start, start + batch)
        exists = rows < clips
        indices = np.minimum(rows, clips - 1)
        yield {
            "waveform": waveforms[indices] * exists[:, None],
            "num_samples": np.where(exists, FRONTEND.num_samples, 0).astype(np.int32),
            "labels": labels[indices] * exists[:, None],
            "valid": (exists & ~np.isin(rows, missing)).astype(np.float32),
            "clip": np.where(exists, rows, -1),
        }


def scored(clips: int, batch: int, devices: int = 1, missing: tuple[int, ...] = ()) -> Scores:
    model = build(5, nnx.Rngs(0))
    placement = Placement.over(jax.devices()[:devices])
    weights = jax.device_put(split_model(model), placement.replicated)
    batches = stream(clips, batch, missing)
    return score((nnx.graphdef(model), *weights), FRONTEND, batches, placement.shard_batch, lambda i: f"clip{i}.wav")


def test_every_clip_is_scored_once_for_any_batch_size_and_number_of_devices():
    expected = scored(7, 4)
    assert expected.clips.tolist() == [f"clip{i}.wav" for i in range(7)]
    for scores in (scored(7, 7), scored(7, 4, devices=4)):
        np.testing.assert_array_equal(scores.clips, expected.clips)
        np.testing.assert_array_equal(scores.labels, expected.labels)
        np.testing.assert_allclose(scores.scores, expected.scores, atol=1e-6)


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
