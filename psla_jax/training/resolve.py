"""Settings that a run resolves before its first step: the loss, and the statistics of the frontend.

``optimizer.loss auto`` depends on the training datafile; ``frontend.mean auto`` and ``frontend.std auto`` are measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

from psla_jax.config import RunConfig, Statistic, from_json
from psla_jax.data import datasets
from psla_jax.data.datasets import DataError, DataSets
from psla_jax.data.validate.feature_stats import log_mel_statistics
from psla_jax.data.validate.measure import evenly_spaced
from psla_jax.runtime import distributed
from psla_jax.runtime.logging import Logger
from psla_jax.runtime.trackers import require_available
from psla_jax.training import teachers
from psla_jax.training.run_directory import CONFIG, RunError, has_checkpoint
from psla_jax.training.selection import require_measurable

MAX_CLIPS = 1000
"""Number of clips that are measured, evenly spaced; more hardly change the second decimal."""
DECIMALS = 4
"""Decimals of the results, as in the recipes: the command line can repeat a run with the numbers."""


def load_data(config: RunConfig, log: Callable[[str], None]) -> DataSets:
    """Loads the data sets of a run, with the training set in the segments and with the teacher of its distillation."""
    data = datasets.load(config.data, str(config.optimizer.loss), log)
    return teachers.attached(data, config.distill)


def with_loss(config: RunConfig, data: DataSets) -> RunConfig:
    """Returns the config with the loss itself in place of `auto`."""
    return dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, loss=data.loss))


def require_outputs(config: RunConfig, data: DataSets) -> None:
    """Raises an error of this package unless the metrics and the trackers of a run can be used."""
    require_measurable(config, data)
    require_available(config.log)


def is_measured(config: RunConfig) -> bool:
    """Returns whether mean or standard deviation are to be measured."""
    return "auto" in (config.frontend.mean, config.frontend.std)


def recorded(config: RunConfig, directory: Path) -> RunConfig:
    """Returns the config with the numbers of the run in `directory`, if it has begun, in place of `auto`."""

    def numbers() -> list[Statistic] | None:
        if not has_checkpoint(directory):
            return None
        frontend = from_json((directory / CONFIG).read_text(encoding="utf-8")).frontend
        return [frontend.mean, frontend.std]

    found = distributed.on_primary(numbers, RunError) if is_measured(config) else None
    return config if found is None else with_numbers(config, *found)


def measured(config: RunConfig, data: DataSets, logger: Logger) -> tuple[RunConfig, list[str]]:
    """Returns the config with the statistics of the training set in place of `auto`, and a sentence on them if any.

    They are those of the inputs of the training, without augmentation and padding.

    Raises:
        DataError: no clip is as long as a frame, or all of them are silent.
    """
    if not is_measured(config):
        return config, []
    clips = evenly_spaced(len(data.train), MAX_CLIPS)

    def measure() -> list[float]:
        with logger.progress("measuring the log-mel features", len(clips)) as bar:
            found = log_mel_statistics(
                data.train, clips, config.frontend, channel=config.data.channel, advance=lambda n: bar.advance(count=n)
            )
        if found is None or round(found.std, DECIMALS) <= 0:
            problem = "no clip as long as a frame" if found is None else "only silence"
            raise DataError(
                f"frontend.mean or frontend.std is 'auto', and the training set {data.train.source} has {problem}: "
                "correct its clips, or give numbers."
            )
        return [round(found.mean, DECIMALS), round(found.std, DECIMALS), found.num_clips]

    mean, std, count = distributed.on_primary(measure, DataError)
    resolved = with_numbers(config, mean, std)
    return resolved, [
        f"log-mel features of {count:,} training clips: mean {mean} and standard deviation {std}; normalised with "
        f"frontend.mean {resolved.frontend.mean} and frontend.std {resolved.frontend.std}"
    ]


def with_numbers(config: RunConfig, mean: Statistic = 0.0, std: Statistic = 1.0) -> RunConfig:
    """Returns the config with these numbers in place of `auto`."""
    frontend = config.frontend
    mean, std = (mean if frontend.mean == "auto" else frontend.mean), (std if frontend.std == "auto" else frontend.std)
    return dataclasses.replace(config, frontend=dataclasses.replace(frontend, mean=mean, std=std))


def notes(config: RunConfig) -> Iterator[str]:
    """Yields a sentence if more mel filters than the one of the recipe are empty."""
    frontend = config.frontend
    if frontend.num_empty_mels > 1:
        yield (
            f"{frontend.num_empty_mels} of {frontend.num_mels} mel filters are empty, between two frequencies of the "
            f"FFT of {frontend.fft_size} points, and their features constant: use a lower frontend.num_mels, or a "
            "longer frontend.window"
        )
