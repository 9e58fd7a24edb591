"""Command ``psla plan``: memory and bounds of a training on devices that are absent."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from psla_jax.cli.arguments import UsageError
from psla_jax.cli.train_evaluate import split_config
from psla_jax.config import RunConfig


@dataclass(frozen=True)
class Plan:
    """Compile the training and evaluation step of a config for GPUs or TPUs that need not be in this machine, and print
    the memory they need, the largest batch, and bounds of their speed. The first call installs the compiler in the
    user's cache directory. Example: psla plan audioset_full --classes 527 --device h100 --devices 8"""

    config: Annotated[RunConfig, tyro.conf.FlagConversionOff, tyro.conf.arg(name="")]
    device: str = "h100"
    """Kind of the devices: a100, h100, h200, b200 (NVIDIA), v5e, v6e (TPU)."""
    devices: int = 1
    """Number of devices, which share every batch."""
    classes: int = 0
    """Number of classes; 0 counts those of data.labels."""
    largest: bool = True
    """Estimate the largest batch, which takes another compilation."""
    timeout: float = 600
    """Seconds after which a compilation is given up; large networks take long for TPUs."""


def plan(arguments: list[str]) -> int:
    """psla plan CONFIG [--device h100] [--devices 8] [--classes N] [--section.field value ...]"""
    config, rest, program = split_config("plan", arguments, "psla plan demo --device h100")
    options: Plan = tyro.cli(Plan, default=Plan(config), args=rest, prog=program)
    if options.devices < 1:
        raise UsageError(f"--devices is {options.devices}: use at least one device.")

    from psla_jax.plan.devices import find_device
    from psla_jax.plan.report import Request, plan

    device, classes = find_device(options.device), options.classes or _num_classes(options.config)
    request = Request(options.config, classes, device, options.devices, options.timeout)
    complete = plan(request, functools.partial(print, file=sys.stderr), print, largest=options.largest)
    return 0 if complete else 1


def _num_classes(config: RunConfig) -> int:
    """Returns the number of classes of a config; raises UsageError if its list is not on this machine."""
    from psla_jax.vocabulary.vocabulary import Vocabulary, VocabularyError

    labels = config.data.labels
    try:
        # The class list of the demo set comes with the package; the data need not be synthesised.
        return len(Vocabulary.read("demo" if labels == "demo:labels" else labels))
    except VocabularyError as error:
        problem = f"data.labels is {labels!r}, which cannot be read"
        raise UsageError(f"{problem}: give the number of classes with --classes.") from error
