"""Runs that are too short for their settings are noted before they start."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import sounds
from customs import Network
from flax import nnx
from tiny import build

from psla_jax.config import AggregationConfig, ModelConfig, OptimizerConfig, PretrainingConfig, SamplingConfig
from psla_jax.config_distill import DistillConfig
from psla_jax.models.factory import build_model
from psla_jax.models.initializers import AbstractRngs
from psla_jax.training import setting_notes


def test_settings_without_effect_are_named(tmp_path: Path) -> None:
    fields = {"distill": DistillConfig(weight=0.5), "model": ModelConfig("tiny:build", "mean")}
    config = sounds.config(tmp_path, tmp_path / "run", optimizer=OptimizerConfig(epochs=30, warmup_steps=0), **fields)
    whole = Network(4, nnx.Rngs(0))
    with_head = build_model("efficientnet-tiny", num_classes=4, rngs=AbstractRngs())
    of_teacher = "distill.weight is 0.5, which has no effect without a teacher: name one with distill.teacher or "
    of_teacher += "distill.model"
    of_head = "model.pooling is 'mean', which has no effect: tiny:build is a whole model, and only a backbone gets a "
    of_head += "head"
    assert list(setting_notes.notes(config, whole, 100)) == [of_teacher, of_head]
    assert list(setting_notes.notes(config, with_head, 100)) == [of_teacher]
    sampling = SamplingConfig(time_mask=4, waveform=("gain",), spectrogram=("freq_mixstyle",))
    without_masks = dataclasses.replace(config, distill=DistillConfig(), sampling=sampling)
    assert list(setting_notes.notes(without_masks, with_head, 100)) == [
        "sampling.mixup is 0.5, which has no effect: no step of sampling.waveform takes it",
        "sampling.freq_mask is 48, which has no effect: no step of sampling.spectrogram takes it",
        "sampling.time_mask is 4, which has no effect: no step of sampling.spectrogram takes it",
    ]
    taught = dataclasses.replace(config, distill=DistillConfig("scores.npz", weight=0.5))
    assert list(setting_notes.notes(taught, with_head, 100)) == []


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
    notes = list(setting_notes.notes(config, build(4, nnx.Rngs(0)), steps_per_epoch))
    assert len(notes) == len(expected)
    assert all(note.endswith(end) for note, end in zip(notes, expected)), notes
