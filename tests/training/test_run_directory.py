"""Notes on a run that is continued for more epochs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import sounds

from psla_jax.config import AggregationConfig, OptimizerConfig, to_json
from psla_jax.training.run_directory import CONFIG, extension_notes


@pytest.mark.parametrize("schedule", ["step_decay", "cosine"])
def test_a_schedule_that_depends_on_the_number_of_epochs_is_noted(tmp_path: Path, schedule: str) -> None:
    optimizer = OptimizerConfig(schedule=schedule, epochs=4, warmup_steps=0)
    config = sounds.config(tmp_path, tmp_path, optimizer=optimizer, aggregation=AggregationConfig(1))
    (tmp_path / CONFIG).write_text(to_json(config))
    assert list(extension_notes(tmp_path, config, 5)) == []
    longer = dataclasses.replace(config, optimizer=dataclasses.replace(optimizer, epochs=6))
    notes = list(extension_notes(tmp_path, longer, 5))
    assert notes[0] == "the run of 4 epochs is continued up to epoch 6"
    of_schedule = (
        "the schedule cosine depends on the number of epochs: those so far were trained with the learning rates of a "
        "run of 4, so the result is not that of a run started with 6 epochs"
    )
    assert notes[1:] == ([of_schedule] if schedule == "cosine" else [])
