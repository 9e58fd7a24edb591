"""The settings of a training run: frozen dataclasses and their validation.

A config file is a Python file that assigns a :class:`RunConfig` to the name ``config``; the command line overrides any
field with ``--section.field value``. Nothing here imports JAX, so that ``psla --help`` stays quick.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Pooling = Literal["mean", "linear", "attention"]
Padding = Literal["symmetric", "static"]
Loss = Literal["auto", "bce", "ce"]
Channel = Literal["mean", "first"]
Compute = Literal["float32", "bfloat16"]
Threshold = Literal["mean", "median", "25", "10", "5"]
"""What a class has to score to be added in label enhancement: a statistic of its scores on the clips that carry it."""
Kind = Literal["type1", "type2", "type1_2"]
"""What label enhancement adds: missing children, missing parents, or both."""
KINDS: tuple[Kind, ...] = get_args(Kind)


class ConfigError(ValueError):
    """A setting that cannot be used; the message names the field, its value and the remedy."""


def _require(ok: bool, name: str, value: object, remedy: str) -> None:
    if not ok:
        raise ConfigError(f"{name} is {value!r}: {remedy}.")


def _require_one_of(name: str, value: object, choices: object) -> None:
    options = get_args(choices)
    _require(value in options, name, value, "choose one of " + ", ".join(map(str, options)))


@dataclass(frozen=True)
class FrontendConfig:
    """Log-mel settings; they travel with the model. Statistics are in log-mel units (PSLA, section III-A)."""

    target_length: int = 1056
    """Frames per clip (10 ms each); longer clips are cut, shorter ones zero-padded."""
    mean: float = -4.6476
    """Mean of the log-mel values, subtracted."""
    std: float = 4.5699
    """Standard deviation of the log-mel values, divided by."""

    def __post_init__(self) -> None:
        _require(self.target_length >= 1, "frontend.target_length", self.target_length, "use at least 1 frame")
        _require(0 < self.std < math.inf, "frontend.std", self.std, "use a positive standard deviation")
        _require(math.isfinite(self.mean), "frontend.mean", self.mean, "use a number")


@dataclass(frozen=True)
class ModelConfig:
    """The network: a backbone with a pooling head, or any NNX module named as ``module:callable``."""

    name: str = "efficientnet-b2"
    """``efficientnet-b0`` to ``-b7``, ``resnet50``, ``mobilenet-v2``, or ``package.module:callable`` for your own."""
    pooling: Pooling = "attention"
    """How steps become one score per class: ``attention``, ``mean`` of the scores, or ``linear`` on mean features."""
    heads: int = 4
    """Attention heads; ignored without attention."""
    padding: Padding = "symmetric"
    """``symmetric`` as efficientnet_pytorch 0.7.0, ``static`` as 0.7.1."""
    drop_connect: float = 0.2
    """Drop-connect rate of the last block; earlier blocks get a linear share."""

    def __post_init__(self) -> None:
        _require_one_of("model.pooling", self.pooling, Pooling)
        _require_one_of("model.padding", self.padding, Padding)
        _require(self.heads >= 1, "model.heads", self.heads, "use at least one head, or model.pooling mean for none")
        _require(0 <= self.drop_connect < 1, "model.drop_connect", self.drop_connect, "use a rate in [0, 1)")


@dataclass(frozen=True)
class PretrainingConfig:
    """The P of PSLA: what the backbone starts from."""

    source: str = ""
    """Empty for random weights; ``imagenet``; a backbone's ``.pth`` file; or a model or run directory, to fine-tune."""
    stem: Literal["sum", "random"] = "sum"
    """The one-channel stem of ImageNet weights: the sum of the colours' kernels, or random as in the reference."""
    head: Literal["match", "new"] = "match"
    """Fine-tuning: classes that the source knows by their mid keep their rows of the head, or all are new."""
    freeze: bool = False
    """Train the head alone: backbone and its batch statistics stay what they are."""
    backbone_rate: float = 1.0
    """Learning rate of the backbone, as a factor of that of the head."""

    def __post_init__(self) -> None:
        _require(self.stem in ("sum", "random"), "pretraining.stem", self.stem, "choose sum or random")
        _require(self.head in ("match", "new"), "pretraining.head", self.head, "choose match or new")
        _require(
            0 < self.backbone_rate < math.inf,
            "pretraining.backbone_rate",
            self.backbone_rate,
            "use a positive factor, or pretraining.freeze",
        )
        _require(
            bool(self.source) or not self.freeze,
            "pretraining.freeze",
            self.freeze,
            "name what the backbone is to stay with pretraining.source",
        )


@dataclass(frozen=True)
class DataConfig:
    """Where the clips are and how they are loaded."""

    train: str = ""
    """Training datafile (JSON)."""
    labels: str = ""
    """Vocabulary: CSV with the header index,mid,display_name."""
    validation: str = ""
    """Validation datafile: the best epoch is chosen on it. Empty: none, as in AudioSet."""
    evaluation: str = ""
    """Evaluation datafile: scored, never used to choose anything while there is a validation set."""
    batch_size: int = 100
    """Clips per optimizer step, over all devices."""
    workers: int = 2
    """Loader processes; 0 loads in threads of the main process. The data are the same for any number."""
    channel: Channel = "mean"
    """Which channel of a stereo file: the mean of all, or the first (as the reference)."""
    preflight: int = 20_000
    """How many clips are read once, in parallel, before training starts; the paths of all are looked up."""
    unreadable: Literal["stop", "skip"] = "stop"
    """What a clip that the preflight cannot read does: stop before training, or be set aside and reported."""
    edited: Literal["stop", "accept"] = "stop"
    """What a datafile that was edited since the run was started does: stop the run, or be accepted and noted."""

    def __post_init__(self) -> None:
        _require_one_of("data.channel", self.channel, Channel)
        _require(self.batch_size >= 1, "data.batch_size", self.batch_size, "use at least one clip")
        _require(self.workers >= 0, "data.workers", self.workers, "use 0 or more processes")
        _require(self.preflight >= 0, "data.preflight", self.preflight, "use 0 or more clips")
        _require(self.unreadable in ("stop", "skip"), "data.unreadable", self.unreadable, "choose stop or skip")
        _require(self.edited in ("stop", "accept"), "data.edited", self.edited, "choose stop or accept")


@dataclass(frozen=True)
class SamplingConfig:
    """The S of PSLA: balanced sampling and augmentation (PSLA, section III-C)."""

    balanced: bool = True
    """Draw clips by the inverse frequency of their labels; off: every clip once an epoch, shuffled."""
    mixup: float = 0.5
    """Probability that a clip is mixed with another one."""
    freq_mask: int = 48
    """Widest frequency mask in mel bins; 0 for none."""
    time_mask: int = 192
    """Widest time mask in frames; 0 for none."""
    noise: bool = False
    """Add uniform noise to the spectrogram and roll it by up to ten frames."""

    def __post_init__(self) -> None:
        _require(0 <= self.mixup <= 1, "sampling.mixup", self.mixup, "use a probability in [0, 1]")
        _require(0 <= self.freq_mask <= 128, "sampling.freq_mask", self.freq_mask, "use 0 to 128 mel bins")
        _require(self.time_mask >= 0, "sampling.time_mask", self.time_mask, "use 0 or more frames")


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam with L2 added to the gradient, linear warm-up, step decay."""

    learning_rate: float = 1e-4
    """Peak learning rate."""
    epochs: int = 30
    """Passes over as many clips as the training set has."""
    warmup_steps: int = 1000
    """Steps of linear warm-up; 0 for none."""
    decay_start: int = 10
    """The rate is first decayed after this epoch."""
    decay_every: int = 5
    """... and again every so many epochs."""
    decay: float = 0.5
    """Factor of each decay."""
    weight_decay: float = 5e-7
    """L2 coefficient, added to the gradient (not decoupled)."""
    loss: Loss = "auto"
    """``bce`` for tags, ``ce`` where every clip has exactly one label; ``auto``: what the training datafile says of its
    classes. With ``ce`` the best epoch is the most accurate one, with ``bce`` that of the highest mAP."""
    accumulate: int = 1
    """Microbatches per step: less memory, same gradient (batch statistics are per microbatch)."""
    compute: Compute = "float32"
    """Arithmetic of the backbone; parameters, statistics, frontend and head stay in float32."""
    remat: bool = False
    """On accelerators: keep only the blocks' inputs for the backward pass, for less memory and a third more work."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """What a step whose loss or gradient is not finite does: stop the run, or change nothing and be counted."""

    def __post_init__(self) -> None:
        _require(
            0 < self.learning_rate < math.inf, "optimizer.learning_rate", self.learning_rate, "use a positive rate"
        )
        _require(self.epochs >= 1, "optimizer.epochs", self.epochs, "train for at least one epoch")
        _require(self.warmup_steps >= 0, "optimizer.warmup_steps", self.warmup_steps, "use 0 or more steps")
        _require(self.decay_start >= 1, "optimizer.decay_start", self.decay_start, "use epoch 1 or later")
        _require(self.decay_every >= 1, "optimizer.decay_every", self.decay_every, "use at least one epoch")
        _require(0 < self.decay <= 1, "optimizer.decay", self.decay, "use a factor in (0, 1]")
        _require(0 <= self.weight_decay < math.inf, "optimizer.weight_decay", self.weight_decay, "use 0 or more")
        _require(self.accumulate >= 1, "optimizer.accumulate", self.accumulate, "use at least one microbatch")
        _require(self.nonfinite in ("stop", "skip"), "optimizer.nonfinite", self.nonfinite, "choose stop or skip")
        _require_one_of("optimizer.loss", self.loss, Loss)
        _require_one_of("optimizer.compute", self.compute, Compute)


@dataclass(frozen=True)
class AggregationConfig:
    """The A of PSLA: weight averaging and the checkpoint ensemble."""

    first: int = 16
    """First epoch of the weight average."""
    last: int = 30
    """Last epoch of the weight average."""
    reestimate: bool = True
    """Re-estimate the batch statistics of the averaged weights by one pass over the training set."""

    def __post_init__(self) -> None:
        _require(self.first >= 1, "aggregation.first", self.first, "epochs are counted from 1")
        _require(
            self.last >= self.first, "aggregation.last", self.last, f"use {self.first} (aggregation.first) or later"
        )


@dataclass(frozen=True)
class ShareConfig:
    """Several processes that divide work without a word to each other; Slurm and Open MPI say it by themselves."""

    processes: int = 1
    """How many there are."""
    index: int = 0
    """Which one this is, from 0."""

    def __post_init__(self) -> None:
        _require(self.processes >= 1, "distributed.processes", self.processes, "use 1 or more")
        _require(
            0 <= self.index < self.processes,
            "distributed.index",
            self.index,
            f"use 0 to {self.processes - 1}, one of distributed.processes",
        )


@dataclass(frozen=True)
class DistributedConfig(ShareConfig):
    """Several processes that compute together; Slurm, Open MPI and Kubernetes say all of it by themselves."""

    coordinator: str = ""
    """Address of the first process, ``host:port``, the same for all; empty for one process, or where a launcher says
    it."""
    timeout: int = 60
    """Seconds without a sign of life of another process after which this one ends."""
    meeting: int = 300
    """Seconds in which all of them have to be there."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.timeout >= 5, "distributed.timeout", self.timeout, "use 5 seconds or more")
        _require(self.meeting >= 1, "distributed.meeting", self.meeting, "use 1 second or more")
        _require(
            not self.coordinator or self.coordinator.rpartition(":")[2].isdigit(),
            "distributed.coordinator",
            self.coordinator,
            "use host:port",
        )


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides the result of a run, and where it goes."""

    run_dir: str = "runs/run"
    """The run directory; started again on it, a run continues."""
    seed: int = 0
    """Every random draw is a function of (seed, epoch, sample)."""
    data: DataConfig = field(default_factory=DataConfig)
    frontend: FrontendConfig = field(default_factory=FrontendConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    pretraining: PretrainingConfig = field(default_factory=PretrainingConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    aggregation: AggregationConfig = field(default_factory=AggregationConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    checkpoint_every: int = 0
    """Save a checkpoint every so many steps too, not only at the end of an epoch; 0 for epochs only."""
    checkpoint_minutes: float = 15.0
    """Save one too when the last one is so old; 0 for never."""
    profile: int = 0
    """Record so many steps with JAX's profiler, into the run directory, and say how long the device waited for data."""
    bootstrap: int = 200
    """Resamples behind the confidence interval of each final mAP."""

    def __post_init__(self) -> None:
        _require(self.seed >= 0, "seed", self.seed, "use 0 or a positive number")
        _require(self.checkpoint_every >= 0, "checkpoint_every", self.checkpoint_every, "use 0 or more steps")
        _require(
            0 <= self.checkpoint_minutes < math.inf, "checkpoint_minutes", self.checkpoint_minutes, "use 0 or more"
        )
        _require(self.profile >= 0, "profile", self.profile, "use 0 or more steps")
        _require(self.bootstrap >= 0, "bootstrap", self.bootstrap, "use 0 or more resamples")
        _require(
            self.aggregation.last <= self.optimizer.epochs,
            "aggregation.last",
            self.aggregation.last,
            f"the run ends after epoch {self.optimizer.epochs} (optimizer.epochs); average epochs up to that one",
        )
        _require(
            self.data.batch_size % self.optimizer.accumulate == 0,
            "optimizer.accumulate",
            self.optimizer.accumulate,
            f"use a divisor of data.batch_size, {self.data.batch_size}",
        )
        _require(
            self.sampling.time_mask <= self.frontend.target_length,
            "sampling.time_mask",
            self.sampling.time_mask,
            f"use at most frontend.target_length, {self.frontend.target_length} frames",
        )


FREE_FIELDS = frozenset(
    {
        "run_dir",
        "checkpoint_every",
        "checkpoint_minutes",
        "profile",
        "data.workers",
        "data.preflight",
        "data.unreadable",
        "data.edited",
    }
    | {"optimizer.nonfinite"}
    | {f"distributed.{field.name}" for field in dataclasses.fields(DistributedConfig)}
    | {"data.train", "data.validation", "data.evaluation", "data.labels"}
)
"""Fields that may change when a run is resumed: they do not touch its results, or are how it gets over what stopped it.
Data are compared by content instead."""


def flatten(config: RunConfig) -> dict[str, Any]:
    """Every field under its command-line name, ``section.field``."""
    flat: dict[str, Any] = {}
    for name, value in dataclasses.asdict(config).items():
        if isinstance(value, dict):
            flat.update({f"{name}.{key}": item for key, item in value.items()})
        else:
            flat[name] = value
    return flat


def to_json(config: RunConfig) -> str:
    """The config as JSON text, for ``config.json`` of a run directory."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str) -> RunConfig:
    """The config that :func:`to_json` wrote.

    Raises:
        ConfigError: when the text is not such a config.
    """
    sections = {
        f.name: f.default_factory for f in dataclasses.fields(RunConfig) if f.default_factory is not dataclasses.MISSING
    }
    try:
        values = json.loads(text)
        return RunConfig(**{k: sections[k](**v) if k in sections else v for k, v in values.items()})  # type: ignore[operator]
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"this is not the config of a run: {error}") from error


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """The fields that decide results and differ, each as ``field: old -> new``."""
    before, after = flatten(old), flatten(new)
    return [f"{k}: {before[k]!r} -> {after[k]!r}" for k in after if k not in FREE_FIELDS and before[k] != after[k]]
