"""Command ``psla crossval``: k-fold cross-validation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from psla_jax.cli.arguments import UsageError
from psla_jax.cli.train_evaluate import find_config, read_config
from psla_jax.config import RunConfig


@dataclass(frozen=True)
class Crossval:
    """Trains a model per fold on the other folds, evaluates it on the fold and reports the mean; rerun to resume.
    Example: psla prepare folder ESC-50 --folds && psla crossval data/ESC-50/config.py"""

    config: Annotated[RunConfig, tyro.conf.FlagConversionOff, tyro.conf.arg(name="")]
    folds: tuple[str, ...] = ()
    """Datafiles of the folds; none: those in the folder folds beside the training datafile."""


def crossval(arguments: list[str]) -> int:
    """psla crossval CONFIG [--folds F.json ...] [--section.field value ...]"""
    asks_for_help = bool({"-h", "--help"} & set(arguments))
    name = arguments[0] if arguments and not arguments[0].startswith("-") else ""
    if not (name or asks_for_help):
        raise UsageError("psla crossval needs a config as its first argument: psla crossval data/ESC-50/config.py")
    config = RunConfig() if asks_for_help and find_config(name) is None else read_config(name)
    options = tyro.cli(
        Crossval,
        default=Crossval(config),
        args=arguments[1:] if name else arguments,
        prog=f"psla crossval {name or 'CONFIG'}",
    )

    from psla_jax.training.crossval import crossval

    crossval(options.config, options.folds, cache_programs=True)
    return 0
