"""Commands for model files: convert, export, models, average and check-model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from psla_jax.cli.arguments import UsageError, parse
from psla_jax.runtime.terminal import printable


@dataclass(frozen=True)
class Convert:
    """Converts official weights to a model. Example: psla convert as_mdl_0.pth models/as0 --labels audioset"""

    source: Positional[str]
    """Checkpoint (.pth or .safetensors): EffNetAttention of any size and number of heads, ResNetAttention or MBNet."""
    model: Positional[str]
    """Model directory to write."""
    labels: str = ""
    """Label CSV (index,mid,display_name) that it was trained with; audioset and fsd50k are built in. The .safetensors
    files of psla export state their classes and all of the following settings."""
    padding: Literal["symmetric", "static"] = "symmetric"
    """Padding of an EfficientNet, not stored in the weights: symmetric as in efficientnet_pytorch 0.7.0, static as in
    0.7.1."""
    target_length: int = 0
    """Number of frames that the model was trained on; 0: 3000 for the 200 classes of FSD50K, else 1056."""
    mean: float = -4.6476
    """Mean of the log-mel values that the model was trained with."""
    std: float = 4.5699
    """Standard deviation of the log-mel values that the model was trained with."""
    sample_rate: int = 16_000
    """Sample rate in Hz that the model was trained at; as for the following ones, the default is the reference's."""
    num_mels: int = 128
    """Number of mel bins."""
    hop: float = 10.0
    """Milliseconds from one spectrogram frame to the next."""
    window: float = 25.0
    """Milliseconds of a spectrogram frame."""
    low_hz: float = 20.0
    """Lower edge of the lowest mel filter, in Hz."""
    high_hz: float = 0.0
    """Upper edge of the highest mel filter, in Hz; 0 for half the sample rate."""
    licence: str = ""
    """Licence of the weights, stored in the model."""
    exclusive: bool = False
    """Whether the model was trained with cross-entropy: its scores are then normalised over the classes."""
    overwrite: bool = False
    """Whether to replace an existing model."""


def convert(arguments: list[str]) -> int:
    """psla convert SRC MODEL --labels L.csv"""
    options = parse(Convert, arguments, "psla convert")

    from psla_jax.pretraining import convert

    print(printable("\n".join(convert.convert(convert.Request(**dataclasses.asdict(options))).lines())))
    return 0


@dataclass(frozen=True)
class Export:
    """Exports a model: its weights with the official names, or as ONNX. Example: psla export runs/demo demo.onnx"""

    model: Positional[str]
    """Model directory or run directory."""
    destination: Positional[str]
    """The file to write: .onnx or .safetensors, with classes and settings in the metadata, or a PyTorch file (.pth),
    with the classes beside it as .labels.csv."""
    source: Annotated[Literal["waveform", "log-mel"], arg(name="from")] = "waveform"
    """Input of an .onnx file: waveforms, or normalised log-mel spectrograms."""
    data_parallel: bool = False
    """Whether to add the prefix module. to every name of a weight file, as in the released checkpoints."""
    overwrite: bool = False
    """Whether to replace existing files."""


def export(arguments: list[str]) -> int:
    """psla export MODEL DEST"""
    options = parse(Export, arguments, "psla export")

    is_onnx = options.destination.endswith(".onnx")
    if is_onnx and options.data_parallel:
        raise UsageError("--data-parallel is for weight files, and an .onnx file has no names of weights: omit it.")
    if not is_onnx and options.source != "waveform":
        raise UsageError(f"--from is for .onnx files, not for {options.destination}: omit it.")
    print(printable("\n".join(_export_onnx(options) if is_onnx else _export_weights(options))))
    return 0


def _export_weights(options: Export) -> list[str]:
    from psla_jax.pretraining import convert

    return convert.export(
        options.model, options.destination, data_parallel=options.data_parallel, overwrite=options.overwrite
    )


def _export_onnx(options: Export) -> list[str]:
    try:
        from psla_jax.export import onnx_file
    except ModuleNotFoundError as error:
        raise UsageError(f"an .onnx file needs the package {error.name}: pip install 'psla_jax[onnx]'.") from error
    return onnx_file.export(options.model, options.destination, options.source, overwrite=options.overwrite)


@dataclass(frozen=True)
class Models:
    """Lists official weights, or downloads and converts them. Example: psla models audioset-single --out models/as0"""

    name: Positional[str] = ""
    """Weights to download, unless they are in the cache, and to convert; empty: list all."""
    out: str = ""
    """Model directory to write, or for several models the folder of their directories; empty: models/NAME."""
    padding: Literal["symmetric", "static"] = "symmetric"
    """Padding of the models, see psla convert."""
    overwrite: bool = False
    """Whether to replace existing models."""


def models(arguments: list[str]) -> int:
    """psla models [NAME]"""
    options = parse(Models, arguments, "psla models")

    from psla_jax.pretraining import zoo

    if not options.name:
        if options.out or options.overwrite:
            raise UsageError("psla models needs the name of the weights to download: psla models audioset-single")
        zoo.show()
        return 0
    destination = Path(options.out or f"models/{options.name}")
    zoo.get(options.name, destination, padding=options.padding, overwrite=options.overwrite, log=print)
    return 0


@dataclass(frozen=True)
class Average:
    """Averages the weights of models. Example: psla average runs/a/models/epoch_0* models/mean --data train.json"""

    models: Positional[tuple[str, ...]]
    """Models of one architecture and vocabulary; the last name is the model directory to write."""
    data: str = ""
    """Training datafile for re-estimating the batch statistics; empty: the batch statistics are averaged."""
    batch_size: int = 32
    """Clips per batch of the re-estimation."""
    channel: Literal["mean", "first"] = "mean"
    """Conversion of stereo files to mono: the mean of the channels, or the first channel."""
    trust: bool = False
    """Whether a custom model may import its Python code."""
    overwrite: bool = False
    """Whether to replace an existing model."""


def average(arguments: list[str]) -> int:
    """psla average MODEL... DEST"""
    options = dataclasses.asdict(parse(Average, arguments, "psla average"))
    *paths, destination = options.pop("models") or [""]
    if len(paths) < 2:
        raise UsageError("psla average needs at least two models and the name of the model to write: A B models/mean")

    from psla_jax.aggregation import average_models

    average_models.average_models(average_models.Request(tuple(paths), destination, **options))
    return 0


@dataclass(frozen=True)
class CheckModel:
    """Compares a model's scores of a test sound with the stored ones. Example: psla check-model models/as0"""

    model: Positional[str]
    """Model directory or run directory."""
    trust: bool = False
    """Whether a custom model may import its Python code."""


def check_model(arguments: list[str]) -> int:
    """psla check-model MODEL"""
    options = parse(CheckModel, arguments, "psla check-model")

    from psla_jax.models.model_dir import load_model
    from psla_jax.models.self_test import run_self_test

    result = run_self_test(load_model(options.model, trust=options.trust), options.model)
    print(printable(result.summary()))
    return 0 if result.verified else 1
