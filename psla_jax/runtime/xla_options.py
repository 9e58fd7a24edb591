"""XLA compiler options that make programs faster on a CPU; results are the same up to rounding."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax

Options = Mapping[str, str | int]

FULL_WIDTH_VECTORS: Options = {"xla_cpu_prefer_vector_width": 512}
"""Uses whole AVX-512 registers, where the CPU has them; XLA uses half of each by default."""

NO_YNN_FUSION: Options = {"xla_cpu_experimental_ynn_fusion_type": ""}
"""Compiles matrix products and sums separately: XLA's library of fused ones is up to ten times slower if small."""


@functools.cache
def training_options(platform: str) -> dict[str, str | int]:
    """Returns the ``compiler_options`` of ``jax.jit`` for a training step, without options that this XLA lacks.

    `platform` is that of the devices which run it: ``cpu``, ``gpu`` or ``tpu``.
    """
    return _supported(FULL_WIDTH_VECTORS, platform)


@functools.cache
def inference_options(platform: str) -> dict[str, str | int]:
    """Returns the ``compiler_options`` of ``jax.jit`` for a network in evaluation view, as :func:`training_options`."""
    return _supported(FULL_WIDTH_VECTORS, platform) | _supported(NO_YNN_FUSION, platform)


def _supported(options: Options, platform: str) -> dict[str, str | int]:
    if platform != "cpu":
        return {}
    try:
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            jax.jit(lambda x: x, compiler_options=dict(options)).lower(0.0).compile()
    except Exception as error:
        if "No such compile option" in str(error):
            return {}
        raise
    return dict(options)
