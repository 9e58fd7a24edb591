"""Models in, out and together: convert, export, models, average, check-model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from psla_jax.commands.arguments import UsageError, parse
from psla_jax.terminal import printable


@dataclass(frozen=True)
class Convert:
    """Official PyTorch weights to a model. Example: psla convert as_mdl_0.pth models/as0 --labels audioset"""

    source: Positional[str]
    """The checkpoint (.pth): EffNetAttention of any size and number of heads, ResNetAttention or MBNet."""
    model: Positional[str]
    """The model directory to make."""
    labels: str
    """Label CSV (index,mid,display_name) that it was trained with; audioset and fsd50k are built in."""
    padding: Literal["symmetric", "static"] = "symmetric"
    """Of an EfficientNet: symmetric as efficientnet_pytorch 0.7.0, static as 0.7.1. The weights do not tell."""
    target_length: int = 0
    """Frames that the model was trained on; 0: 3000 for the 200 classes of FSD50K, else 1056."""
    mean: float = -4.6476
    """Mean of the log-mel values that it was trained with."""
    std: float = 4.5699
    """And their standard deviation."""
    licence: str = ""
    """Of the weights, kept in the model."""
    overwrite: bool = False
    """Replace a model that is there."""


def convert(arguments: list[str]) -> int:
    """psla convert SRC.pth MODEL --labels L.csv"""
    options = parse(Convert, arguments, "psla convert")

    from psla_jax.pretraining import convert

    print(printable("\n".join(convert.convert(convert.Request(**dataclasses.asdict(options))).lines())))
    return 0


@dataclass(frozen=True)
class Export:
    """A model as PyTorch weights under the official names. Example: psla export runs/demo demo.pth"""

    model: Positional[str]
    """Model directory or run directory."""
    destination: Positional[str]
    """The .pth to write; its classes go beside it, as .labels.csv."""
    data_parallel: bool = False
    """Put module. in front of every name, as the released checkpoints have it."""
    overwrite: bool = False
    """Replace files that are there."""


def export(arguments: list[str]) -> int:
    """psla export MODEL DEST.pth"""
    options = parse(Export, arguments, "psla export")

    from psla_jax.pretraining import convert

    lines = convert.export(
        options.model, options.destination, data_parallel=options.data_parallel, overwrite=options.overwrite
    )
    print(printable("\n".join(lines)))
    return 0


@dataclass(frozen=True)
class Models:
    """The official weights. Example: psla models audioset-single --out models/as0. Without a name: lists them."""

    name: Positional[str] = ""
    """Which ones to download, if they are not in the cache, and to convert."""
    out: str = ""
    """The model directory to make, or for a set the folder of them; empty: models/NAME."""
    padding: Literal["symmetric", "static"] = "symmetric"
    """Which padding the model has, see psla convert."""
    overwrite: bool = False
    """Replace a model that is there."""


def models(arguments: list[str]) -> int:
    """psla models [NAME]"""
    options = parse(Models, arguments, "psla models")

    from psla_jax.pretraining import official

    if not options.name:
        if options.out or options.overwrite:
            raise UsageError("psla models wants the name of what to download: psla models audioset-single")
        official.show()
        return 0
    destination = Path(options.out or f"models/{options.name}")
    official.get(options.name, destination, padding=options.padding, overwrite=options.overwrite, say=print)
    return 0


@dataclass(frozen=True)
class Average:
    """The mean of models' weights. Example: psla average runs/a/models/epoch_0* models/mean --data train.json"""

    models: Positional[tuple[str, ...]]
    """Models of one architecture and vocabulary; the last name is that of the model to make."""
    data: str = ""
    """Training datafile to re-estimate the batch statistics on; empty: they are averaged plainly."""
    batch_size: int = 32
    """Clips at a time for that."""
    channel: Literal["mean", "first"] = "mean"
    """Which channel of a stereo file."""
    trust: bool = False
    """Import the Python code that a custom model names."""
    overwrite: bool = False
    """Replace a model that is there."""


def average(arguments: list[str]) -> int:
    """psla average MODEL... DEST"""
    options = dataclasses.asdict(parse(Average, arguments, "psla average"))
    *paths, destination = options.pop("models") or [""]
    if len(paths) < 2:
        raise UsageError("psla average wants two models or more and the name of the one to make: A B models/mean")

    from psla_jax import averaging

    averaging.average_models(averaging.Request(tuple(paths), destination, **options))
    return 0


@dataclass(frozen=True)
class CheckModel:
    """Scores a built-in test sound, and compares with the model's own record. Example: psla check-model models/as0"""

    model: Positional[str]
    """Model directory or run directory."""
    trust: bool = False
    """Import the Python code that a custom model names."""


def check_model(arguments: list[str]) -> int:
    """psla check-model MODEL"""
    options = parse(CheckModel, arguments, "psla check-model")

    from psla_jax.checkpoints import load_model
    from psla_jax.verification import check

    found = check(load_model(options.model, trust=options.trust), options.model)
    print(printable(found.line()))
    return 0 if found.verified else 1
