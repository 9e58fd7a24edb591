"""Training config for custom recordings, derived from their number, lengths and classes."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from psla_jax.audio.windows import Grid
from psla_jax.config import AggregationConfig, DataConfig, FrontendConfig, OptimizerConfig, RunConfig, SamplingConfig

_MAX_SECONDS = 30.0
"""Longest input; longer clips are always cut."""
_COVERAGE = 0.95
"""Fraction of the clips that are not cut, unless they are longer than 30 s."""
_FRAMES_PER_OUTPUT_FRAME = 32
"""Spectrogram frames per output frame of the network (its stride)."""
_TRAINING_STEPS = 12_000
"""Target for the number of training steps; the recipe of balanced AudioSet has 13,000."""
_MIN_EPOCHS, _MAX_EPOCHS = 20, 100
_IMBALANCE = 3
"""Ratio of the largest to the smallest class above which balanced sampling is used."""


@dataclass(frozen=True)
class DataSummary:
    """Properties of a data set that determine its config."""

    name: str
    parts: dict[str, int]
    """Number of clips in each part: train, and validation or evaluation or both."""
    class_sizes: tuple[int, ...]
    """Number of training clips of every class that has any."""
    classes: int
    seconds: tuple[float, ...]
    """Lengths of the training clips."""
    exclusive: bool
    """Whether every clip has exactly one class."""


def make_config(summary: DataSummary) -> RunConfig:
    """Returns the config; its data paths are file names without a folder."""
    clips, frames = summary.parts["train"], target_length(summary.seconds)
    batch = batch_size(clips, frames)
    steps = math.ceil(clips / batch)
    epochs = int(np.clip(_TRAINING_STEPS // steps, _MIN_EPOCHS, _MAX_EPOCHS))
    files = {part: f"{part}.json" for part in summary.parts}
    name = re.sub(r"[^\w.-]+", "_", summary.name) or "run"
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
        # The recipes mask up to 192 of 1056 frames.
        sampling=SamplingConfig(balanced=is_imbalanced(summary.class_sizes), time_mask=frames * 192 // 1056),
        optimizer=OptimizerConfig(
            learning_rate=1e-3 if clips < 30_000 else 5e-4 if clips < 300_000 else 1e-4,
            epochs=epochs,
            warmup_steps=min(1000, steps * epochs // 10),
            decay_start=max(epochs // 2, 1),
            decay_every=max(epochs // 12, 1),
            loss="auto",
        ),
        aggregation=AggregationConfig(first=epochs * 2 // 3 + 1),
    )


def target_length(seconds: tuple[float, ...]) -> int:
    """Returns the number of frames that covers 95% of the clips, a multiple of the network's stride; at most 30 s."""
    longest = min(float(np.quantile(seconds, _COVERAGE, method="higher")), _MAX_SECONDS)
    frames = max(Grid().num_frames(round(Grid().rate * longest)), 1)
    return min(_FRAMES_PER_OUTPUT_FRAME * math.ceil(frames / _FRAMES_PER_OUTPUT_FRAME), 3000)


def batch_size(clips: int, frames: int) -> int:
    """Returns a power of two from 8 to 64 that gives at least 20 steps per epoch if possible.

    A batch takes no more memory than 64 clips of 10 s, unless the minimum of 8 does.
    """
    limit = min(64, clips // 20, 64 * 1056 // frames)
    return max(8, 1 << max(limit.bit_length() - 1, 0))


def is_imbalanced(class_sizes: tuple[int, ...]) -> bool:
    """Returns whether the largest class is more than three times as large as the smallest."""
    return max(class_sizes) > _IMBALANCE * min(class_sizes)


def render_config(summary: DataSummary) -> str:
    """Returns the config as a Python file for ``psla train``, which finds the datafiles in its own folder."""
    config = make_config(summary)
    seconds = config.frontend.target_length / 100
    paths = {part: getattr(config.data, part) for part in ("train", "validation", "evaluation", "labels")}
    best = "Without a validation set, no best epoch is selected; the summary reports the mean of the last five epochs."
    if config.data.validation:
        metric = "accuracy" if summary.exclusive else "mAP"
        best = f"The best epoch is the one with the highest {metric} on the validation set."
    return _TEMPLATE.format(
        **vars(config),
        best=best,
        clips=f"{summary.parts['train']:,}",
        classes=f"{summary.classes:,}",
        files="\n".join(f'        {part}=str(HERE / "{file}"),' for part, file in paths.items() if file),
        seconds=f"{seconds:.2f}",
        # The window of the last frame ends 15 ms after the start of the next frame.
        cut=f"{sum(1 for length in summary.seconds if length > seconds + 0.015):,}",
        sizes=" to ".join(f"{size:,}" for size in sorted({min(summary.class_sizes), max(summary.class_sizes)})),
        drawn="rare classes are drawn more often" if config.sampling.balanced else "each clip is drawn once per epoch",
        loss="cross-entropy, because every clip has exactly one class"
        if summary.exclusive
        else "binary cross-entropy, because a clip may have several classes",
    )


_TEMPLATE = '''"""Training config for {clips} clips of {classes} classes, generated by psla prepare. Edit it as needed.

    psla train config.py

{best}
The model starts from random weights. Pretrained weights give better results, especially with few clips: add
--pretraining.source imagenet (downloaded once) or --pretraining.source DIR, where DIR is a model
directory that psla models or psla train created.
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
    run_dir="{run_dir}",
    data=DataConfig(
{files}
        batch_size={data.batch_size},  # clips per training step
        workers={data.workers},  # loader processes
    ),
    frontend=FrontendConfig(
        target_length={frontend.target_length},  # {seconds} s; longer clips are cut ({cut} training clips)
    ),
    model=ModelConfig(name="efficientnet-b2", heads=4),
    pretraining=PretrainingConfig(source=""),
    sampling=SamplingConfig(
        balanced={sampling.balanced},  # {sizes} training clips per class: {drawn}
        mixup={sampling.mixup},  # probability that a clip is mixed with another one
        freq_mask={sampling.freq_mask},  # widest frequency mask, in mel bins
        time_mask={sampling.time_mask},  # widest time mask, in frames of 10 ms
    ),
    optimizer=OptimizerConfig(
        learning_rate={optimizer.learning_rate!r},  # peak value, reached after the warm-up
        epochs={optimizer.epochs},
        warmup_steps={optimizer.warmup_steps},
        decay_start={optimizer.decay_start},  # the learning rate is halved after this epoch
        decay_every={optimizer.decay_every},  # and again every so many epochs
        loss="auto",  # {loss}
    ),
    aggregation=AggregationConfig(first={aggregation.first}),  # average from this epoch to the last one
)
'''
