"""Training and figures: train, evaluate."""

from __future__ import annotations

import dataclasses
import runpy
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro
from tyro.conf import Positional

from psla_jax.commands.arguments import UsageError, parse
from psla_jax.config import DistributedConfig


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

    from psla_jax import kept_programs, launch

    if not (config.distributed.coordinator or launch.several()):  # JAX may not be asked for devices before they meet.
        kept_programs.expect({"train": repr(dataclasses.replace(config, run_dir="", seed=0))})
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
    save: str = ""
    """An .npz to write the scores to, clip by clip, for psla enhance; of several models, the mean of their scores."""
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    """As in psla train."""


def evaluate(arguments: list[str]) -> int:
    """psla evaluate MODEL... --data D.json [--labels L.csv]"""
    options = parse(Evaluate, arguments, "psla evaluate")

    from psla_jax import comparison

    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    comparison.evaluate(comparison.Request(**values))
    return 0
