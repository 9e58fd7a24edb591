"""Kept programs: the same numbers as without, found again by another process, and never in place of something else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from psla_jax import cache, kept_programs
from psla_jax.kept_programs import Program


@pytest.fixture
def kept(tmp_path: Path):
    """A directory in which programs are kept during the test."""
    cache.keep(tmp_path)
    yield tmp_path / "programs"
    cache.keep(None)
    kept_programs.expect({})  # Nothing is kept any more, so nothing is expected.


class Counted:
    """A function of a tree that counts how often it is traced."""

    def __init__(self, factor: float = 2.0) -> None:
        self.factor, self.traces = factor, 0

    def __call__(self, state: dict, x: jax.Array) -> tuple[dict, jax.Array]:
        self.traces += 1
        return {0: state[0] + x.sum(), 1: state[1]}, jnp.sin(x) * self.factor


def program(function: Counted, identity: dict | None, **options) -> Program:
    return Program(function, result=lambda state, x: (state, 0), identity=identity, **options)


def arguments(size: int = 3) -> tuple[dict, np.ndarray]:
    return {0: np.float32(1.0), 1: np.arange(2, dtype=np.int32)}, np.linspace(0, 1, size, dtype=np.float32)


def in_a_process(code: str, directory: Path) -> list[str]:
    """What a process prints, word by word, that is told the directory to keep things in."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", code, str(directory)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()


def test_a_second_process_need_not_trace(kept: Path) -> None:
    first, second, plain = Counted(), Counted(), Counted()
    results = [program(which, {"name": "it"})(*arguments()) for which in (first, second)]
    assert (first.traces, second.traces) == (1, 0)
    for got in results:
        jax.tree.map(np.testing.assert_array_equal, got, jax.jit(plain)(*arguments()))
        assert set(got[0]) == {0, 1}
    assert sorted(x.suffix for x in kept.iterdir()) == [".name", ".xla"]


def test_what_is_compiled_is_announced_and_what_is_loaded_is_not(kept: Path) -> None:
    said: list[str] = []
    for who, identity in (("first", {"name": "it"}), ("second", {"name": "it"}), ("unnamed", None)):
        program(Counted(), identity).compiled(*arguments(), announce=lambda who=who: said.append(who))
    assert said == ["first", "unnamed"]


@pytest.mark.parametrize("change", ["identity", "shape", "dtype", "setting", "compiler"])
def test_what_decides_a_program_decides_which_one_is_found(kept: Path, change: str) -> None:
    program(Counted(), {"name": "it"})(*arguments())
    other = Counted()
    state, x = arguments(4 if change == "shape" else 3)
    if change == "setting":
        with jax.numpy_rank_promotion("raise"):
            program(other, {"name": "it"})(state, x)
    elif change == "compiler":
        jax.config.update("jax_disable_most_optimizations", True)
        try:
            program(other, {"name": "it"})(state, x)
        finally:
            jax.config.update("jax_disable_most_optimizations", False)
    else:
        x = x.astype(np.float16) if change == "dtype" else x
        program(other, {"name": "that" if change == "identity" else "it"})(state, x)
    assert other.traces == 1
    assert len(list(kept.glob("*.xla"))) == (1 if change == "identity" else 2)


@pytest.mark.parametrize("factor", [2.0, 3.0])
def test_after_a_change_of_the_source_what_is_lowered_decides(kept: Path, monkeypatch, factor: float) -> None:
    program(Counted(), {"name": "it"})(*arguments())
    monkeypatch.setattr(kept_programs, "_source", lambda: "another one")
    for traces in (1, 0):
        other = Counted(factor)
        _, result = program(other, {"name": "it"})(*arguments())
        np.testing.assert_allclose(result, factor * np.sin(arguments()[1]), rtol=1e-6)
        assert other.traces == traces
    assert len(list(kept.glob("*.xla"))) == (1 if factor == 2.0 else 2)


@pytest.mark.parametrize("file", ["xla", "name"])
@pytest.mark.parametrize("spoil", ["flipped", "cut", "empty", "other"])
def test_a_damaged_program_is_made_again(kept: Path, file: str, spoil: str) -> None:
    program(Counted(), {"name": "it"})(*arguments())
    (place,) = kept.glob(f"*.{file}")
    content = bytearray(place.read_bytes())
    content[len(content) // 2] ^= 128
    place.write_bytes({"flipped": content, "cut": content[: len(content) // 2], "empty": b"", "other": b"\0"}[spoil])
    for traces in (1, 0):
        which = Counted()
        _, result = program(which, {"name": "it"})(*arguments())
        np.testing.assert_allclose(result, 2 * np.sin(arguments()[1]), rtol=1e-6)
        assert which.traces == traces


def test_what_jax_has_in_its_own_cache_is_not_kept_and_runs(kept: Path, tmp_path: Path) -> None:
    """XLA writes a program that it has loaded without its functions."""
    found = [in_a_process(CACHED_BY_JAX, tmp_path) for _ in range(3)]
    assert found == [["False", "1.0"], ["True", "1.0"], ["True", "1.0"]]
    assert list(kept.glob("*.xla")) == []


def test_what_cannot_be_named_and_what_is_not_wanted_is_not_kept(kept: Path) -> None:
    program(Counted(), None)(*arguments())
    cache.keep(None)
    program(Counted(), {"name": "it"})(*arguments())
    assert not kept.exists()


def test_a_full_or_forbidden_disk_only_costs_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache.keep(tmp_path / "file")
    try:
        _, result = program(Counted(), {"name": "it"})(*arguments())
    finally:
        cache.keep(None)
    np.testing.assert_allclose(result, 2 * np.sin(arguments()[1]), rtol=1e-6)


@pytest.mark.parametrize("devices", [2, 4])
def test_over_several_devices_and_with_donated_memory(kept: Path, devices: int) -> None:
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    whole, split = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((), ("data",)))
    wanted = jax.jit(Counted())(*arguments(8))
    for expected in (1, 0):
        which = Counted()
        step = program(which, {"name": "it"}, donate_argnums=0, out_shardings=(whole, whole))
        state, x = arguments(8)
        state = jax.device_put(state, whole)
        result = step(state, jax.device_put(x, split))
        assert which.traces == expected
        assert state[0].is_deleted()
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), result, wanted)
        assert (
            "all-reduce"
            in program(which, {"name": "it"}, out_shardings=(whole, whole))
            .lower(jax.device_put(arguments()[0], whole), jax.device_put(x, split))
            .compile()
            .as_text()
        )


@pytest.mark.parametrize("identity", [None, {"name": "it"}])
def test_what_was_prepared_is_what_the_call_runs(kept: Path, identity: dict | None) -> None:
    function = Counted()
    step = program(function, identity)
    step.prepare(*jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments()))
    jax.tree.map(np.testing.assert_array_equal, step(*arguments()), jax.jit(Counted())(*arguments()))
    assert function.traces == 1


@pytest.mark.parametrize("identity", [None, {"name": "it"}])
def test_what_was_prepared_in_vain_changes_nothing(kept: Path, identity: dict | None) -> None:
    step = program(Counted(), identity)
    step.prepare(*arguments(5))
    jax.tree.map(np.testing.assert_array_equal, step(*arguments(3)), jax.jit(Counted())(*arguments(3)))


@pytest.mark.parametrize("identity", [None, {"name": "it"}])
def test_what_fails_while_it_is_prepared_is_said_by_the_call(kept: Path, identity: dict | None) -> None:
    def fails(state: dict, x: jax.Array) -> None:
        raise ValueError("no such thing")

    step = Program(fails, result=lambda *_: 0, identity=identity)
    step.prepare(*arguments())
    with pytest.raises(ValueError, match="no such thing"):
        step(*arguments())


def test_what_was_needed_last_time_is_loaded_before_it_is_asked_for(kept: Path) -> None:
    kept_programs.expect({"train": "a run"})
    program(Counted(), {"name": "it"})(*arguments())
    kept_programs.expect({"train": "a run"})
    (loading,) = kept_programs._use.loading.values()
    loading.result()
    for file in kept.glob("*.xla"):
        file.unlink()
    again, other = Counted(), Counted()
    jax.tree.map(
        np.testing.assert_array_equal,
        program(again, {"name": "it"})(*arguments()),
        jax.jit(other)(*arguments()),
    )
    assert (again.traces, other.traces) == (0, 1)


def test_a_process_that_needs_more_than_the_last_one_remembers_all_of_it(kept: Path) -> None:
    for names in ("a", "ab", "ab"):
        kept_programs.expect({"tag": "a recording"})
        for name in names:
            program(Counted(ord(name)), {"name": name})(*arguments())
    kept_programs.expect({"tag": "a recording"})
    assert len(kept_programs._use.known) == 2


def test_devices_that_cannot_say_their_topology_are_known_by_their_kind(monkeypatch) -> None:
    def unable(devices: object) -> None:
        raise NotImplementedError

    said = kept_programs._platform.__wrapped__()
    monkeypatch.setattr(kept_programs.xla_client, "get_topology_for_devices", unable)
    assert [*kept_programs._platform.__wrapped__()[:-1], said[-1]] == said
    assert said[-1] != ""


@pytest.mark.parametrize("wrong", ["another program", "no program", "empty", "damaged"])
def test_a_wrong_expectation_costs_time_alone(kept: Path, wrong: str) -> None:
    kept_programs.expect({"train": "a run"})
    program(Counted(), {"name": "it"})(*arguments())
    (expected,) = kept.glob("*.use")
    if wrong == "another program":
        kept_programs.expect({"train": "another run"})
        program(Counted(), {"name": "that"})(*arguments())
        (other,) = {x.stem for x in kept.glob("*.name")} - {expected.read_text()}
        expected.write_text(other)
    else:
        expected.write_bytes({"no program": b"none", "empty": b"", "damaged": b"\xff\xfe\x00"}[wrong])
    for _ in range(2):
        kept_programs.expect({"train": "a run"})
        which = Counted()
        _, result = program(which, {"name": "it"})(*arguments())
        np.testing.assert_allclose(result, 2 * np.sin(arguments()[1]), rtol=1e-6)
        assert which.traces == 0
    assert kept_programs._use.known == expected.read_text().split()
    assert kept_programs._use.loading == {}


CACHED_BY_JAX = """
import sys
from pathlib import Path
import jax
import numpy as np
from psla_jax import cache, kept_programs
jax.config.update("jax_compilation_cache_dir", sys.argv[1] + "/xla")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
cache.keep(Path(sys.argv[1]))
import test_kept_programs as test
_, x = test.program(test.Counted(0.5), {"name": "it"})({0: np.float32(1), 1: np.zeros(2)}, np.full(2, np.pi / 2))
for file in Path(sys.argv[1], "programs").glob("*.xla"):
    file.unlink()
print(kept_programs._from_jax.found, float(x.sum()))
"""


ANOTHER_PROCESS = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
from pathlib import Path
from psla_jax import cache, kept_programs
cache.keep(Path(sys.argv[1]))
kept_programs.expect({"it": "the same"})
import test_kept_programs as test
function = test.Counted()
state, x = test.program(function, {"name": "it"})(*test.arguments())
print(function.traces, len(kept_programs._use.known), float(x.sum()))
"""


def test_another_process_finds_it(tmp_path: Path) -> None:
    found = [in_a_process(ANOTHER_PROCESS, tmp_path) for _ in range(2)]
    total = 2 * np.sin(arguments()[1]).sum()
    assert [(traces, known) for traces, known, _ in found] == [("1", "0"), ("0", "1")]
    assert [float(x) for *_, x in found] == pytest.approx([total, total])
