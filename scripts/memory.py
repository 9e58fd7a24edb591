"""Prints the memory of a training step under each memory-saving setting: the table in the README.

    python scripts/memory.py [--model efficientnet-b2] [--frames 1056] [--batch-size 24]

Nothing is trained: the step is compiled for the present device, and XLA reports the memory that it will allocate. On a
CPU, XLA computes parts of bfloat16 models in float32 and ignores rematerialisation, so only a GPU shows those savings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import tyro
from flax import nnx

from psla_jax.config import DataConfig, FrontendConfig, ModelConfig, OptimizerConfig, RunConfig
from psla_jax.models.factory import from_config
from psla_jax.models.precision import activations
from psla_jax.runtime.sharding import Placement
from psla_jax.training.trainer import make_trainer

PRESETS: dict[str, OptimizerConfig] = {
    "default": OptimizerConfig(),
    "--optimizer.precision bf16": OptimizerConfig(precision="bf16"),
    "--optimizer.remat True": OptimizerConfig(remat=True),
    "--optimizer.accumulate 4": OptimizerConfig(accumulate=4),
    "--optimizer.accumulate 4 --optimizer.precision bf16": OptimizerConfig(accumulate=4, precision="bf16"),
}


@dataclass(frozen=True)
class Options:
    """Model and batch to compile the step for."""

    model: str = "efficientnet-b2"
    """Name of the model."""
    frames: int = 1056
    """Number of spectrogram frames per clip."""
    batch_size: int = 24
    """Number of clips per step."""
    classes: int = 527
    """Number of classes."""


def memory(options: Options, preset: OptimizerConfig) -> tuple[float, float]:
    """Returns the GB of the state (parameters, batch statistics, moments) and of the temporary memory of a step."""
    config = RunConfig(
        data=DataConfig(batch_size=options.batch_size),
        frontend=FrontendConfig(target_length=options.frames),
        model=ModelConfig(name=options.model),
        optimizer=preset,
    )
    dtype = activations(preset.precision)
    model = from_config(config.model, options.classes, dtype, nnx.Rngs(0))
    trainer = make_trainer(config, model, 1000, Placement.over(jax.devices()[:1]))
    clips = options.batch_size
    batch = {
        "waveform": np.zeros((clips, trainer.frontend.num_samples), np.float32),
        "num_samples": np.full(clips, trainer.frontend.num_samples, np.int32),
        "labels": np.zeros((clips, options.classes), np.float32),
        "valid": np.ones(clips, np.float32),
    }
    state = trainer.init(model)
    plan: Any = trainer.lower(state, trainer.placement.shard_batch(batch)).compile().memory_analysis()
    return sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e9, plan.temp_size_in_bytes / 1e9


def main(options: Options) -> None:
    """Prints the table."""
    device = jax.devices()[0].device_kind
    print(f"{options.model}, {options.frames} frames, batch {options.batch_size}, as planned by XLA for {device}\n")
    print("| | state | temporary memory of a step |\n|---|---|---|")
    for name, preset in PRESETS.items():
        state, step = memory(options, preset)
        print(f"| {name} | {state:.2f} GB | {step:.2f} GB |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
