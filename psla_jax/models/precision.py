"""Precision of matrix products and convolutions, in training steps and in scoring.

=========== ============================ ================================ =============================
Precision   CPU                          GPU                              TPU
=========== ============================ ================================ =============================
``highest`` float32                      float32                          float32, in six bfloat16 passes
``tf32``    float32                      TensorFloat-32                   three bfloat16 passes
``bf16``    bfloat16 backbone            bfloat16 backbone                bfloat16 backbone
=========== ============================ ================================ =============================

TensorFloat-32 rounds the factors to 10 bits and adds in float32; it is what PyTorch, and so the reference, uses for
convolutions on GPUs. With ``bf16``, the activations of the backbone are bfloat16, and the head is computed as with
``tf32``. Whatever the precision, the frontend is float32 at highest precision, and parameters, batch statistics,
pooling, sigmoid or softmax, and the loss are float32.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np

from psla_jax.config import ConfigError, Precision
from psla_jax.models.platforms import platform


def activations(precision: Precision) -> np.dtype:
    """Returns the dtype of the activations of the backbone. Raises ConfigError for an unknown precision."""
    if precision not in get_args(Precision):
        raise ConfigError(f"precision is {precision!r}: choose one of {', '.join(get_args(Precision))}.")
    return jnp.dtype(jnp.bfloat16 if precision == "bf16" else jnp.float32)


def products(precision: Precision) -> AbstractContextManager[None]:
    """Returns a context in which products and convolutions that state no precision are traced with this one.

    The platform is that of the layers, see :func:`psla_jax.models.platforms.layers_for`, whose context comes first.
    """
    if platform() == "cpu":  # Its products are exact.
        return jax.default_matmul_precision("default")
    if precision == "highest":
        return jax.default_matmul_precision("highest")
    # By default, GPUs compute in TensorFloat-32, and TPUs in one bfloat16 pass.
    return jax.default_matmul_precision("high" if platform() == "tpu" else "default")


def computed_in(precision: Precision, devices: str) -> str:
    """Returns what a precision means on devices (``cpu``, ``gpu``, ``tpu``), as it is stored with scores."""
    if precision == "bf16":
        return "bfloat16"
    if precision == "highest" or devices == "cpu":
        return "float32"
    return "TensorFloat-32" if devices == "gpu" else "three bfloat16 passes"
