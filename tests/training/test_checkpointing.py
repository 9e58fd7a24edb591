"""Training checkpoints: restored exactly or refused, and a full disk is reported in one sentence."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psla_jax.models.model_dir import CheckpointError
from psla_jax.runtime.sharding import Placement
from psla_jax.training import checkpointing
from psla_jax.training.checkpointing import RunCheckpoints, SaveError, checksum
from psla_jax.training.run_directory import RunError


def state(factor: float = 1.0) -> dict:
    values = jnp.arange(6, dtype=jnp.float32) * factor
    return {
        "params": {"a": {0: values, 1: values[:1]}},
        "batch_stats": {"mean": values + 1},
        "opt": (jnp.int32(3), {"mu": values * 2}),
        "progress": {"loss": jnp.float32(0.5)},
    }


def saved(directory: Path, *steps: int) -> RunCheckpoints:
    checkpoints = RunCheckpoints(directory)
    for step in steps:
        checkpoints.save(step, state(step), {"rows": [{"mAP": 0.5}], "failed": [1]})
        checkpoints.wait()
    return checkpoints


def assert_state(found: dict, factor: float) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(state())
    jax.tree.map(np.testing.assert_array_equal, found, state(factor))


def test_the_newest_comes_back_exactly_and_two_are_kept(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path / "c", 1, 2, 5)
    assert checkpoints.steps() == [5, 2]
    step, found, notes = checkpoints.latest(state(), print)
    assert (step, notes) == (5, {"rows": [{"mAP": 0.5}], "failed": [1]})
    assert_state(found, 5)
    checkpoints.close()


@pytest.mark.parametrize("devices", [1, 3])
def test_a_checkpoint_comes_back_on_another_number_of_devices(devices: int, tmp_path: Path) -> None:
    before, after = (Placement.over(jax.devices()[:number]) for number in (2, devices))
    checkpoints = RunCheckpoints(tmp_path / "c")
    checkpoints.save(1, before.replicate(state(5)), {})
    checkpoints.wait()
    found = checkpoints.latest(after.replicate(state()), print)
    assert found is not None
    assert_state(found[1], 5)
    assert {leaf.sharding for leaf in jax.tree.leaves(found[1])} == {after.replicated}
    checkpoints.close()


def test_there_may_be_none(tmp_path: Path) -> None:
    assert RunCheckpoints(tmp_path / "c").latest(state(), print) is None


def test_what_a_disk_gives_back_wrong_is_found_out(tmp_path: Path, monkeypatch) -> None:
    saved(tmp_path / "c", 1, 2).close()
    said: list[str] = []
    checkpoints = RunCheckpoints(tmp_path / "c")
    load = checkpoints._checkpointer.load_checkpointables

    def flipped(step, abstract):
        found = load(step, abstract)
        if step == 2:
            found["opt"]["leaves"]["1"] = found["opt"]["leaves"]["1"].at[3].add(1e-6)
        return found

    monkeypatch.setattr(checkpoints._checkpointer, "load_checkpointables", flipped)
    step, found, _ = checkpoints.latest(state(), said.append)
    assert step == 1
    assert_state(found, 1)
    assert len(said) == 1
    assert "2 is damaged (its checksum is wrong): resuming from the previous checkpoint, of step 1" in said[0]
    # The step can be saved again, and the damaged checkpoint is preserved.
    checkpoints.save(2, state(2), {})
    checkpoints.close()
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["1", "2", "damaged_2"]


def test_a_checkpoint_of_an_earlier_version_is_refused_and_left_alone(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(checkpointing, "FORMAT", 1)
    saved(tmp_path / "run" / "checkpoints", 3).close()
    monkeypatch.undo()
    with pytest.raises(RunError, match=r"run was started by an earlier version of psla_jax.*--pretraining\.source"):
        RunCheckpoints(tmp_path / "run" / "checkpoints").latest(state(), print)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["3"]


def test_a_state_of_another_shape_is_no_silent_beginning(tmp_path: Path) -> None:
    saved(tmp_path / "c", 1).close()
    other = {**state(), "batch_stats": {"mean": jnp.zeros(7)}}
    with pytest.raises(CheckpointError, match=r"no earlier one: restore .*c from a copy, or delete it to train from"):
        RunCheckpoints(tmp_path / "c").latest(other, print)
    assert (tmp_path / "c" / "1").is_dir()


@pytest.mark.parametrize("moment", ["save_checkpointables_async", "wait", "close"])
def test_a_full_disk_is_one_sentence_that_names_what_is_whole(tmp_path: Path, monkeypatch, moment: str) -> None:
    checkpoints = saved(tmp_path / "c", 1)

    def full(*_, **__):
        raise ValueError(
            "RESOURCE_EXHAUSTED: Failed writing: \"/a/b\": No space left on device [os_error_code='28']\nX"
        )

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints._checkpointer, moment, full)
        calls = {"wait": checkpoints.wait, "close": checkpoints.close}
        call = calls.get(moment, lambda: checkpoints.save(2, state(2), {}))
        with pytest.raises(SaveError) as raised:
            call()
    assert str(raised.value) == (
        f"a checkpoint could not be written to {tmp_path / 'c'} (No space left on device); the one of step 1 is "
        "intact: free space there, and start the command again to resume."
    )
    checkpoints.close()


def test_a_checksum_is_of_every_bit() -> None:
    before = checksum(state())
    assert before == checksum(state())
    assert before != checksum({**state(), "progress": {"loss": jnp.float32(0.50000006)}})
    assert before != checksum({**state(), "params": {"a": {0: -jnp.arange(6, dtype=jnp.float32), 1: jnp.zeros(1)}}})
