"""Notes on settings that have no effect, or that need more steps than the run has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flax import nnx

from psla_jax.config import RunConfig
from psla_jax.ingredients import accepts, find
from psla_jax.models.protocols import parts
from psla_jax.models.views import has_running_statistics
from psla_jax.pretraining.initialize import IMAGENET
from psla_jax.sampling.spectrogram import SPECTROGRAM_STEPS
from psla_jax.sampling.waveform import WAVEFORM_STEPS

MAX_INITIAL_SHARE = 0.1
"""Share of the initial values in the running batch statistics above which scores of an epoch are noted as too low."""


def notes(config: RunConfig, model: nnx.Module, steps_per_epoch: int) -> Iterator[str]:
    """Yields a sentence for each setting that has no effect in this run, or needs more steps than it has."""
    yield from _without_effect(config, model)
    steps = config.optimizer.epochs * steps_per_epoch
    warmup, rate = config.optimizer.warmup_steps, config.optimizer.learning_rate
    if warmup > steps:
        yield (
            f"the warm-up of {warmup:,} steps is longer than the run of {steps:,} steps: the learning rate only "
            f"reaches {rate * steps / warmup:.2g} of {rate:.2g}; use --optimizer.warmup-steps {max(steps // 10, 1)}, "
            "for example"
        )
    share = max((norm.momentum**steps for norm in _norms(model)), default=0.0)
    from_audio = config.pretraining.source not in ("", IMAGENET)
    if share > MAX_INITIAL_SHARE and not (from_audio or config.pretraining.freeze):
        remedy = "the weight average with re-estimated statistics is not affected"
        if not config.aggregation.reestimate:
            remedy = "use --aggregation.reestimate True for the weight average"
        yield (
            f"after the {steps:,} steps of the run, {share:.0%} of the running batch statistics are still their "
            "initial values, so scores of single epochs and of their ensemble may be wrong: train for more steps; "
            f"{remedy}"
        )


def _norms(model: nnx.Module) -> Iterator[Any]:
    return (module for _, module in nnx.iter_modules(model) if has_running_statistics(module))


def _without_effect(config: RunConfig, model: nnx.Module) -> Iterator[str]:
    default = RunConfig()
    if not config.distill.active:
        for name in ("weight", "temperature", "logits"):
            value = getattr(config.distill, name)
            if value != getattr(default.distill, name):
                yield (
                    f"distill.{name} is {value}, which has no effect without a teacher: name one with distill.teacher "
                    "or distill.model"
                )
    registries: dict[str, Mapping[str, Callable]] = {"waveform": WAVEFORM_STEPS, "spectrogram": SPECTROGRAM_STEPS}
    settings = {"waveform": ("mixup",), "spectrogram": ("freq_mask", "time_mask")}
    for field, registry in registries.items():
        steps = [find(text, registry, f"sampling.{field}") for text in getattr(config.sampling, field)]
        for name in settings[field]:
            value = getattr(config.sampling, name)
            if value and not any(accepts(step, name) for step in steps):
                yield f"sampling.{name} is {value}, which has no effect: no step of sampling.{field} takes it"
    if parts(model) is None and config.model.pooling != default.model.pooling:
        yield (
            f"model.pooling is {config.model.pooling!r}, which has no effect: {config.model.name} is a whole model, "
            "and only a backbone gets a head"
        )
