"""The devices for which a program is traced, part of the key of JAX's caches: it is traced again where they differ."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import NamedTuple

import jax


class TracedDevices(NamedTuple):
    """Platform of the devices, and the number of devices over which a batch is divided."""

    platform: str
    number: int


_DEVICES = jax.make_user_context(default_value=None)


def traced_for(platform: str, num_devices: int = 1) -> AbstractContextManager[None]:
    """Returns a context in which programs are traced for such devices, which need not be those of this machine."""
    return _DEVICES(TracedDevices(platform, num_devices))


def traced_devices() -> TracedDevices:
    """Returns the devices of the context; outside any, they are all devices of JAX's default backend."""
    return _DEVICES.value or TracedDevices(jax.default_backend(), jax.device_count())
