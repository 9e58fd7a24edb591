"""Data sets to datafiles: prepare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional

from psla_jax.commands import labeling
from psla_jax.commands.arguments import UsageError, parse


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
        print(
            "usage: psla prepare fsd50k DIR [options]\n"
            "       psla prepare relabel ENHANCED.json --onto MINE.json --out NEW.json [options]\n\n"
            "Example: psla prepare fsd50k /data/FSD50K"
        )
        return 0 if arguments else 2
    if arguments[0] == "relabel":
        return labeling.relabel(arguments[1:])
    if arguments[0] != "fsd50k":
        raise UsageError(f"psla prepare does not know {arguments[0]!r}: choose fsd50k or relabel.")
    options = parse(PrepareFSD50K, arguments[1:], "psla prepare fsd50k")

    from psla_jax.data import fsd50k

    made = fsd50k.prepare(
        options.directory, options.out or None, workers=options.workers or None, channel=options.channel
    )
    print(made.report())
    return 0
