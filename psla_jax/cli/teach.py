"""Command ``psla teach``: scores of a teacher for the augmented inputs of a training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from psla_jax.cli.arguments import UsageError
from psla_jax.cli.train_evaluate import split_config
from psla_jax.config import RunConfig


@dataclass(frozen=True)
class Teach:
    """Score every augmented input of a training with one or several models. The config and its options are those of the
    training, which then has --distill.teacher DIR. Example: psla teach demo --models runs/big --out taught"""

    config: Annotated[RunConfig, tyro.conf.FlagConversionOff, tyro.conf.arg(name="")]
    models: tuple[str, ...] = ()
    """Model directories or run directories of the teacher; the scores of several are averaged."""
    out: str = ""
    """Directory to write; an unfinished one is completed."""
    top: int = 32
    """Number of largest scores of an input that are stored; of the others, their mean is."""


def teach(arguments: list[str]) -> int:
    """psla teach CONFIG --models MODEL... --out DIR [--top 32] [--section.field value ...]"""
    config, rest, program = split_config("teach", arguments, "psla teach demo --models runs/big --out DIR")
    options = tyro.cli(Teach, default=Teach(config), args=rest, prog=program)
    if not options.out:
        raise UsageError("psla teach needs a directory for the scores: name one with --out DIR")

    from psla_jax.training.teach import teach

    teach(options.config, options.models, options.out, options.top)
    return 0
