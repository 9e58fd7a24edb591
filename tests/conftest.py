"""Shared by all tests: four simulated devices, and one compilation cache for the run and its subprocesses."""

from __future__ import annotations

import os
import tempfile

if "PYTEST_XDIST_WORKER" not in os.environ:  # Workers have it from the process that started them.
    _CACHE = tempfile.TemporaryDirectory(prefix="psla-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(_CACHE.name, "xla")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
    os.environ["PSLA_CACHE"] = os.path.join(_CACHE.name, "psla")

from pathlib import Path

import jax
import pytest
import sounds
import starting

jax.config.update("jax_num_cpu_devices", 4)


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training on two devices that nothing has disturbed; the recordings are in ``sounds`` beside it."""
    root = tmp_path_factory.mktemp("alone")
    directory = starting.prepare(root / "alone", sounds.make(root / "sounds"))
    starting.finish(directory)
    return directory
