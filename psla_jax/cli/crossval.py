"""Command ``psla crossval``: k-fold cross-validation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from psla_jax.cli.train_evaluate import split_config
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
    config, rest, program = split_config("crossval", arguments, "psla crossval data/ESC-50/config.py")
    options = tyro.cli(Crossval, default=Crossval(config), args=rest, prog=program)

    from psla_jax.training.crossval import crossval

    crossval(options.config, options.folds, cache_programs=True)
    return 0
