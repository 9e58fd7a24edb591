"""``psla``: arguments and nothing else. Each command imports what is heavy when it runs.

Exit codes: 0 done, 1 a run that failed, 2 bad usage or input, 130 interrupted.
"""

from __future__ import annotations

import dataclasses
import runpy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from tyro.conf import Positional

from psla_jax import runtime

USAGE = """\
usage: psla COMMAND ...

PSLA audio tagging in JAX.

commands:
  train CONFIG.py [--section.field value]   train, evaluate and aggregate; run again to go on
  evaluate MODEL... --data D.json           figures of models and of their ensemble
  prepare fsd50k DIR                        datafiles from a data set
  convert SRC.pth MODEL --labels L.csv      official PyTorch weights in, verified
  export MODEL DEST.pth                     and out again
  models [NAME]                             the official weights: list, download and convert
  average MODEL... DEST                     the mean of models' weights
  check-model MODEL                         is a model still what it was when it was saved?

psla COMMAND --help tells more."""


class UsageError(ValueError):
    """A command line that cannot be carried out."""


def train(arguments: list[str]) -> int:
    """psla train CONFIG.py [--section.field value ...]"""
    from psla_jax.config import RunConfig

    path = next((a for a in arguments if not a.startswith("-")), None)
    if path is None or arguments[0] != path:
        if arguments and arguments[0] in ("-h", "--help"):
            default, rest, prog = RunConfig(), arguments, "psla train CONFIG.py"
        else:
            raise UsageError("psla train wants a config file first: psla train configs/demo.py")
    else:
        rest, prog = arguments[1:], f"psla train {path}"
        default = RunConfig() if {"-h", "--help"} & set(rest) and not Path(path).is_file() else read_config(path)
    config = tyro.cli(
        RunConfig,
        default=default,
        args=rest,
        prog=prog,
        description="Train, evaluate and aggregate. Example: psla train configs/demo.py --seed 1 --run-dir runs/demo-1",
        config=(tyro.conf.FlagConversionOff,),
    )

    from psla_jax import experiment

    experiment.train(config)
    return 0


def read_config(path: str) -> Any:
    """Runs a config file and takes its ``config``.

    Raises:
        UsageError, ConfigError: naming the file and what is wrong in it.
    """
    from psla_jax.config import ConfigError, RunConfig

    if not Path(path).is_file():
        raise UsageError(f"there is no config file {path}: name one, such as configs/demo.py.")
    sys.path.insert(0, str(Path(path).resolve().parent))  # so that a config can name a model of its own beside it
    try:
        found = runpy.run_path(path).get("config")
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except Exception as error:
        raise UsageError(f"the config file {path} cannot be run: {type(error).__name__}: {error}.") from error
    if not isinstance(found, RunConfig):
        raise UsageError(f"{path} is no config: it has to assign a RunConfig to the name config.")
    return found


@dataclass(frozen=True)
class Evaluate:
    """Figures of models and of their ensemble on a data set. Example: psla evaluate runs/demo --data demo:evaluation"""

    models: Positional[tuple[str, ...]]
    """Model directories or run directories."""
    data: str
    """The datafile to score."""
    labels: str = ""
    """Label CSV that fixes the order of the classes; empty: the first model's own."""
    batch_size: int = 32
    """Clips scored at a time."""
    channel: Literal["mean", "first"] = "mean"
    """Which channel of a stereo file."""
    bootstrap: int = 200
    """Resamples behind the confidence intervals; 0 for none."""
    trust: bool = False
    """Import the Python code that a custom model names."""
    keep_scores: bool = True
    """Keep the scores, and take them from an earlier call where model and data have not changed since."""


def evaluate(arguments: list[str]) -> int:
    """psla evaluate MODEL... --data D.json [--labels L.csv]"""
    options = _parse(Evaluate, arguments, "psla evaluate")

    from psla_jax import comparison

    comparison.evaluate(comparison.Request(**dataclasses.asdict(options)))
    return 0


@dataclass(frozen=True)
class PrepareFSD50K:
    """Datafiles from FSD50K, at 16 kHz. Example: psla prepare fsd50k /data/FSD50K"""

    directory: Positional[str]
    """Where FSD50K.dev_audio, FSD50K.eval_audio and FSD50K.ground_truth are."""
    out: str = ""
    """Where resampled audio and datafiles go; empty: beside the originals."""
    workers: int = 0
    """Threads that resample; 0 for one a core."""
    channel: Literal["mean", "first"] = "mean"
    """What a stereo file becomes: the mean of its channels, or the first one."""


def prepare(arguments: list[str]) -> int:
    """psla prepare fsd50k DIR"""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: psla prepare fsd50k DIR [options]\n\nExample: psla prepare fsd50k /data/FSD50K")
        return 0 if arguments else 2
    if arguments[0] != "fsd50k":
        raise UsageError(f"psla prepare does not know {arguments[0]!r}: choose fsd50k.")
    options = _parse(PrepareFSD50K, arguments[1:], "psla prepare fsd50k")

    from psla_jax.data import fsd50k

    made = fsd50k.prepare(
        options.directory, options.out or None, workers=options.workers or None, channel=options.channel
    )
    print(made.report())
    return 0


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
    options = _parse(Convert, arguments, "psla convert")

    from psla_jax.pretraining import convert

    print("\n".join(convert.convert(convert.Request(**dataclasses.asdict(options))).lines()))
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
    options = _parse(Export, arguments, "psla export")

    from psla_jax.pretraining import convert

    lines = convert.export(
        options.model, options.destination, data_parallel=options.data_parallel, overwrite=options.overwrite
    )
    print("\n".join(lines))
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
    options = _parse(Models, arguments, "psla models")

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
    options = dataclasses.asdict(_parse(Average, arguments, "psla average"))
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
    options = _parse(CheckModel, arguments, "psla check-model")

    from psla_jax.checkpoints import load_model
    from psla_jax.verification import check

    found = check(load_model(options.model, trust=options.trust), options.model)
    print(found.line())
    return 0 if found.verified else 1


def _parse(kind: type, arguments: list[str], prog: str) -> Any:
    return tyro.cli(kind, args=arguments, prog=prog, config=(tyro.conf.FlagConversionOff,))


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": train,
    "evaluate": evaluate,
    "prepare": prepare,
    "convert": convert,
    "export": export,
    "models": models,
    "average": average,
    "check-model": check_model,
}


COMPUTES = {"train", "evaluate", "convert", "export", "models", "average", "check-model"}
"""Commands that are faster with what ``runtime`` asks of the machine."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The entry point. A user's mistake is one sentence on standard error, never a traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is None and given and given[0] in COMPUTES and not {"-h", "--help"} & set(given):
        runtime.restart_with_huge_pages()
    if not given or given[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if given else 2
    if given[0] == "--version":
        from psla_jax import __version__

        print(f"psla_jax {__version__}")
        return 0
    if given[0] not in COMMANDS:
        print(f"psla: there is no command {given[0]!r}: choose {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    try:
        if given[0] in COMPUTES and not {"-h", "--help"} & set(given):
            runtime.keep_compiled_programs()
        return COMMANDS[given[0]](given[1:])
    except KeyboardInterrupt:
        print("psla: interrupted; start it again to go on.", file=sys.stderr)
        return 130
    except OSError as error:  # a full disk, a folder that cannot be written
        print(f"psla: {error.strerror or error}: {error.filename or 'the disk'}.", file=sys.stderr)
        return 1
    except (ValueError, RuntimeError) as error:
        if not type(error).__module__.startswith("psla_jax."):
            raise
        print(f"psla: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


if __name__ == "__main__":
    sys.exit(main())
