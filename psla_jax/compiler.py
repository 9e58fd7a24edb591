"""Options with which XLA's programs are faster on a CPU; the values are the same to rounding."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax

Options = Mapping[str, str | int]

WIDE_VECTORS: Options = {"xla_cpu_prefer_vector_width": 512}
"""Whole registers where a CPU has AVX-512; XLA's default is to use half of each."""

PLAIN_PRODUCTS: Options = {"xla_cpu_experimental_ynn_fusion_type": ""}
"""Matrix products and sums by themselves: XLA's library of fused ones takes up to ten times as long for small ones."""


@functools.cache
def training_options() -> dict[str, str | int]:
    """For ``jax.jit`` of a step of training; without what XLA does not know here."""
    return _known(WIDE_VECTORS)


@functools.cache
def inference_options() -> dict[str, str | int]:
    """For ``jax.jit`` of the evaluation view of a network; likewise."""
    return _known(WIDE_VECTORS) | _known(PLAIN_PRODUCTS)


def _known(options: Options) -> dict[str, str | int]:
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda x: x, compiler_options=dict(options)).lower(0.0).compile()
    except Exception as error:
        if "No such compile option" in str(error):
            return {}
        raise
    return dict(options)
