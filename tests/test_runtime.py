"""What is asked of the machine: once, only where it can be had, and not against the user's word."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from psla_jax import runtime

ASKED = f"{runtime.HUGE_PAGES}:{runtime.KEEPING}"
PROGRAM = """
import os, sys
from pathlib import Path
from psla_jax import runtime
runtime.PAGES = Path(sys.argv[1])
print("start", flush=True)
runtime.restart_with_huge_pages()
print(os.environ.get("GLIBC_TUNABLES"), *sys.argv[2:])
"""


def run(tmp_path: Path, setting: str, **environment: str) -> list[str]:
    """The lines of a process on a machine where huge pages have that setting."""
    (tmp_path / "enabled").write_text(setting)
    kept = {name: value for name, value in os.environ.items() if name not in (runtime.TUNABLES, runtime.SWITCH)}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "enabled"), "a b", "--c=d"]
    done = subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_the_same_command_starts_again_once_with_huge_pages(tmp_path: Path) -> None:
    assert run(tmp_path, "always [madvise] never") == ["start", "start", f"{ASKED} a b --c=d"]


def test_other_tunables_are_kept_and_have_the_last_word(tmp_path: Path) -> None:
    lines = run(tmp_path, "always [madvise] never", GLIBC_TUNABLES="glibc.malloc.trim_threshold=0")
    assert lines[-1] == f"{ASKED}:glibc.malloc.trim_threshold=0 a b --c=d"


@pytest.mark.parametrize("setting", ["[always] madvise never", "always madvise [never]"])
def test_it_does_not_start_again_where_that_changes_nothing(tmp_path: Path, setting: str) -> None:
    assert run(tmp_path, setting) == ["start", "None a b --c=d"]


def test_the_user_can_say_no(tmp_path: Path) -> None:
    assert run(tmp_path, "always [madvise] never", PSLA_HUGE_PAGES="0") == ["start", "None a b --c=d"]


@pytest.mark.parametrize("given", ["", "elsewhere"])
def test_compiled_programs_are_kept_where_the_user_says_or_in_the_cache(tmp_path: Path, given: str) -> None:
    code = "import jax\nfrom psla_jax import runtime\nruntime.prepare_libraries()\n"
    code += "from psla_jax.cache import kept\n"
    code += "print(jax.config.jax_compilation_cache_dir, kept('programs'))"
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment["PSLA_CACHE"] = str(tmp_path)
    if given:
        environment["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / given)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(tmp_path / (given or "xla")), str(tmp_path / "programs")]
