"""Training rows: balanced sampling and augmentation of waveforms (PSLA, section III-C).

A row is a pure function of (seed, epoch, sample). This module does not import JAX.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from psla_jax import ingredients
from psla_jax.audio.decode import AudioError
from psla_jax.audio.windows import Grid
from psla_jax.config import ConfigError, DataConfig, SamplingConfig
from psla_jax.data.clip_reader import ClipReader, Row
from psla_jax.data.datafile import Datafile, DatafileError, read_open_vocabulary
from psla_jax.data.datasets import locate
from psla_jax.data.taught import TaughtScores
from psla_jax.data.teacher import TeacherScores
from psla_jax.sampling.balance import epoch_order
from psla_jax.sampling.waveform import WAVEFORM_STEPS, Clips, Example

STREAM = 2
"""Key that separates the draws of the augmentation from others with the same seed and epoch."""
FIELD = "sampling.waveform"
TRIALS = 8
"""Number of generators with which every step is tried before training, because many apply with a probability."""


class AugmentationError(RuntimeError):
    """A step of the augmentation raised an exception; the message names it and the sample."""


@dataclass(frozen=True)
class ReaderClips:
    """The clips of a reader as examples, for augmentation that combines clips."""

    reader: ClipReader

    def __len__(self) -> int:
        return len(self.reader.datafile)

    def __getitem__(self, clip: int) -> Example | None:
        """Returns a clip, at most its first ten minutes; None if it cannot be read."""
        try:
            waveform = self.reader.waveform(clip)
        except AudioError:
            return None
        return Example(waveform, self.reader.targets(clip))


@dataclass(frozen=True)
class TrainSource:
    """All epochs in sequence; an epoch draws as many clips as the datafile has and is padded to whole batches.

    The settings in `sampling` for spectrograms apply on the device.
    """

    reader: ClipReader
    batch_size: int
    epochs: int
    sampling: SamplingConfig
    seed: int
    taught: TaughtScores | None = None
    """Scores of a teacher for the augmented rows."""
    _orders: dict[int, np.ndarray] = field(default_factory=dict, compare=False, repr=False)

    def __len__(self) -> int:
        return self.epochs * self.num_batches * self.batch_size

    def __getstate__(self) -> dict:
        # Worker processes recompute the cached weights, orders and steps.
        kept = {k: v for k, v in self.__dict__.items() if k not in ("_weights", "clips", "_steps")}
        return {**kept, "_orders": {}}

    @property
    def num_batches(self) -> int:
        """Number of batches per epoch."""
        return math.ceil(len(self.reader.datafile) / self.batch_size)

    @functools.cached_property
    def clips(self) -> Clips:
        """The training set as examples without augmentation."""
        return ReaderClips(self.reader)

    @functools.cached_property
    def _weights(self) -> np.ndarray | None:
        return self.reader.datafile.clip_weights() if self.sampling.balanced else None

    @functools.cached_property
    def _steps(self) -> list[Callable[..., Example]]:
        """The augmentation, ``step(example, rng) -> Example``. Raises IngredientError for an unusable step."""
        settings = {
            "clips": self.clips,
            "open_clips": functools.cache(self._open_clips),
            "num_samples": self.reader.num_samples,
            "sample_rate": self.reader.grid.rate,
            "mixup": self.sampling.mixup,
        }
        functions = [ingredients.find(text, WAVEFORM_STEPS, FIELD) for text in self.sampling.waveform]
        return [ingredients.bound(function, 2, field=FIELD, **settings) for function in functions]

    def _open_clips(self, path: str) -> Clips:
        datafile, _ = read_open_vocabulary(locate(path))
        return ReaderClips(ClipReader(datafile, self.reader.num_samples, self.reader.channel, self.reader.grid))

    def _order(self, epoch: int) -> np.ndarray:
        order = self._orders.get(epoch)
        if order is None:
            order = epoch_order(len(self.reader.datafile), self._weights, seed=self.seed, epoch=epoch)
            # Prefetching touches two epochs at a time at most.
            for finished in [e for e in list(self._orders) if e < epoch - 1]:
                self._orders.pop(finished, None)
            self._orders[epoch] = order
        return order

    def __getitem__(self, item: int) -> Row:
        return self.reader.pad(self.row(item))

    def row(self, item: int) -> Row:
        """Returns a row whose waveform is not padded."""
        epoch, sample = divmod(int(item), self.num_batches * self.batch_size)
        if sample >= len(self.reader.datafile):
            return self.invalid_row()
        clip = int(self._order(epoch)[sample])
        example = self.clips[clip]
        if example is None:
            return self.invalid_row(clip)
        example = self.augment(example, epoch, sample)
        row = self.reader.row(clip, example.waveform, example.targets, failed=example.failed)
        return row if self.taught is None else {**row, "taught": self.taught.scores(epoch, sample, row["labels"])}

    def invalid_row(self, clip: int = -1) -> Row:
        """Returns a row with ``valid`` 0: padding, or the unreadable clip `clip`."""
        row = self.reader.invalid_row(clip)
        return row if self.taught is None else {**row, "taught": row["labels"]}

    def augment(self, example: Example, epoch: int, sample: int) -> Example:
        """Returns the example after all steps of ``sampling.waveform``, as a function of (seed, epoch, sample).

        Raises AugmentationError if a step raises an exception.
        """
        for position, step in enumerate(self._steps):
            key = [STREAM, self.seed, epoch, sample, *([position] if position else [])]
            try:
                example = step(example, np.random.default_rng(key))
            except Exception as error:
                raise AugmentationError(
                    f"the step {self.sampling.waveform[position]!r} of {FIELD} failed for sample {sample} of epoch "
                    f"{epoch + 1} ({ingredients.reason(error)}): correct the step, and start the same command again to "
                    "resume."
                ) from error
        return example

    def require_usable(self) -> None:
        """Raises IngredientError or ConfigError unless every step of the augmentation can be computed."""
        size = self.reader.num_samples
        waveform = np.sin(np.arange(size, dtype=np.float32))
        targets = self.reader.targets(0)
        example = Example(waveform - waveform.mean(), targets)
        for text, step in zip(self.sampling.waveform, self._steps):
            for seed in range(TRIALS):
                try:
                    usable = _is_like(step(example, np.random.default_rng(seed)), example)
                except DatafileError as error:
                    raise ConfigError(f"{FIELD} is {text!r}: {error}") from error
                except Exception as error:
                    raise ingredients.IngredientError(
                        f"{FIELD} is {text!r}, which cannot be computed ({ingredients.reason(error)}): correct the "
                        "step or its options."
                    ) from error
                if not usable:
                    raise ingredients.IngredientError(
                        f"{FIELD} is {text!r}, which does not return an Example with a finite waveform (samples,) and "
                        "labels (classes,) in float32: correct the step."
                    )


def _is_like(result: object, example: Example) -> bool:
    """Returns whether the result of a step is an example with a finite waveform, and targets of the same shapes."""
    if not (isinstance(result, Example) and set(result.targets) == set(example.targets)):
        return False
    pairs = [(np.shape(x), getattr(x, "dtype", None)) for x in (result.targets[name] for name in example.targets)]
    same = all(pair == (target.shape, target.dtype) for pair, target in zip(pairs, example.targets.values()))
    is_waveform = (np.ndim(result.waveform), getattr(result.waveform, "dtype", None)) == (1, np.float32)
    return bool(same and is_waveform and np.isfinite(result.waveform).all())


def train_source(
    datafile: Datafile,
    data: DataConfig,
    sampling: SamplingConfig,
    *,
    num_samples: int,
    epochs: int,
    seed: int,
    grid: Grid | None = None,
    teacher: TeacherScores | None = None,
    taught: TaughtScores | None = None,
) -> TrainSource:
    """Returns the training source for a config; `num_samples` is the input length of the model, at `grid.rate`."""
    reader = ClipReader(datafile, num_samples, data.channel, grid or Grid(), teacher)
    return TrainSource(reader, data.batch_size, epochs, sampling, seed, taught)


def plain_source(
    datafile: Datafile, data: DataConfig, *, num_samples: int, seed: int, grid: Grid | None = None
) -> TrainSource:
    """Returns one shuffled pass over the training set without balancing or augmentation, to re-estimate batch_stats."""
    plain = SamplingConfig(balanced=False, waveform=(), spectrogram=())
    return train_source(datafile, data, plain, num_samples=num_samples, epochs=1, seed=seed, grid=grid)
