"""Runs that are too short for their settings are noted before they start."""

from __future__ import annotations

from pathlib import Path

import pytest
import sounds
from flax import nnx
from tiny import build

from psla_jax.config import AggregationConfig, OptimizerConfig, PretrainingConfig
from psla_jax.training import short_runs


@pytest.mark.parametrize(
    ("steps_per_epoch", "optimizer", "other", "expected"),
    [
        (100, OptimizerConfig(epochs=30, warmup_steps=300), {}, []),
        (
            10,
            OptimizerConfig(learning_rate=1e-3, epochs=30, warmup_steps=1000),
            {},
            ["the warm-up of 1,000 steps is longer than the run of 300 steps: the learning rate only reaches 0.0003 of "
             "0.001; use --optimizer.warmup-steps 30, for example"],
        ),
        # The tiny model's momentum is 0.9: after 3 steps 73% of the statistics are the initial ones, after 60 0.2%.
        (
            1,
            OptimizerConfig(epochs=3, warmup_steps=0),
            {},
            ["after the 3 steps of the run, 73% of the running batch statistics are still their initial values, so "
             "scores of single epochs and of their ensemble may be wrong: train for more steps; the weight average "
             "with re-estimated statistics is not affected"],
        ),
        (1, OptimizerConfig(epochs=3, warmup_steps=0), {"aggregation": AggregationConfig(2, 3, False)},
         ["use --aggregation.reestimate True for the weight average"]),
        (1, OptimizerConfig(epochs=3, warmup_steps=0), {"pretraining": PretrainingConfig("imagenet", freeze=True)}, []),
        (1, OptimizerConfig(epochs=3, warmup_steps=0), {"pretraining": PretrainingConfig("runs/other")}, []),
        (20, OptimizerConfig(epochs=3, warmup_steps=0), {}, []),
    ],
)  # fmt: skip
def test_what_needs_more_steps_is_named(tmp_path: Path, steps_per_epoch, optimizer, other, expected) -> None:
    fields = {"aggregation": AggregationConfig(1, 2), **other}
    config = sounds.config(tmp_path, tmp_path / "run", optimizer=optimizer, **fields)
    notes = list(short_runs.notes(config, build(4, nnx.Rngs(0)), steps_per_epoch))
    assert len(notes) == len(expected)
    assert all(note.endswith(end) for note, end in zip(notes, expected)), notes
