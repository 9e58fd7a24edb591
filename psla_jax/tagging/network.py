"""Compiled programs that apply a model to batches of windows; at most two batch sizes per model."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from psla_jax.audio.frontend import Frontend
from psla_jax.audio.windows import OUTPUT_STRIDE
from psla_jax.models.cpu_kernels import per_clip_is_faster
from psla_jax.models.exclusive import normalise
from psla_jax.models.model_dir import Model
from psla_jax.models.platforms import layers_for
from psla_jax.models.pooling import EPSILON, mean_over_frames
from psla_jax.models.precision import products
from psla_jax.models.protocols import Parts, parts
from psla_jax.runtime import cores, exported
from psla_jax.runtime.fork import require_own_devices
from psla_jax.runtime.process import compilation_cache
from psla_jax.runtime.xla_options import inference_options
from psla_jax.tagging.defaults import Policy
from psla_jax.tagging.frame_grid import is_on_grid, overlaps, to_grid

CPU_BATCH_SIZE, BATCH_SIZE = 4, 32
"""Largest number of windows per batch on CPUs and on other devices; a CPU with few cores takes windows one by one."""
_COMPILING = threading.Lock()


class ModelOutput(NamedTuple):
    """Output of a compiled model for a batch of windows."""

    scores: Any
    """``(batch, classes)``."""
    frames: Any = None
    """``(batch, frames, classes)``: score of every output frame; None for heads without frame scores."""
    attention: Any = None
    """``(batch, frames, classes)``: attention of every output frame as a multiple of a uniform weight, or None."""
    features: Any = None
    """``(batch, frames, channels)``; None for custom models."""


def _analyse(
    graphdef: Any,
    frontend: Frontend,
    masked: bool,
    exclusive: bool,
    weights: Any,
    waveforms: jax.Array,
    lengths: jax.Array,
) -> ModelOutput:
    """Computes all outputs of a model from waveforms that are zero-mean and zero-padded to the window.

    If its classes are exclusive, the scores of the window, and those of every output frame before they are gated, are
    normalised over the classes.
    """
    distribution = normalise if exclusive else (lambda scores: scores)
    network = nnx.merge(graphdef, *weights)
    spectrograms = frontend(waveforms, lengths, zero_mean=False)
    found = parts(network)
    if found is None:
        return ModelOutput(distribution(network(spectrograms).astype(jnp.float32)))
    features = found.features(spectrograms)
    sound_mask = _sound_mask(frontend.num_frames(lengths), features.shape[1], found.stride)
    mask = sound_mask if masked else None
    scores = distribution(found.scores(features, mask).astype(jnp.float32))
    frames = attention = None
    if found.has_frames:
        frames, attention = found.head.frame_outputs(features, mask)
        frames = distribution(frames)
        if attention is not None:
            frames = _gate_by_attention(frames, attention, sound_mask)
    output = ModelOutput(scores, frames, attention, features)
    return output if is_on_grid(found) else _on_grid(output, found, sound_mask, frontend.target_length)


def _on_grid(output: ModelOutput, found: Parts, sound_mask: jax.Array, target_length: int) -> ModelOutput:
    """Returns the output with the frames of the timeline."""
    shared = overlaps(found, sound_mask.shape[1], -(-target_length // OUTPUT_STRIDE))
    return ModelOutput(output.scores, *(None if f is None else to_grid(f, sound_mask, shared) for f in output[1:]))


def _gate_by_attention(scores: jax.Array, attention: jax.Array, mask: jax.Array) -> jax.Array:
    """Scales frame scores by the class's attention relative to its mean over the frames, capped at 1.

    Training constrains the classification only where there is attention. Elsewhere it is arbitrary, and the scores of
    frequent classes stay high throughout. All arrays but the mask are `(batch, frames, classes)`.
    """
    average = mean_over_frames(attention, mask)[:, None]
    return scores * jnp.minimum(1.0, attention / jnp.maximum(average, EPSILON))


def _sound_mask(frames: jax.Array, num_frames: int, stride: float) -> jax.Array:
    """1 for the output frames that contain any of the first spectrogram `frames`, at least one; `(batch, frames)`."""
    return (jnp.arange(num_frames) < jnp.maximum(1, -(-frames // stride))[:, None]).astype(jnp.float32)


@dataclass(frozen=True)
class CompiledModel:
    """A loaded model as compiled programs. Thread-safe: calls change nothing but the table of programs.

    Models of the same architecture, frontend and policy share their programs, because weights are arguments.
    """

    model: Model
    policy: Policy
    batch_size: int
    on_compile: Callable[[str], None] = field(repr=False)
    """Called with a description before a program is compiled, and with an empty string afterwards."""
    cache_programs: bool = False
    """Whether traced programs are cached on disk; only for processes in which no code of this package is replaced."""
    _programs: dict[int, Any] = field(default_factory=dict, repr=False)

    @functools.cached_property
    def _parts(self) -> tuple[Any, Any]:
        """The graph definition and the weights: parameters and other variables."""
        graphdef, params, batch_stats = nnx.split(self.model.network, nnx.Param, ...)  # type: ignore[misc]
        return graphdef, (nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats))

    @functools.cached_property
    def _network_parts(self) -> Parts | None:
        return parts(self.model.network)

    @functools.cached_property
    def frontend(self) -> Frontend:
        """The model's frontend, from waveforms to spectrograms."""
        return self.model.frontend

    @property
    def has_frames(self) -> bool:
        """Whether the head scores every output frame."""
        return self._network_parts is not None and self._network_parts.has_frames

    @property
    def has_attention(self) -> bool:
        """Whether the head weights output frames by attention."""
        return self._network_parts is not None and self._network_parts.has_attention

    @property
    def num_features(self) -> int:
        """Number of channels of an embedding; 0 if the model provides none."""
        return self._network_parts.backbone.num_features if self._network_parts else 0

    @property
    def takes_mask(self) -> bool:
        """Whether the head can pool over the output frames with sound only."""
        return self._network_parts is not None and self._network_parts.takes_mask

    @property
    def num_frames(self) -> int:
        """Number of output frames of a full window."""
        return -(-self.frontend.target_length // OUTPUT_STRIDE)

    @property
    def num_threads(self) -> int:
        """Number of batches that are best computed at a time: one on a GPU or TPU, several on a CPU."""
        return cores.num_programs() if _platform() == "cpu" else 1

    def prepare(self, windows: Sequence[np.ndarray]) -> Callable[[], ModelOutput]:
        """Returns the computation for up to `batch_size` windows ``(samples,)``, which any thread may run.

        Rows of its output beyond the windows are padding. Raises ForkError in a process that was forked after the model
        was loaded.
        """
        require_own_devices()
        size = 1 if len(windows) == 1 else self.batch_size
        waveforms = np.zeros((size, self.frontend.num_samples), np.float32)
        lengths = np.zeros(size, np.int32)
        for row, samples in enumerate(windows):
            samples = samples[: self.frontend.num_samples] - samples.mean()
            if self.policy == "repeat":
                samples = np.resize(samples, self.frontend.num_samples)
            waveforms[row, : len(samples)], lengths[row] = samples, len(samples)
        program = self._programs.get(size) or self._program(size)
        return lambda: jax.block_until_ready(program(self._parts[1], waveforms, lengths))

    def _program(self, size: int) -> Any:
        """Returns the program for a batch of that size, which several threads may ask for but only one compiles."""
        with _COMPILING:
            if size not in self._programs:
                self._programs[size] = self._compiled(size)
        return self._programs[size]

    @property
    def _filled(self) -> ModelOutput:
        """The fields of this model's output that are not None."""
        features = 0 if self._network_parts else None
        return ModelOutput(0, 0, 0, features) if self.has_frames else ModelOutput(0, features=features)

    def _arguments(self, size: int) -> tuple[Any, Any, Any]:
        """Weights, waveforms and lengths as abstract arguments of a program."""
        waveforms = jax.ShapeDtypeStruct((size, self.frontend.num_samples), jnp.float32)
        return self._parts[1], waveforms, jax.ShapeDtypeStruct((size,), jnp.int32)

    def _compiled(self, size: int) -> Any:
        """Compiles the program for a batch of that size, with `cache_programs` from StableHLO in the user's cache.

        Tracing and lowering a large network takes seconds; a cached ``jax.export`` artifact needs neither. JAX's own
        cache then has the compiled program. Custom models are always traced, since their code may change.
        """
        card, arguments = self.model.card, self._arguments(size)
        static, platform = (self._parts[0], self.frontend, self.policy == "mask", card.exclusive), _platform()
        precision = self.model.precision
        with compilation_cache(), layers_for(platform), products(precision):
            if self.cache_programs and exported.enabled() and not card.model.custom_code:
                announce = functools.partial(self.on_compile, "compiling (cached for the next start)")
                key = "tag", card.model, card.frontend, self.policy, card.exclusive, precision
                compiled = exported.compile_cached(
                    functools.partial(_analyse, *static), arguments, self._filled, key, on_trace=announce,
                    compiler_options=inference_options(platform),
                )  # fmt: skip
            else:
                self.on_compile("compiling")
                compiled = _jitted(platform).lower(*static, *arguments).compile()
        self.on_compile("")
        return compiled


def _platform() -> str:
    """Returns the platform of the device on which models are loaded."""
    return jax.local_devices()[0].platform


@functools.cache
def _jitted(platform: str) -> Any:
    """Returns the jitted function of all models: JAX compiles it once for all that have the same static arguments.

    As with any jitted function, code that is replaced at run time counts after ``jax.clear_caches()`` only.
    """
    return jax.jit(_analyse, static_argnums=(0, 1, 2, 3), compiler_options=inference_options(platform))


def default_batch_size() -> int:
    """Returns the largest number of windows per batch on this device."""
    platform = _platform()
    if platform != "cpu":
        return BATCH_SIZE
    with layers_for(platform):
        return 1 if per_clip_is_faster() else CPU_BATCH_SIZE
