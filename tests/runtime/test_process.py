"""Restart with huge pages, and JAX's compilation cache."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from psla_jax.runtime import process

TUNABLES = f"{process.HUGE_PAGES}:{process.RETAIN_FREED_MEMORY}"
PROGRAM = """
import os, subprocess, sys
from pathlib import Path
from psla_jax.runtime import process
process.HUGE_PAGE_SETTING = Path(sys.argv[1])
given = os.environ.get("GLIBC_TUNABLES")
print("start", given, *sys.argv[2:], flush=True)
process.restart_with_huge_pages()
child = "import os; print('child', *(os.environ.get(n) for n in ('GLIBC_TUNABLES', 'PSLA_HUGE_PAGES')))"
subprocess.run([sys.executable, "-c", child], check=True)
"""


def run(tmp_path: Path, setting: str, **environment: str) -> list[str]:
    """Returns the lines that a process prints on a machine with that setting of huge pages."""
    (tmp_path / "enabled").write_text(setting)
    removed = (process.TUNABLES, process.SWITCH, process.ORIGINAL_TUNABLES, "JAX_PLATFORMS")
    inherited = {name: value for name, value in os.environ.items() if name not in removed}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "enabled"), "a b", "--c=d"]
    done = subprocess.run(command, env=inherited | environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_the_command_restarts_once_with_huge_pages_which_children_do_not_inherit(tmp_path: Path) -> None:
    expected = ["start None a b --c=d", f"start {TUNABLES} a b --c=d", "child None None"]
    assert run(tmp_path, "always [madvise] never") == expected


def test_the_users_tunables_come_last_and_children_have_them_alone(tmp_path: Path) -> None:
    mine = "glibc.malloc.trim_threshold=0"
    lines = run(tmp_path, "always [madvise] never", GLIBC_TUNABLES=mine)
    assert lines[1:] == [f"start {TUNABLES}:{mine} a b --c=d", f"child {mine} None"]


@pytest.mark.parametrize("setting", ["[always] madvise never", "always madvise [never]"])
def test_without_a_benefit_there_is_no_restart(tmp_path: Path, setting: str) -> None:
    assert run(tmp_path, setting) == ["start None a b --c=d", "child None None"]


def test_the_restart_can_be_disabled(tmp_path: Path) -> None:
    assert run(tmp_path, "always [madvise] never", PSLA_HUGE_PAGES="0") == ["start None a b --c=d", "child None 0"]


@pytest.mark.parametrize(("platforms", "lines"), [("cuda,cpu", 2), ("tpu", 2), ("cpu", 3)])
def test_only_runs_on_a_cpu_restart(tmp_path: Path, platforms: str, lines: int) -> None:
    assert len(run(tmp_path, "always [madvise] never", JAX_PLATFORMS=platforms)) == lines


def test_a_plugin_for_an_accelerator_prevents_the_restart(tmp_path: Path) -> None:
    (tmp_path / "jax_plugins").mkdir()
    assert len(run(tmp_path, "always [madvise] never", PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]))) == 2


@pytest.mark.parametrize("configured", ["", "elsewhere"])
def test_compiled_programs_are_cached_where_the_environment_says_or_privately(tmp_path: Path, configured: str) -> None:
    code = "import jax\nfrom psla_jax.runtime import process\nprocess.configure_libraries()\n"
    code += "print(jax.config.jax_compilation_cache_dir)"
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment["PSLA_CACHE"] = str(tmp_path)
    if configured:
        environment["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / configured)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(tmp_path / (configured or "xla"))]
    if not configured:
        assert stat.S_IMODE((tmp_path / "xla").stat().st_mode) == 0o700


def test_a_compilation_cache_on_a_full_disk_changes_nothing(tmp_path: Path) -> None:
    code = """
import jax, resource
from psla_jax.runtime import process
process.configure_libraries()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
print(jax.jit(lambda x: x + 1)(1))
"""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment["PSLA_CACHE"] = str(tmp_path)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("2\n", "")
    assert (tmp_path / "xla").is_dir()
