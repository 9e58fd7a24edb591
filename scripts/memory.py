"""How much memory a training step takes under each of the settings that save some: the README's table.

python scripts/memory.py [--model efficientnet-b2] [--frames 1056] [--batch-size 24]

Nothing is trained: the step is compiled for the device that is there, and XLA says what it will allocate. On a CPU,
bfloat16 is computed in float32 in places, and blocks are not computed again, so that only a GPU shows what those save.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx

from psla_jax.config import DataConfig, FrontendConfig, ModelConfig, OptimizerConfig, RunConfig
from psla_jax.models.tagger import from_config
from psla_jax.training import Placement, make_trainer

PRESETS: dict[str, OptimizerConfig] = {
    "as it is": OptimizerConfig(),
    "--optimizer.compute bfloat16": OptimizerConfig(compute="bfloat16"),
    "--optimizer.remat": OptimizerConfig(remat=True),
    "--optimizer.accumulate 4": OptimizerConfig(accumulate=4),
    "--optimizer.accumulate 4 --optimizer.compute bfloat16": OptimizerConfig(accumulate=4, compute="bfloat16"),
}


@dataclass(frozen=True)
class Options:
    """What is trained."""

    model: str = "efficientnet-b2"
    frames: int = 1056
    batch_size: int = 24
    classes: int = 527


def memory(options: Options, preset: OptimizerConfig) -> tuple[float, float]:
    """GB that stay allocated (parameters, statistics, moments) and GB that a step takes besides."""
    config = RunConfig(
        data=DataConfig(batch_size=options.batch_size),
        frontend=FrontendConfig(target_length=options.frames),
        model=ModelConfig(name=options.model),
        optimizer=preset,
    )
    dtype = jnp.bfloat16 if preset.compute == "bfloat16" else jnp.float32
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
    plan: Any = trainer.lowered(state, trainer.placement.put(batch)).compile().memory_analysis()
    return sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e9, plan.temp_size_in_bytes / 1e9


def main(options: Options) -> None:
    """Prints the table."""
    device = jax.devices()[0].device_kind
    print(f"{options.model}, {options.frames} frames, batch {options.batch_size}, as XLA plans it for: {device}\n")
    print("| | state | working memory of a step |\n|---|---|---|")
    for name, preset in PRESETS.items():
        state, step = memory(options, preset)
        print(f"| {name} | {state:.2f} GB | {step:.2f} GB |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options))
