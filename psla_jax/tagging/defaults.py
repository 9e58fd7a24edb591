"""Defaults of tagging, shared by ``psla tag``, ``psla listen``, :func:`psla_jax.load` and :class:`psla_jax.Stream`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from psla_jax.audio.windows import DEFAULT_OVERLAP
from psla_jax.config import Channel

Policy = Literal["pad", "repeat", "mask"]


@dataclass(frozen=True)
class Defaults:
    """Values of the settings that are not given; their meaning is documented where they are set."""

    threshold: float = 0.2
    """Minimum score of a class or an event of an uncalibrated model."""
    release: float = 0.7
    smooth: int = 1
    min_gap: float = 0.64
    min_duration: float = 0.32
    overlap: float = DEFAULT_OVERLAP
    live_overlap: float = 0.9
    """Overlap of windows in ``psla listen``, which scores a window of 10 s per second instead of every five seconds, so
    that events are reported sooner. Every other setting is that of ``psla tag``."""
    policy: Policy = "pad"
    channel: Channel | None = None
    """None is the channel of the model's training."""
    top: int = 5
    """Number of classes to list per recording."""


DEFAULTS = Defaults()
