"""Settings of a training run: frozen dataclasses that validate themselves.

A config file is a Python file that assigns a :class:`RunConfig` to the name ``config``; the command line overrides any
field with ``--section.field value``. The field docstrings are the text of ``psla train --help``. This module does not
import JAX, so that ``psla --help`` starts quickly.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from psla_jax.config_distill import DistillConfig
from psla_jax.config_fields import PREFIXES, ConfigError
from psla_jax.config_fields import name_ingredients as _name_ingredients
from psla_jax.config_fields import require as _require
from psla_jax.config_fields import require_one_of as _require_one_of
from psla_jax.config_fields import to_tuples as _to_tuples
from psla_jax.config_model import FrontendConfig as FrontendConfig
from psla_jax.config_model import ModelConfig as ModelConfig
from psla_jax.config_model import Padding as Padding
from psla_jax.config_model import Statistic as Statistic
from psla_jax.config_model import frontend_settings as frontend_settings
from psla_jax.config_model import network_settings as network_settings
from psla_jax.config_model import require_sample_rate as require_sample_rate
from psla_jax.ingredients import Ingredient, IngredientError, import_path, parse

Channel = Literal["mean", "first"]
Precision = Literal["highest", "tf32", "bf16"]
"""Precision of products and convolutions, see :mod:`psla_jax.models.precision`."""
_EARLIER_PRECISIONS: dict[str, Precision] = {"float32": "tf32", "bfloat16": "bf16"}
"""Precision by the value of ``optimizer.compute``, the name of the field in earlier versions."""
Threshold = Literal["mean", "median", "25", "10", "5"]
"""Score threshold of label enhancement: mean, median or percentile of a class's scores on clips labelled with it."""
Kind = Literal["type1", "type2", "type1_2"]
"""Labels that label enhancement adds: missing children, missing parents, or both (PSLA, section III-D)."""
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class PretrainingConfig:
    """Initial weights: the P of PSLA."""

    source: str = ""
    """Empty for random weights, `imagenet`, a backbone's `.pth` or `.safetensors` file, or a model or run directory to
    fine-tune."""
    stem: Literal["sum", "random"] = "sum"
    """One-channel stem from ImageNet weights: `sum` of the colour kernels, or `random` as in the reference."""
    head: Literal["match", "new"] = "match"
    """Head in fine-tuning: `match` copies the rows of classes with equal mids, `new` starts from random weights."""
    freeze: bool = False
    """Train the head only; the parameters and batch statistics of the backbone stay fixed."""
    backbone_rate: float = 1.0
    """Learning rate of the backbone, relative to that of the head."""

    def __post_init__(self) -> None:
        _require(self, "stem", self.stem in ("sum", "random"), "choose sum or random")
        _require(self, "head", self.head in ("match", "new"), "choose match or new")
        positive = 0 < self.backbone_rate < math.inf
        _require(self, "backbone_rate", positive, "use a positive factor, or pretraining.freeze")
        remedy = "name the weights of the backbone with pretraining.source"
        _require(self, "freeze", bool(self.source) or not self.freeze, remedy)


@dataclass(frozen=True)
class DataConfig:
    """Data sets and data loading."""

    train: str = ""
    """Training datafile (JSON); required."""
    labels: str = ""
    """Vocabulary: `audioset`, `fsd50k`, or a CSV file with the header index,mid,display_name; required."""
    validation: str = ""
    """Validation datafile, which selects the best epoch; empty if there is no validation set, as in AudioSet."""
    evaluation: str = ""
    """Evaluation datafile; it selects the best epoch only if there is no validation set."""
    batch_size: int = 100
    """Clips per training step, over all devices."""
    workers: int = 2
    """Number of loader processes; 0 loads in threads of the main process, which is fastest from 16-bit shards. The
    batches do not depend on it."""
    threads: int = 2
    """Number of threads of each loader process, or of the main process, each of which reads one batch at a time."""
    channel: Channel = "mean"
    """Conversion of multi-channel audio to mono: `mean` of the channels, or `first` as in the reference."""
    preflight: int = 20_000
    """Clips per data set that are decoded once before training to find unreadable ones; all paths are checked."""
    unreadable: Literal["stop", "skip"] = "stop"
    """Action on missing or unreadable clips found before training: `stop`, or `skip` and report them."""
    edited: Literal["stop", "accept"] = "stop"
    """Action on resuming with a datafile that was edited: `stop`, or `accept` it and log the change."""
    windows: bool = False
    """Score held-out clips that are longer than frontend.target_length by overlapping windows, as `psla tag` does;
    False scores their beginning."""

    def __post_init__(self) -> None:
        _require_one_of(self, "channel", Channel)
        _require(self, "batch_size", self.batch_size >= 1, "use at least one clip")
        _require(self, "workers", self.workers >= 0, "use 0 or more processes")
        _require(self, "threads", self.threads >= 1, "use at least one thread")
        _require(self, "preflight", self.preflight >= 0, "use 0 or more clips")
        _require(self, "unreadable", self.unreadable in ("stop", "skip"), "choose stop or skip")
        _require(self, "edited", self.edited in ("stop", "accept"), "choose stop or accept")


@dataclass(frozen=True)
class SamplingConfig:
    """Balanced sampling and augmentation: the S of PSLA (section III-C)."""

    balanced: bool = True
    """Weight clips by the inverse frequency of their labels; False draws each once per epoch, shuffled."""
    mixup: float = 0.5
    """Probability that a clip is mixed with another one (mixup)."""
    freq_mask: int = 48
    """Upper bound on the width of the frequency mask, in mel bins; 0 disables it."""
    time_mask: int = 192
    """Upper bound on the width of the time mask, in spectrogram frames; 0 disables it."""
    noise: bool = False
    """Add uniform noise to the spectrogram and roll it in time by up to ten frames; the same as the step `noise`."""
    waveform: tuple[Ingredient, ...] = ("mixup",)
    """Augmentation of waveforms, in this order: `mixup`, `gain`, `roll`, `crop`, `background`, or
    `module:callable`, each with options, such as `gain(decibels=12)`; see psla_jax.sampling.waveform."""
    spectrogram: tuple[Ingredient, ...] = ("specaugment",)
    """Augmentation of normalised spectrograms, in this order: `specaugment`, `freq_mixstyle`, `filter_augment`,
    `mixup`, `noise`, `patchout`, or `module:callable`, each with options; see psla_jax.sampling.spectrogram."""

    def __post_init__(self) -> None:
        _name_ingredients(self, "waveform", "spectrogram", several=True)
        _require(self, "mixup", 0 <= self.mixup <= 1, "use a probability in [0, 1]")
        _require(self, "freq_mask", self.freq_mask >= 0, "use 0 or more mel bins")
        _require(self, "time_mask", self.time_mask >= 0, "use 0 or more frames")


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer, its learning-rate schedule, and the loss. The defaults are PSLA's: Adam with L2 regularisation, linear
    warm-up and step decay of the learning rate."""

    name: Ingredient = "adam"
    """Optimizer: `adam` (PSLA's), `adamw`, `lamb`, `lion`, `muon`, `sgd`, or `module:callable` that returns an
    optax.GradientTransformation, each with options, such as `adamw(b2=0.98)`; see psla_jax.training.optimizer."""
    schedule: Ingredient = "step_decay"
    """Schedule of the learning rate: `step_decay` (PSLA's), `cosine`, `constant` or `exponential` after the warm-up, or
    `module:callable` that returns an optax schedule, each with options."""
    learning_rate: float = 1e-4
    """Learning rate after the warm-up."""
    epochs: int = 30
    """Number of epochs; each draws as many clips as the training set has."""
    warmup_steps: int = 1000
    """Number of steps of linear warm-up; 0 disables it."""
    decay_start: int = 10
    """Epoch after which the learning rate is decayed for the first time."""
    decay_every: int = 5
    """Number of epochs between decays."""
    decay: float = 0.5
    """Factor by which a decay multiplies the learning rate."""
    weight_decay: float = 5e-7
    """Weight decay: for `adam` and `sgd` the L2 coefficient of a term of the gradient, else decoupled, for which values
    such as 0.01 are usual."""
    no_decay: tuple[str, ...] = ()
    """Patterns of the parameters without weight decay, such as `*.bias` `*_bn*`: shell patterns of dotted names."""
    rates: tuple[str, ...] = ()
    """Relative learning rates of parameters, as pattern=factor, such as `effnet.*=0.1`; the first match counts."""
    clip: float = 0.0
    """Largest norm of the gradient of all parameters together; a longer one is scaled down. 0 disables it."""
    ema: float = 0.0
    """Decay per step of the exponential moving average of the weights, such as 0.999, which the summary lists as a
    model of its own; 0 disables it."""
    loss: Ingredient = "auto"
    """Binary cross-entropy `bce`, cross-entropy `ce` (one label per clip), or `auto` as the datafile declares; also
    `focal`, `asymmetric`, or `module:callable`, each with options, such as `focal(gamma=2)`; see
    psla_jax.training.losses. The best epoch is the one with the highest mAP, or accuracy for `ce`."""
    label_smoothing: float = 0.0
    """Share of each label that is replaced by chance: 1/2 for `bce`, one over the number of classes for `ce`."""
    class_weights: str = ""
    """Weights of the classes in the loss: `inverse` or `sqrt`, by the (square root of the) inverse number of training
    clips, or a CSV file with the header mid,weight; empty for equal weights."""
    accumulate: int = 1
    """Microbatches per step: less memory, same gradient; batch statistics are those of each microbatch."""
    precision: Precision = "tf32"
    """Precision of products and convolutions in training steps: `highest` (float32), `tf32` (TensorFloat-32 on GPUs, as
    in the reference, and float32 on CPUs), or `bf16` (a bfloat16 backbone); parameters, statistics, frontend and head
    stay in float32, and all scores are computed at `highest`."""
    remat: bool = False
    """Recompute each block in the backward pass: on accelerators, a quarter of the memory for a third more work."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """Action on a loss or gradient that is not finite: `stop` the run, or `skip` the update and count the step."""
    patience: int = 0
    """Early stopping: epochs after the best one on the validation set after which training ends; 0 disables it."""

    def __post_init__(self) -> None:
        _require(self, "learning_rate", 0 < self.learning_rate < math.inf, "use a positive rate")
        _require(self, "epochs", self.epochs >= 1, "train for at least one epoch")
        _require(self, "patience", self.patience >= 0, "use 0 or more epochs")
        _require(self, "warmup_steps", self.warmup_steps >= 0, "use 0 or more steps")
        _require(self, "decay_start", self.decay_start >= 1, "use epoch 1 or later")
        _require(self, "decay_every", self.decay_every >= 1, "use at least one epoch")
        _require(self, "decay", 0 < self.decay <= 1, "use a factor in (0, 1]")
        _require(self, "weight_decay", 0 <= self.weight_decay < math.inf, "use 0 or more")
        _require(self, "accumulate", self.accumulate >= 1, "use at least one microbatch")
        _require(self, "nonfinite", self.nonfinite in ("stop", "skip"), "choose stop or skip")
        _require_one_of(self, "precision", Precision)
        _name_ingredients(self, "name", "schedule", "loss")
        _to_tuples(self, "no_decay", "rates")
        factors = [rate.rpartition("=")[2] for rate in self.rates]
        valid = all(_is_number(factor) and 0 <= float(factor) < math.inf for factor in factors)
        _require(self, "rates", valid and all("=" in rate for rate in self.rates), "give pattern=factor, factor >= 0")
        _require(self, "clip", 0 <= self.clip < math.inf, "use a positive norm, or 0 for none")
        _require(self, "ema", 0 <= self.ema < 1, "use a decay in [0, 1), such as 0.999")
        _require(self, "label_smoothing", 0 <= self.label_smoothing < 1, "use a share in [0, 1)")


def _is_number(text: str) -> bool:
    try:
        return not math.isnan(float(text))
    except ValueError:
        return False


@dataclass(frozen=True)
class AggregationConfig:
    """Weight averaging and checkpoint ensemble: the A of PSLA (section III-E)."""

    first: int = 16
    """First epoch of the weight average, counted from 1."""
    last: int = 0
    """Last epoch of the weight average; 0 for the last epoch of the run."""
    reestimate: bool = True
    """Re-estimate the batch statistics of the averaged weights in one pass over the training set."""

    def __post_init__(self) -> None:
        _require(self, "first", self.first >= 1, "epochs are counted from 1")
        remedy = f"use {self.first} (aggregation.first) or later, or 0 for the last epoch"
        _require(self, "last", self.last == 0 or self.last >= self.first, remedy)


@dataclass(frozen=True)
class ShareConfig:
    """Division of work among processes that do not communicate; detected under Slurm and Open MPI."""

    processes: int = 1
    """Number of processes."""
    index: int = 0
    """Index of this process, counted from 0."""

    def __post_init__(self) -> None:
        _require(self, "processes", self.processes >= 1, "use 1 or more")
        remedy = f"use 0 to {self.processes - 1} with distributed.processes {self.processes}"
        _require(self, "index", 0 <= self.index < self.processes, remedy)


@dataclass(frozen=True)
class DistributedConfig(ShareConfig):
    """Distributed computation; the processes are detected under Slurm, Open MPI and Kubernetes."""

    coordinator: str = ""
    """Address of process 0, `host:port`; empty for a single process and under these launchers."""
    timeout: int = 60
    """Seconds without a heartbeat of another process after which this one exits."""
    meeting: int = 300
    """Seconds to wait at start-up for all processes to connect."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self, "timeout", self.timeout >= 5, "use 5 seconds or more")
        _require(self, "meeting", self.meeting >= 1, "use 1 second or more")
        port = self.coordinator.rpartition(":")[2]
        _require(self, "coordinator", not self.coordinator or port.isdigit(), "use host:port")


@dataclass(frozen=True)
class RunConfig:
    """All settings of a training run: everything that determines its results, and where they are written."""

    run_dir: str = "runs/run"
    """Directory of checkpoints, models, scores, tables and logs; a run that exists there is resumed."""
    seed: int = 0
    """Seed of the run; every random draw is a function of (seed, epoch, sample)."""
    data: DataConfig = field(default_factory=DataConfig)
    frontend: FrontendConfig = field(default_factory=FrontendConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    pretraining: PretrainingConfig = field(default_factory=PretrainingConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    aggregation: AggregationConfig = field(default_factory=AggregationConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    checkpoint_every: int = 0
    """Steps between checkpoints, in addition to the one at the end of each epoch; 0 disables them."""
    checkpoint_minutes: float = 15.0
    """Minutes after the last checkpoint at which another one is saved; 0 disables it."""
    profile: int = 0
    """Steps to record with JAX's profiler in the run directory; the idle time of the devices is logged."""
    bootstrap: int = 200
    """Number of bootstrap resamples for the 95% confidence interval of each final mAP; 0 disables it."""
    metrics: tuple[Ingredient, ...] = ()
    """Further metrics: `lwlrap`, `micro_f1`, `macro_f1(threshold=0.3)`, `accuracy`, `top_k(k=5)`, `micro_map`, or
    `module:callable` of scores and labels."""
    select: str = ""
    """Column of result.csv that selects the best epoch, such as `lwlrap`, `mAUC` or `valid_loss` (the lowest); empty:
    `mAP`, or `accuracy` with the loss `ce`."""
    log: tuple[Ingredient, ...] = ("tensorboard",)
    """Trackers of the curves: `tensorboard`, `wandb`, `mlflow`, with options as in `wandb(project='mine')`, or
    `module:callable`."""

    def __post_init__(self) -> None:
        _require(self, "seed", self.seed >= 0, "use 0 or a positive number")
        _require(self, "checkpoint_every", self.checkpoint_every >= 0, "use 0 or more steps")
        _require(self, "checkpoint_minutes", 0 <= self.checkpoint_minutes < math.inf, "use 0 or more")
        _require(self, "profile", self.profile >= 0, "use 0 or more steps")
        _require(self, "bootstrap", self.bootstrap >= 0, "use 0 or more resamples")
        _name_ingredients(self, "metrics", "log", several=True)
        epochs, batch_size, frames = self.optimizer.epochs, self.data.batch_size, self.frontend.target_length
        remedy = f"the run ends after epoch {epochs} (optimizer.epochs); average epochs up to that one"
        for name in ("first", "last"):
            _require(self.aggregation, name, getattr(self.aggregation, name) <= epochs, remedy)
        remedy = "name the set that decides when training ends with data.validation, or use 0"
        _require(self.optimizer, "patience", not self.optimizer.patience or bool(self.data.validation), remedy)
        remedy = "name the set that selects the best epoch with data.validation, or leave it empty"
        _require(self, "select", not self.select or bool(self.data.validation), remedy)
        remedy = f"use a divisor of data.batch_size, {batch_size}"
        _require(self.optimizer, "accumulate", batch_size % self.optimizer.accumulate == 0, remedy)
        mixed = bool(self.distill.consistency) and any(parse(s)[0] == "mixup" for s in self.sampling.spectrogram)
        remedy = "its two views would be mixes of different clips: mix waveforms, with sampling.waveform mixup"
        _require(self.distill, "consistency", not mixed, remedy)
        remedy = f"use at most frontend.target_length, {frames} frames"
        _require(self.sampling, "time_mask", self.sampling.time_mask <= frames, remedy)
        remedy = f"use at most frontend.num_mels, {self.frontend.num_mels} mel bins"
        _require(self.sampling, "freq_mask", self.sampling.freq_mask <= self.frontend.num_mels, remedy)


def is_exclusive(loss: Ingredient) -> bool:
    """Returns whether a loss is for clips with exactly one class each.

    It is ``ce``, or a callable of one's own with the attribute ``exclusive = True``. Raises ConfigError if that cannot
    be imported.
    """
    try:
        name = parse(loss)[0]
        return name == "ce" or (":" in name and getattr(import_path(name), "exclusive", False) is True)
    except IngredientError as error:
        raise ConfigError(f"optimizer.loss: {error}.") from error


_SECTIONS: dict[str, Any] = {
    f.name: f.default_factory for f in dataclasses.fields(RunConfig) if f.default_factory is not dataclasses.MISSING
}
"""Class of every section."""
PREFIXES |= {ShareConfig: "distributed."} | {kind: f"{name}." for name, kind in _SECTIONS.items()}

FREE_FIELDS = frozenset(
    {"run_dir", "checkpoint_every", "checkpoint_minutes", "profile", "optimizer.nonfinite", "optimizer.patience"}
    | {"aggregation.first", "aggregation.last", "bootstrap", "select", "log"}
    | {"data.train", "data.labels", "data.validation", "data.evaluation"}
    | {"data.workers", "data.threads", "data.preflight", "data.unreadable", "data.edited"}
    | {f"distributed.{field.name}" for field in dataclasses.fields(DistributedConfig)}
)
"""Fields that may change when a run is resumed. They do not affect the results of an epoch, or they resolve the error
that stopped the run (``unreadable``, ``edited``, ``nonfinite``). Data sets are compared by content, not by path."""


def flatten(config: RunConfig) -> dict[str, Any]:
    """Returns every field's value by its command-line name, ``section.field`` or ``field``."""
    flat: dict[str, Any] = {}
    for name, value in dataclasses.asdict(config).items():
        flat |= {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def to_json(config: RunConfig) -> str:
    """Returns the config as JSON text, the content of ``config.json`` in a run directory."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str) -> RunConfig:
    """Returns the config that :func:`to_json` converted to text. Raises ConfigError if the text is none."""
    try:
        fields = json.loads(text)
        optimizer = {**fields.get("optimizer", {})}
        if "compute" in optimizer:
            optimizer["precision"] = _EARLIER_PRECISIONS[optimizer.pop("compute")]
        fields |= {"optimizer": optimizer}
        return RunConfig(**{k: _SECTIONS[k](**v) if k in _SECTIONS else v for k, v in fields.items()})
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise ConfigError(f"this is not the config of a run: {error}") from error


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """Returns the fields that keep a run from being resumed, each as ``field: old -> new``.

    They are those outside :data:`FREE_FIELDS` whose values differ; ``optimizer.epochs`` may grow.
    """
    before, after = flatten(old), flatten(new)
    free = FREE_FIELDS | ({"optimizer.epochs"} if new.optimizer.epochs > old.optimizer.epochs else set())
    return [f"{k}: {before[k]!r} -> {after[k]!r}" for k in after if k not in free and before[k] != after[k]]
