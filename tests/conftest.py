"""Shared by all tests: four simulated devices, and one compilation cache for the run and its subprocesses."""

from __future__ import annotations

import os
import tempfile

_CACHE = tempfile.TemporaryDirectory(prefix="psla-tests-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(_CACHE.name, "xla")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
os.environ["PSLA_CACHE"] = os.path.join(_CACHE.name, "psla")

import jax  # noqa: E402 - the environment comes first

jax.config.update("jax_num_cpu_devices", 4)
