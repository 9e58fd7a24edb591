"""Kept traces: the same numbers as without, found again by another process, and never in place of something else."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from psla_jax import cache, traces
from psla_jax.traces import Traced


@pytest.fixture
def kept(tmp_path: Path):
    """A directory in which traces are kept during the test."""
    cache.keep(tmp_path)
    yield tmp_path / "traces"
    cache.keep(None)


class Counted:
    """A function of a tree that counts how often it is traced."""

    def __init__(self, factor: float = 2.0) -> None:
        self.factor, self.traces = factor, 0

    def __call__(self, state: dict, x: jax.Array) -> tuple[dict, jax.Array]:
        self.traces += 1
        return {0: state[0] + x.sum(), 1: state[1]}, jnp.sin(x) * self.factor


def traced(function: Counted, identity: dict | None, **options) -> Traced:
    return Traced(function, result=lambda state, x: (state, 0), identity=identity, **options)


def arguments(size: int = 3) -> tuple[dict, np.ndarray]:
    return {0: np.float32(1.0), 1: np.arange(2, dtype=np.int32)}, np.linspace(0, 1, size, dtype=np.float32)


def test_a_second_process_need_not_trace(kept: Path) -> None:
    first, second, plain = Counted(), Counted(), Counted()
    results = [traced(which, {"name": "it"})(*arguments()) for which in (first, second)]
    assert (first.traces, second.traces) == (1, 0)
    for got in results:
        jax.tree.map(np.testing.assert_array_equal, got, jax.jit(plain)(*arguments()))
        assert set(got[0]) == {0, 1}
    assert len(list(kept.iterdir())) == 1


@pytest.mark.parametrize("change", ["identity", "shape", "dtype", "setting"])
def test_what_decides_the_program_decides_the_trace(kept: Path, change: str) -> None:
    traced(Counted(), {"name": "it"})(*arguments())
    other = Counted()
    state, x = arguments(4 if change == "shape" else 3)
    if change == "setting":
        with jax.numpy_rank_promotion("raise"):
            traced(other, {"name": "it"})(state, x)
    else:
        x = x.astype(np.float16) if change == "dtype" else x
        traced(other, {"name": "that" if change == "identity" else "it"})(state, x)
    assert other.traces == 1


def test_a_changed_source_makes_all_traces_anew(kept: Path, monkeypatch) -> None:
    traced(Counted(), {"name": "it"})(*arguments())
    monkeypatch.setattr(traces, "_installation", lambda: ["another source"])
    other = Counted(3.0)
    _, result = traced(other, {"name": "it"})(*arguments())
    np.testing.assert_allclose(result, 3 * np.sin(arguments()[1]), rtol=1e-6)


@pytest.mark.parametrize("spoil", ["flipped", "cut", "empty"])
def test_a_damaged_trace_is_made_again(kept: Path, spoil: str) -> None:
    traced(Counted(), {"name": "it"})(*arguments())
    (file,) = kept.iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes({"flipped": content, "cut": content[: len(content) // 2], "empty": b""}[spoil])
    again, after = Counted(), Counted()
    traced(again, {"name": "it"})(*arguments())
    traced(after, {"name": "it"})(*arguments())
    assert (again.traces, after.traces) == (1, 0)


def test_what_cannot_be_named_and_what_is_not_wanted_is_not_kept(kept: Path) -> None:
    traced(Counted(), None)(*arguments())
    cache.keep(None)
    traced(Counted(), {"name": "it"})(*arguments())
    assert not kept.exists()


def test_a_full_or_forbidden_disk_only_costs_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache.keep(tmp_path / "file")
    try:
        _, result = traced(Counted(), {"name": "it"})(*arguments())
    finally:
        cache.keep(None)
    np.testing.assert_allclose(result, 2 * np.sin(arguments()[1]), rtol=1e-6)


def test_old_traces_go(kept: Path, monkeypatch) -> None:
    monkeypatch.setattr(traces, "KEPT", 2)
    for number in range(4):
        traced(Counted(), {"name": number})(*arguments())
    assert len(list(kept.iterdir())) == 2
    last = Counted()
    traced(last, {"name": 3})(*arguments())
    assert last.traces == 0


@pytest.mark.parametrize("devices", [2, 4])
def test_over_several_devices_and_with_donated_memory(kept: Path, devices: int) -> None:
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    whole, split = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((), ("data",)))
    wanted = jax.jit(Counted())(*arguments(8))
    for expected in (1, 0):
        which = Counted()
        program = traced(which, {"name": "it"}, donate=0, out_shardings=(whole, whole))
        state, x = arguments(8)
        state = jax.device_put(state, whole)
        result = program(state, jax.device_put(x, split))
        assert which.traces == expected
        assert state[0].is_deleted()
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), result, wanted)
        assert (
            "all-reduce"
            in traced(which, {"name": "it"}, out_shardings=(whole, whole))
            .lower(jax.device_put(arguments()[0], whole), jax.device_put(x, split))
            .compile()
            .as_text()
        )


def test_what_was_prepared_is_what_the_call_runs() -> None:
    function = Counted()
    program = traced(function, None)
    program.prepare(*jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments()))
    jax.tree.map(np.testing.assert_array_equal, program(*arguments()), jax.jit(Counted())(*arguments()))
    assert function.traces == 1


def test_what_was_prepared_in_vain_changes_nothing() -> None:
    program = traced(Counted(), None)
    program.prepare(*arguments(5))
    jax.tree.map(np.testing.assert_array_equal, program(*arguments(3)), jax.jit(Counted())(*arguments(3)))


def test_what_fails_while_it_is_prepared_is_said_by_the_call() -> None:
    def fails(state: dict, x: jax.Array) -> None:
        raise ValueError("no such thing")

    program = Traced(fails, result=lambda *_: 0, identity=None)
    program.prepare(*arguments())
    with pytest.raises(ValueError, match="no such thing"):
        program(*arguments())
