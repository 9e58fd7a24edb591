"""The commands ``psla train`` and ``psla evaluate``."""

from __future__ import annotations

import dataclasses
import importlib.resources
import re
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro
from tyro.conf import Positional

from psla_jax import ingredients
from psla_jax.cli.arguments import UsageError, parse
from psla_jax.config import Channel, ConfigError, DistributedConfig, Precision, RunConfig
from psla_jax.config_fields import with_settings


def train(arguments: list[str]) -> int:
    """Runs ``psla train CONFIG [--section.field value ...]`` and returns its exit code."""
    default, options, program = split_config("train", arguments, "psla train demo")
    config = tyro.cli(
        RunConfig,
        default=default,
        args=options,
        prog=program,
        description="Train, evaluate and aggregate a model. CONFIG is a config file, or the name of a config that "
        "comes with the package. Example: psla train demo --seed 1 --run-dir runs/demo-1",
        config=(tyro.conf.FlagConversionOff,),
    )

    from psla_jax.training import loop

    loop.train(config, cache_programs=True)
    return 0


def split_config(command: str, arguments: list[str], example: str) -> tuple[RunConfig, list[str], str]:
    """Returns the config that the first argument of a command names, the other arguments, and the title of its help.

    Where help is asked for, the config may be missing. Raises UsageError, with an `example` of the command, if it is
    missing otherwise, and the errors of :func:`read_config`.
    """
    asks_for_help = bool({"-h", "--help"} & set(arguments))
    name = arguments[0] if arguments and not arguments[0].startswith("-") else ""
    if not (name or asks_for_help):
        raise UsageError(f"psla {command} needs a config as its first argument, for example: {example}")
    config = RunConfig() if asks_for_help and find_config(name) is None else read_config(name)
    return config, arguments[1:] if name else arguments, f"psla {command} {name or 'CONFIG'}"


def read_config(name: str, settings: Mapping[str, Any] | None = None) -> RunConfig:
    """Executes a config file and returns the RunConfig that it assigns to ``config``.

    The file becomes a module that can be imported by its stem, so that a config can name functions that it defines.

    Args:
        name: path of the file, or name of a config that comes with the package, such as ``demo``.
        settings: other values of fields, by their command-line names, as in ``{"optimizer.epochs": 5}``.

    Raises:
        UsageError, ConfigError: if the file does not exist or has errors, or a setting is invalid; the message names
            the file or the setting.
    """
    path = find_config(name)
    if path is None:
        raise UsageError(
            f"there is no config file {name}: name a file, or one of {', '.join(sorted(packaged_configs()))}."
        )
    sys.path.insert(0, str(path.resolve().parent))  # A config may import modules beside it, such as a custom model.
    try:
        config = _execute(path).get("config")
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except Exception as error:
        raise UsageError(f"the config file {path} cannot be run: {ingredients.reason(error)}.") from error
    if not isinstance(config, RunConfig):
        raise UsageError(f"{path} is not a config file: it must assign a RunConfig to the name config.")
    return with_settings(config, settings or {})


def _execute(path: Path) -> dict[str, Any]:
    """Executes a config file as a module, which loader processes import again, and returns its variables.

    Its functions can only be imported if no other module has the name, except an earlier config.
    """
    name = path.stem
    other = sys.modules.get(name)
    replaceable = other is None or isinstance(getattr(other, "config", None), RunConfig)
    if path.suffix != ".py" or not re.fullmatch(r"[\w-]+", name) or not replaceable:
        name = f"<{path.name}>"
    module = types.ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module.__dict__


def find_config(name: str) -> Path | None:
    """Returns the path of a config from a path or from a name in :func:`packaged_configs`; None if there is none."""
    return Path(name) if Path(name).is_file() else packaged_configs().get(name)


def packaged_configs() -> dict[str, Path]:
    """Returns the configs that come with the package, by name.

    They are in ``psla_jax/configs`` of an installed package, and in ``configs`` beside ``psla_jax`` in a checkout.
    """
    package = Path(str(importlib.resources.files("psla_jax")))
    checkout = [package.parent / "configs"] if (package.parent / "pyproject.toml").is_file() else []
    return {path.stem: path for folder in [*checkout, package / "configs"] for path in folder.glob("[!_]*.py")}


@dataclass(frozen=True)
class Evaluate:
    """Compute metrics of models and their ensemble. Example: psla evaluate runs/demo --data demo:evaluation"""

    models: Positional[tuple[str, ...]]
    """Model directories, run directories, or names of released models (psla models), which are downloaded once."""
    data: str
    """Datafile of the clips to score."""
    labels: str = ""
    """Label CSV with the classes to evaluate, in its order. Empty: the classes of the first model."""
    batch_size: int = 32
    """Number of clips scored at a time."""
    channel: Channel | None = None
    """Channel of multi-channel files: the mean of all, or the first. Default: that of the training."""
    windows: bool = False
    """Score clips that are longer than the input of a model by overlapping windows, as psla tag does, instead of their
    beginning only."""
    segments: float = 0.0
    """Score the successive segments of every clip, of so many seconds, instead of the clip, for --distill.segments."""
    bootstrap: int = 200
    """Number of resamples for the confidence intervals; 0 disables them."""
    precision: Precision = "highest"
    """Precision of products: highest (float32), tf32 (TensorFloat-32 on GPUs), or bf16 (a bfloat16 backbone)."""
    trust: bool = False
    """Import the Python code of custom models."""
    keep_scores: bool = True
    """Cache the scores, and reuse them as long as neither the model nor the data changes; not for custom models."""
    save: str = ""
    """Write the scores of the clips to this .npz file, for psla enhance; for several models, their mean scores."""
    per_class: str = ""
    """Write AP, AUC, positives and best F1 of every class to this CSV file; for several models, of their ensemble."""
    confusion: str = ""
    """Write the confusion matrix to this CSV file, if every clip has exactly one label."""
    metrics: tuple[str, ...] = ()
    """Further metrics: lwlrap, micro_f1, macro_f1(threshold=0.3), accuracy, top_k(k=5), micro_map, module:callable."""
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    """Distributed evaluation; the options are those of psla train."""


def evaluate(arguments: list[str]) -> int:
    """Runs ``psla evaluate MODEL... --data D.json`` and returns its exit code."""
    options = parse(Evaluate, arguments, "psla evaluate")

    from psla_jax.aggregation import evaluate_models

    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    evaluate_models.evaluate_request(evaluate_models.Request(**values))
    return 0
