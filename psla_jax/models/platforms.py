"""The platform for which layers are traced, which chooses among forms of a layer with the same values.

The choice is part of the key of JAX's caches, so that a jitted function is traced again where it differs.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import jax

PLAIN = "plain"
_PLATFORM = jax.make_user_context(default_value="")


def layers_for(platform: str) -> AbstractContextManager[None]:
    """Returns a context in which layers are traced for a platform, such as that of a mesh: ``cpu``, ``gpu`` or ``tpu``.

    Outside any such context, it is that of JAX's default backend.
    """
    return _PLATFORM(platform)


def plain_layers() -> AbstractContextManager[None]:
    """Returns a context in which layers are traced in plain forms, which JAX differentiates in any mode and order.

    The other forms have hand-written gradients, which are faster and need less memory, but for which JAX has no
    forward mode: use this context for :func:`jax.jvp`, :func:`jax.linearize`, :func:`jax.jacfwd` and Hessians. Values
    and gradients are the same up to rounding.
    """
    return _PLATFORM(PLAIN)


def platform() -> str:
    """Returns the platform for which layers are traced, or ``plain`` in :func:`plain_layers`."""
    return _PLATFORM.value or jax.default_backend()


def on_accelerator() -> bool:
    """Returns whether layers are traced for a GPU or a TPU, whose forms have the least memory traffic."""
    return platform() not in ("cpu", PLAIN)
