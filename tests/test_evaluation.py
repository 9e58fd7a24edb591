"""Scoring: every clip once, whatever the batch size, and files that come back as they were."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx
from tiny import build

from psla_jax.evaluation import Scores, ScoresError, score
from psla_jax.frontend import Frontend
from psla_jax.training import Placement, split_model

FRONTEND = Frontend(target_length=40)


def stream(clips: int, batch: int, missing: tuple[int, ...] = ()):
    rng = np.random.default_rng(0)
    waveforms = rng.normal(0, 0.1, (clips, FRONTEND.num_samples)).astype(np.float32)
    labels = (rng.random((clips, 5)) < 0.4).astype(np.float32)
    for start in range(0, clips, batch):
        rows = np.arange(start, start + batch)
        there = rows < clips
        take = np.minimum(rows, clips - 1)
        yield {
            "waveform": waveforms[take] * there[:, None],
            "num_samples": np.where(there, FRONTEND.num_samples, 0).astype(np.int32),
            "labels": labels[take] * there[:, None],
            "valid": (there & ~np.isin(rows, missing)).astype(np.float32),
            "clip": np.where(there, rows, -1),
        }


def scored(clips: int, batch: int, devices: int = 1, missing: tuple[int, ...] = ()) -> Scores:
    model = build(5, nnx.Rngs(0))
    place = Placement.over(jax.devices()[:devices])
    weights = jax.device_put(split_model(model), place.replicated)
    batches = stream(clips, batch, missing)
    return score((nnx.graphdef(model), *weights), FRONTEND, batches, place.put, lambda i: f"clip{i}.wav")


def test_every_clip_is_scored_once_for_any_batch_size_and_number_of_devices():
    one, other, spread = scored(7, 4), scored(7, 7), scored(7, 4, devices=4)
    assert one.clips.tolist() == [f"clip{i}.wav" for i in range(7)]
    for more in (other, spread):
        np.testing.assert_array_equal(one.clips, more.clips)
        np.testing.assert_array_equal(one.labels, more.labels)
        np.testing.assert_allclose(one.scores, more.scores, atol=1e-6)


def test_a_clip_that_cannot_be_read_is_left_out_and_named():
    scores = scored(7, 4, missing=(2,))
    assert scores.skipped == ("clip2.wav",)
    assert "clip2.wav" not in scores.clips
    np.testing.assert_allclose(scores.scores, np.delete(scored(7, 4).scores, 2, axis=0), atol=1e-7)


def test_scores_come_back_from_their_file(tmp_path):
    scores = scored(5, 4, missing=(1,))
    scores.save(tmp_path / "deep" / "scores.npz")
    back = Scores.load(tmp_path / "deep" / "scores.npz")
    for name in ("clips", "scores", "labels"):
        np.testing.assert_array_equal(getattr(back, name), getattr(scores, name))
    assert back.skipped == scores.skipped
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["scores.npz"]


def test_a_file_that_holds_no_scores_is_named(tmp_path):
    (tmp_path / "scores.npz").write_bytes(b"PK nonsense")
    with pytest.raises(ScoresError, match=r"scores\.npz does not hold scores"):
        Scores.load(tmp_path / "scores.npz")


def test_nothing_to_score_is_an_error():
    with pytest.raises(ScoresError, match="no clip to score"):
        scored(0, 4)
