"""A model's network as compiled programs over batches of windows, two shapes at most."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from psla_jax.checkpoints import Model
from psla_jax.compiler import inference_options
from psla_jax.frontend import FRAME_LENGTH, FRAME_SHIFT, Frontend
from psla_jax.kept_programs import Program
from psla_jax.models.clips import one_by_one
from psla_jax.models.pooling import EPSILON, Attention, LinearPooling, MultiHeadAttention, mean_over_steps
from psla_jax.models.tagger import AudioTagger
from psla_jax.tagging.windows import FRAMES_PER_STEP

Policy = Literal["pad", "repeat", "mask"]
BATCH_ON_CPU, BATCH = 4, 32
"""Windows computed together, where there are so many; a CPU with few cores takes them one by one."""


class Output(NamedTuple):
    """What a program says of a batch of windows."""

    scores: Any
    """``(batch, classes)``."""
    frames: Any = None
    """``(batch, steps, classes)``: how surely every step sounds like the class; None where the head does not say."""
    attention: Any = None
    """``(batch, steps, classes)``: what every step weighs, as a multiple of an even weight; None likewise."""
    features: Any = None
    """``(batch, steps, channels)``; None for a model of somebody's own code."""


def _analyse(
    graphdef: Any, frontend: Frontend, masked: bool, weights: Any, waveforms: jax.Array, lengths: jax.Array
) -> Output:
    """One program from waveforms, mean-free and zero-padded to the window, to everything that tagging asks for."""
    network = nnx.merge(graphdef, *weights)
    spectrograms = frontend(waveforms, lengths)
    if not isinstance(network, AudioTagger):
        return Output(network(spectrograms).astype(jnp.float32))
    features = network.backbone(spectrograms)
    sounding = _mask(lengths, features.shape[1])
    mask = sounding if masked else None
    scores = network.head(features, mask)
    if isinstance(network.head, LinearPooling):
        return Output(scores, features=features)
    frames, attention = network.head.frames(features, mask)
    return Output(scores, _heeded(frames, attention, sounding), attention, features)


def _heeded(scores: jax.Array, attention: jax.Array, mask: jax.Array) -> jax.Array:
    """Scores of steps, less where the class attends to a step less than to the others on average.

    Training asks for the right classification only where there is attention. Elsewhere it may say anything, and what it
    says of frequent classes is that they never stop. All arrays but the mask are `(batch, steps, classes)`.
    """
    average = mean_over_steps(attention, mask)[:, None]
    return scores * jnp.minimum(1.0, attention / jnp.maximum(average, EPSILON))


def _mask(lengths: jax.Array, steps: int) -> jax.Array:
    """1 for the steps that have sound in them, at least one a clip; `(batch, steps)`."""
    frames = jnp.where(lengths < FRAME_LENGTH, 0, 1 + (lengths - FRAME_LENGTH) // FRAME_SHIFT)
    return (jnp.arange(steps) < jnp.maximum(1, -(-frames // FRAMES_PER_STEP))[:, None]).astype(jnp.float32)


@dataclass(frozen=True)
class Network:
    """A loaded model as compiled programs. Safe to call from threads: it changes nothing but the table of programs."""

    model: Model
    policy: Policy
    batch_size: int
    on_compile: Callable[[str], None] = field(repr=False)
    """Told what is happening before a program is compiled, and given an empty text afterwards."""
    _programs: dict[int, Any] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @functools.cached_property
    def _parts(self) -> tuple[Any, Any]:
        graphdef, params, rest = nnx.split(self.model.network, nnx.Param, ...)  # type: ignore[misc]
        return graphdef, (nnx.to_pure_dict(params), nnx.to_pure_dict(rest))

    @functools.cached_property
    def frontend(self) -> Frontend:
        """Waveforms to this model's spectrograms."""
        return self.model.frontend

    @property
    def has_frames(self) -> bool:
        """Whether the head scores every step."""
        network = self.model.network
        return isinstance(network, AudioTagger) and not isinstance(network.head, LinearPooling)

    @property
    def has_attention(self) -> bool:
        """Whether the head weighs some steps more than others."""
        network = self.model.network
        return isinstance(network, AudioTagger) and isinstance(network.head, Attention | MultiHeadAttention)

    @property
    def num_features(self) -> int:
        """Channels of an embedding; 0 where the model has none to give."""
        network = self.model.network
        return network.backbone.num_features if isinstance(network, AudioTagger) else 0

    @property
    def steps(self) -> int:
        """Steps of a whole window."""
        return -(-self.frontend.target_length // FRAMES_PER_STEP)

    def __call__(self, windows: Sequence[np.ndarray]) -> Output:
        """Starts the computation for up to `batch_size` windows; the output has their rows first, then padding."""
        size = 1 if len(windows) == 1 else self.batch_size
        waveforms = np.zeros((size, self.frontend.num_samples), np.float32)
        lengths = np.zeros(size, np.int32)
        for row, samples in enumerate(windows):
            samples = samples[: self.frontend.num_samples] - samples.mean()
            if self.policy == "repeat":
                samples = np.resize(samples, self.frontend.num_samples)
            waveforms[row, : len(samples)], lengths[row] = samples, len(samples)
        return self._program(size)(self._parts[1], waveforms, lengths)

    def _program(self, size: int) -> Any:
        """The program for a batch of that size, compiled once."""
        with self._lock:
            if size not in self._programs:
                self._programs[size] = self._compiled(size)
            return self._programs[size]

    @property
    def _filled(self) -> Output:
        """Which fields of an output there are, of this network."""
        features = 0 if isinstance(self.model.network, AudioTagger) else None
        return Output(0, 0, 0, features) if self.has_frames else Output(0, features=features)

    def _arguments(self, size: int) -> tuple[Any, Any, Any]:
        """Weights, waveforms and lengths as a program takes them."""
        waveforms = jax.ShapeDtypeStruct((size, self.frontend.num_samples), jnp.float32)
        return self._parts[1], waveforms, jax.ShapeDtypeStruct((size,), jnp.int32)

    def _compiled(self, size: int) -> Any:
        card = self.model.card
        program = Program(
            functools.partial(_analyse, self._parts[0], self.frontend, self.policy == "mask"),
            result=lambda *_: self._filled,
            identity=None if ":" in card.model.name else {"tag": repr((card.model, card.frontend, self.policy))},
            compiler_options=inference_options(),
        )
        announce = functools.partial(self.on_compile, "compiling (once; it is kept for the next time)")
        compiled = program.compiled(*self._arguments(size), announce=announce)
        self.on_compile("")
        return compiled


def batch_size_for_device() -> int:
    """How many windows are computed together here."""
    if jax.default_backend() != "cpu":
        return BATCH
    return 1 if one_by_one() else BATCH_ON_CPU
