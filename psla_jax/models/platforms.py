"""The devices for which layers are traced, which choose among forms of a layer with the same values.

The choice is part of the key of JAX's caches, so that a jitted function is traced again where it differs.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import jax

from psla_jax.runtime.traced_devices import traced_devices, traced_for

PLAIN = "plain"


def layers_for(platform: str, num_devices: int = 1) -> AbstractContextManager[None]:
    """Returns a context in which layers are traced for a mesh of devices, which need not be those of this machine.

    Outside any such context, layers are traced for all devices of JAX's default backend.

    Args:
        platform: ``cpu``, ``gpu`` or ``tpu``, as :attr:`psla_jax.runtime.sharding.Placement.platform`.
        num_devices: number of devices over which a batch is divided.
    """
    return traced_for(platform, num_devices)


def layers_where(array: jax.Array) -> AbstractContextManager[None]:
    """Returns a context in which layers are traced for the devices that hold an array."""
    devices: list[Any] = list(array.sharding.device_set)
    return layers_for(devices[0].platform, len(devices))


def plain_layers() -> AbstractContextManager[None]:
    """Returns a context in which layers are traced in plain forms, which JAX differentiates in any mode and order.

    The other forms have hand-written gradients, which are faster and need less memory, but for which JAX has no
    forward mode: use this context for :func:`jax.jvp`, :func:`jax.linearize`, :func:`jax.jacfwd` and Hessians. Values
    and gradients are the same up to rounding.
    """
    return traced_for(PLAIN)


def platform() -> str:
    """Returns the platform for which layers are traced, or ``plain`` in :func:`plain_layers`."""
    return traced_devices().platform


def on_accelerator() -> bool:
    """Returns whether layers are traced for a GPU or a TPU, whose forms have the least memory traffic."""
    return platform() not in ("cpu", PLAIN)


def num_devices() -> int:
    """Returns the number of devices over which a batch is divided in the program that is being traced."""
    return traced_devices().number
