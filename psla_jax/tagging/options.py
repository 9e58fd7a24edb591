"""Settings of a tagger."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from psla_jax.config import Channel
from psla_jax.tagging.defaults import DEFAULTS, Policy
from psla_jax.tagging.events import Rules


class TaggerError(ValueError):
    """Models or settings that cannot be used together; the message names them."""


@dataclass(frozen=True)
class Options:
    """Settings of a :class:`psla_jax.tagging.tagger.Tagger`."""

    policy: Policy = DEFAULTS.policy
    """Treatment of recordings shorter than a window: padded with silence as in training and evaluation (pad), repeated
    until the window is full (repeat), or padded and pooled over the output frames with sound only (mask)."""
    overlap: float = DEFAULTS.overlap
    """Overlap between consecutive windows, as a fraction of a window."""
    rules: Rules = field(default_factory=Rules)
    """Event detection parameters."""
    times: Literal["head", "windows"] = "head"
    """Source of event times: the head's score of every output frame, or the scores of windows."""
    channel: Channel | None = DEFAULTS.channel
    """Channel of a multi-channel recording: the mean of all, or the first; None for that of the (first) model's
    training."""
    batch_size: int = 0
    """Maximum number of windows per batch; 0 chooses by the device."""
    cache_programs: bool = False
    """Cache traced programs in the user's cache directory, as ``psla tag`` does: the next process starts half a second
    sooner. (Compiled programs are always cached, by JAX, unless ``JAX_ENABLE_COMPILATION_CACHE=false``.) Do not use it
    where code of this package is replaced at run time: its programs would be cached too."""

    def __post_init__(self) -> None:
        times = ("head", "windows")
        for name, choices in (("policy", get_args(Policy)), ("times", times), ("channel", (None, *get_args(Channel)))):
            if getattr(self, name) not in choices:
                raise TaggerError(f"{name} is {getattr(self, name)!r}: choose {' or '.join(filter(None, choices))}.")
        if self.batch_size < 0:
            raise TaggerError(f"batch_size is {self.batch_size}: use 1 or more, or 0 to choose by the device.")
