"""Data sets before training: check, pack."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from psla_jax.commands.arguments import UsageError, parse
from psla_jax.commands.runs import read_config
from psla_jax.terminal import printable


@dataclass(frozen=True)
class Check:
    """What is wrong with a data set, worst first. Example: psla check train.json --labels L.csv --against eval.json

    Exit code 1 if something must be repaired before training."""

    data: Positional[str] = ""
    """The datafile; empty: the training set of --config."""
    labels: str = ""
    """Label CSV; audioset and fsd50k are built in. Empty: that of --config."""
    ontology: str = ""
    """AudioSet's ontology.json, to find labels without their parents."""
    against: tuple[str, ...] = ()
    """Datafiles to have no clip in common with. Empty: the other sets of --config."""
    config: str = ""
    """Take label file, sets, normalisation, loss and channel from this config file."""
    mean: float | None = None
    """What the log-mel's mean is to be; empty: that of --config, or AudioSet's."""
    std: float | None = None
    """And its standard deviation."""
    target_length: int | None = None
    """Frames of 10 ms that the model hears."""
    channel: Literal["mean", "first"] | None = None
    """Which channel of a stereo file; empty: that of --config, or the mean."""
    limit: int = 0
    """Read only so many clips of each set, evenly spaced; 0 for all."""
    workers: int = 0
    """Threads; 0 for one per core and a few more."""
    json: str = ""
    """Write the findings as JSON to this file, or to the standard output (-) in place of the page."""
    force: bool = False
    """Replace that file if it is there."""


def check(arguments: list[str]) -> int:
    """psla check D.json [--labels L.csv] [--against EVAL.json ...]"""
    options = parse(Check, arguments, "psla check")
    config = read_config(options.config) if options.config else None
    if not (options.data or config):
        raise UsageError("psla check wants a datafile, or a config that names one: psla check train.json")
    if options.json not in ("", "-") and os.path.exists(options.json) and not options.force:
        raise UsageError(f"{options.json} is there already: name another file, or replace it with --force.")

    from psla_jax import inspection, inspection_page, results
    from psla_jax.journal import Journal

    journal = Journal()
    report = inspection.inspect(
        inspection.Request(**_with_config(options, config)),
        journal,
        lambda text: print(printable(text), file=sys.stderr),
    )
    if options.json != "-":
        inspection_page.show(report, journal.console)
    if options.json:
        text = json.dumps(inspection_page.to_json(report), indent=1) + "\n"
        print(text, end="") if options.json == "-" else results.write_text(Path(options.json), text)
    return 0 if report.ok else 1


def _with_config(options: Check, config: Any) -> dict[str, Any]:
    """The fields of a request: what was asked for, else what the config has."""
    from psla_jax.config import FrontendConfig, RunConfig

    config = config or RunConfig()
    data = options.data or config.data.train
    sets = [path for path in (config.data.train, config.data.validation, config.data.evaluation) if path]
    others = tuple(path for path in sets if os.path.abspath(path) != os.path.abspath(data))
    asked = {name: getattr(options, name) for name in ("mean", "std", "target_length")}
    frontend = {**dataclasses.asdict(config.frontend), **{k: v for k, v in asked.items() if v is not None}}
    return {
        "data": data,
        "labels": options.labels or config.data.labels,
        "ontology": options.ontology,
        "against": options.against or others,
        "frontend": FrontendConfig(**frontend),
        "loss": config.optimizer.loss,
        "channel": options.channel or config.data.channel,
        "limit": options.limit,
        "workers": options.workers,
    }


@dataclass(frozen=True)
class Pack:
    """A data set in a few large files, to train on as on the original. Example: psla pack train.json /data/packed

    Interrupted, it goes on when it is started again."""

    data: Positional[str]
    """The datafile."""
    destination: Positional[str]
    """Folder for the shards and the datafile of the same name that finds clips in them."""
    format: Literal["pcm16", "flac", "float32"] = "pcm16"
    """16 bits at 16 kHz; the same compressed without loss (half the size, slower to read); or exact floats."""
    channel: Literal["mean", "first"] = "mean"
    """What a stereo clip becomes: the mean of its channels, or the first one."""
    unreadable: Literal["stop", "skip"] = "stop"
    """What a clip that cannot be read does: stop, or be left out and reported."""
    clips_per_shard: int = 8192
    """Clips in a file."""
    workers: int = 0
    """Threads; 0 for one per core and a few more."""
    force: bool = False
    """Replace what is there of another pack of this name."""


def pack(arguments: list[str]) -> int:
    """psla pack D.json DEST"""
    options = dataclasses.asdict(parse(Pack, arguments, "psla pack"))

    from psla_jax.data import pack, sets

    source = sets.locate(options.pop("data"), lambda text: print(printable(text), file=sys.stderr))
    print(printable(pack.pack(source, options.pop("destination"), **options).report()))
    return 0
