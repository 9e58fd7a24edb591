"""Recorded steps: when a recording begins and ends, and how long the device waited in it."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from psla_jax.training import profiling
from psla_jax.training.profiling import WARMUP_STEPS, Profile, _idle_time_of, idle_time


def test_waits_are_the_time_that_nothing_covers() -> None:
    found = _idle_time_of([(0, 4e9), (1e9, 2e9), (5e9, 6e9), (8e9, 10e9)])
    assert found.seconds == 10
    assert found.busy == pytest.approx(0.7)
    assert found.longest == pytest.approx(2)


def test_the_chosen_steps_are_recorded_and_reported(tmp_path: Path) -> None:
    settled, said = [], []
    profile = Profile(tmp_path, steps=3, started=40)
    work = jax.jit(lambda x: jnp.sin(x @ x).sum())
    x = jnp.ones((200, 200))
    for step in range(40, 40 + WARMUP_STEPS + 6):
        profile.before(step, lambda step=step: settled.append(step), said.append)
        work(x).block_until_ready()
    profile.finish(lambda: settled.append(-1), said.append)
    assert settled == [40 + WARMUP_STEPS, 40 + WARMUP_STEPS + 3]
    assert len(said) == 1
    assert "busy" in said[0]
    found = idle_time(tmp_path)
    assert found is not None
    assert 0 < found.busy <= 1


def test_a_recording_ends_with_its_epoch(tmp_path: Path) -> None:
    said = []
    profile = Profile(tmp_path, steps=100, started=0)
    for step in range(WARMUP_STEPS + 2):
        profile.before(step, lambda: None, said.append)
        jnp.sin(jnp.ones(100)).block_until_ready()
    profile.finish(lambda: None, said.append)
    assert len(said) == 1


def test_without_steps_nothing_is_recorded(tmp_path: Path) -> None:
    profile = Profile(tmp_path, steps=0, started=0)
    for step in range(WARMUP_STEPS + 2):
        profile.before(step, lambda: None, lambda text: None)
    profile.finish(lambda: None, lambda text: None)
    assert list(tmp_path.iterdir()) == []
    assert idle_time(tmp_path) is None


def test_a_recording_without_events_of_a_device_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "CPU_EXECUTION_EVENT", "as a later release may call it")
    said = []
    profile = Profile(tmp_path, steps=1, started=0)
    for step in range(WARMUP_STEPS + 2):
        profile.before(step, lambda: None, said.append)
        jnp.sin(jnp.ones(100)).block_until_ready()
    assert len(said) == 1
    assert "no device events" in said[0]
