"""A training config for own recordings: what follows from their number and lengths, to be read and changed."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass

import numpy as np

from psla_jax.config import (
    AggregationConfig,
    DataConfig,
    FrontendConfig,
    OptimizerConfig,
    RunConfig,
    SamplingConfig,
)

LONGEST = 30.0
"""Seconds after which clips are cut, whatever their length."""
_COVERED = 0.95
"""Share of the clips that are seen whole."""
_STRIDE = 32
"""Frames that a step of the network's output stands for."""
_STEPS = 12_000
"""Optimizer steps to aim at: the recipe of balanced AudioSet has 13,000."""
_EPOCHS = 20, 100
_UNEVEN = 3
"""How many times as large the largest class is as the smallest before clips are drawn by class."""


@dataclass(frozen=True)
class Facts:
    """What a config follows from."""

    name: str
    parts: dict[str, int]
    """Clips by part: train, and validation or evaluation or both."""
    class_sizes: tuple[int, ...]
    """Training clips of every class that has any."""
    classes: int
    seconds: tuple[float, ...]
    """Lengths of the training clips."""
    exclusive: bool
    """Whether every clip has exactly one class."""


def config_of(facts: Facts) -> RunConfig:
    """The settings; paths are file names."""
    clips, frames = facts.parts["train"], target_length(facts.seconds)
    batch = batch_size(clips, frames)
    steps = math.ceil(clips / batch)
    epochs = int(np.clip(_STEPS // steps, *_EPOCHS))
    files = {part: f"{part}.json" for part in facts.parts}
    name = re.sub(r"[^\w.-]+", "_", facts.name) or "run"
    return RunConfig(
        run_dir=f"runs/{name}",
        data=DataConfig(
            train=files["train"],
            validation=files.get("validation", ""),
            evaluation=files.get("evaluation", ""),
            labels="class_labels_indices.csv",
            batch_size=batch,
            workers=2 if clips < 10_000 else 8,
        ),
        frontend=FrontendConfig(target_length=frames),
        # As wide as in the recipes: 192 of 1056 frames.
        sampling=SamplingConfig(balanced=is_uneven(facts.class_sizes), time_mask=frames * 192 // 1056),
        optimizer=OptimizerConfig(
            learning_rate=1e-3 if clips < 30_000 else 5e-4 if clips < 300_000 else 1e-4,
            epochs=epochs,
            warmup_steps=min(1000, steps * epochs // 10),
            decay_start=max(epochs // 2, 1),
            decay_every=max(epochs // 12, 1),
            loss="auto",
        ),
        aggregation=AggregationConfig(first=epochs * 2 // 3 + 1, last=epochs),
    )


def target_length(seconds: tuple[float, ...]) -> int:
    """Frames in which 95% of the clips are whole, a multiple of the network's stride; at most 30 s."""
    longest = min(float(np.quantile(seconds, _COVERED, method="higher")), LONGEST)
    frames = max(1 + (round(16_000 * longest) - 400) // 160, 1)
    return min(_STRIDE * math.ceil(frames / _STRIDE), 3000)


def batch_size(clips: int, frames: int) -> int:
    """A power of two from 8 to 64 that gives an epoch 20 steps and fills no more memory than 64 clips of 10 s."""
    wanted = min(64, clips // 20, 64 * 1056 // frames)
    return max(8, 1 << max(wanted.bit_length() - 1, 0))


def is_uneven(class_sizes: tuple[int, ...]) -> bool:
    """Whether the largest class is so much larger than the smallest that clips should be drawn by class."""
    return max(class_sizes) > _UNEVEN * min(class_sizes)


def config_text(facts: Facts) -> str:
    """The config as the Python file that ``psla train`` takes; it finds the datafiles beside itself."""
    config = config_of(facts)
    data, sampling, optimizer = config.data, config.sampling, config.optimizer
    seconds = config.frontend.target_length / 100
    paths = {part: getattr(data, part) for part in ("train", "validation", "evaluation", "labels")}
    if not data.validation:
        best = "There is no validation set, so no epoch is chosen: single is the mean of the last five."
    else:
        best = (
            f"The best epoch is that of the highest {'accuracy' if facts.exclusive else 'mAP'} on the validation set."
        )
    return _TEMPLATE.format(
        clips=f"{facts.parts['train']:,}",
        classes=f"{facts.classes:,}",
        best=best,
        run_dir=json.dumps(config.run_dir),
        files="\n".join(f'        {part}=str(HERE / "{file}"),' for part, file in paths.items() if file),
        batch_size=data.batch_size,
        workers=data.workers,
        frames=config.frontend.target_length,
        seconds=f"{seconds:.2f}",
        # The last window of a clip of that many frames ends 15 ms after its start.
        cut=f"{sum(1 for length in facts.seconds if length > seconds + 0.015):,}",
        sizes=f"{min(facts.class_sizes):,} to {max(facts.class_sizes):,}",
        drawn="drawn by class" if sampling.balanced else "so each comes once an epoch",
        sampling=sampling,
        optimizer=optimizer,
        loss="cross-entropy, as every clip has exactly one class"
        if facts.exclusive
        else "binary cross-entropy, as a clip may have several classes",
        aggregation=config.aggregation,
    )


_TEMPLATE = '''"""{clips} training clips of {classes} classes. Written by psla prepare, to be changed as you like.

    psla train config.py

{best}
The model starts from random weights, which needs nothing else. A pretrained start is better, most of all on few clips:
--pretraining.source imagenet (downloaded once, needs PyTorch), or the folder of a model that psla models made.
"""

from pathlib import Path

from psla_jax.config import (
    AggregationConfig,
    DataConfig,
    FrontendConfig,
    ModelConfig,
    OptimizerConfig,
    PretrainingConfig,
    RunConfig,
    SamplingConfig,
)

HERE = Path(__file__).resolve().parent

config = RunConfig(
    run_dir={run_dir},
    data=DataConfig(
{files}
        batch_size={batch_size},
        workers={workers},
    ),
    frontend=FrontendConfig(target_length={frames}),  # {seconds} s; {cut} of the training clips are longer and are cut
    model=ModelConfig(name="efficientnet-b2", heads=4),
    pretraining=PretrainingConfig(source=""),
    sampling=SamplingConfig(
        balanced={sampling.balanced},  # classes have {sizes} training clips, {drawn}
        mixup={sampling.mixup},
        freq_mask={sampling.freq_mask},
        time_mask={sampling.time_mask},
    ),
    optimizer=OptimizerConfig(
        learning_rate={optimizer.learning_rate!r},
        epochs={optimizer.epochs},
        warmup_steps={optimizer.warmup_steps},
        decay_start={optimizer.decay_start},
        decay_every={optimizer.decay_every},
        loss="auto",  # here {loss}
    ),
    aggregation=AggregationConfig(first={aggregation.first}, last={aggregation.last}),
)
'''
