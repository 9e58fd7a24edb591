"""Commands on data sets before training: ``psla check`` and ``psla pack``."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from dataclasses import dataclass
from typing import Any, Literal

from tyro.conf import Positional

from psla_jax.cli.arguments import UsageError, parse
from psla_jax.cli.train_evaluate import read_config
from psla_jax.runtime.files import atomic_text, exists, same_file
from psla_jax.runtime.streams import STANDARD, is_standard_output
from psla_jax.runtime.terminal import printable


@dataclass(frozen=True)
class Check:
    """Find defects of a data set, worst first. Example: psla check train.json --labels L.csv --against eval.json

    The exit code is 1 if the data set must be repaired before training."""

    data: Positional[str] = ""
    """Datafile to check. Empty: the training set of --config."""
    labels: str = ""
    """Label CSV, or one of the built-in audioset and fsd50k. Empty: that of --config."""
    ontology: str = ""
    """AudioSet's ontology.json, to check for missing parent labels."""
    against: tuple[str, ...] = ()
    """Datafiles that must have no clip in common with this one. Empty: the other data sets of --config."""
    config: str = ""
    """Config file with the default label file, data sets, normalisation, loss and channel."""
    mean: float | None = None
    """Expected mean of the log-mel values. Empty: that of --config, or AudioSet's."""
    std: float | None = None
    """Expected standard deviation of the log-mel values. Empty: that of --config, or AudioSet's."""
    target_length: int | None = None
    """Input length of the model in frames. Empty: that of --config, or 1056."""
    sample_rate: int | None = None
    """Sample rate of the model in Hz. Empty: that of --config, or 16000."""
    channel: Literal["mean", "first"] | None = None
    """Mixdown of stereo files: the mean of the channels, or the first. Empty: that of --config, or the mean."""
    limit: int = 0
    """Number of clips to read of each data set, evenly spaced; 0 for all."""
    workers: int = 0
    """Number of threads; 0 for the number of cores plus 4, at most 32."""
    json: str = ""
    """Also write the findings as JSON to this file; - writes only JSON, to standard output."""
    force: bool = False
    """Replace an existing JSON file."""


def check(arguments: list[str]) -> int:
    """psla check D.json [--labels L.csv] [--against EVAL.json ...]"""
    options = parse(Check, arguments, "psla check")
    config = read_config(options.config) if options.config else None
    if not (options.data or config):
        raise UsageError("psla check needs a datafile, or a config that names one: psla check train.json")
    if is_standard_output(options.json):
        options = dataclasses.replace(options, json=STANDARD)
    if options.json not in ("", STANDARD) and exists(options.json) and not options.force:
        raise UsageError(f"{options.json} already exists: use another file, or replace it with --force.")

    from psla_jax.data.validate.report import print_report, report_to_json
    from psla_jax.data.validate.run import Request, validate_dataset
    from psla_jax.runtime.logging import Logger

    logger = Logger()
    fields = _request_fields(options, config)
    for source in (*(fields[name] for name in ("data", "labels", "ontology")), *fields["against"], options.config):
        if same_file(options.json, source):
            raise UsageError(f"--json {options.json} would replace an input of the command: name another file.")
    report = validate_dataset(Request(**fields), logger, _log_to_stderr)
    if options.json != STANDARD:
        print_report(report, logger.console)
    if options.json:
        text = json.dumps(report_to_json(report), indent=1) + "\n"
        if options.json == STANDARD:
            print(text, end="")
        else:
            with atomic_text(options.json) as file:
                file.write(text)
    return 0 if report.ok else 1


def _log_to_stderr(text: str) -> None:
    print(printable(text), file=sys.stderr)


def _request_fields(options: Check, config: Any) -> dict[str, Any]:
    """Returns the fields of the request: the command-line options, with defaults from the config."""
    from psla_jax.config import RunConfig

    config = config or RunConfig()
    data = options.data or config.data.train
    paths = (config.data.train, config.data.validation, config.data.evaluation)
    others = tuple(path for path in paths if path and os.path.abspath(path) != os.path.abspath(data))
    names = ("mean", "std", "target_length", "sample_rate")
    frontend = {name: value for name in names if (value := getattr(options, name)) is not None}
    return {
        **{name: getattr(options, name) for name in ("ontology", "limit", "workers")},
        **{name: getattr(options, name) or getattr(config.data, name) for name in ("labels", "channel")},
        "data": data,
        "against": options.against or others,
        "frontend": dataclasses.replace(config.frontend, **frontend),
        "loss": config.optimizer.loss,
    }


@dataclass(frozen=True)
class Pack:
    """Write a data set into a few large files for faster training. Example: psla pack train.json /data/packed

    The packed data set replaces the original in training. Started again after an interruption, the command resumes."""

    data: Positional[str]
    """Datafile to pack."""
    destination: Positional[str]
    """Directory for the shards and for a datafile of the same name that refers to them."""
    format: Literal["pcm16", "flac", "float32"] = "pcm16"
    """pcm16: 16 bits; flac: the same with lossless compression, half the size, slower; float32: exact."""
    channel: Literal["mean", "first"] = "mean"
    """Mixdown of stereo clips: the mean of the channels, or the first."""
    sample_rate: int = 16_000
    """Samples per second of the shards: those of the frontend that will be trained."""
    unreadable: Literal["stop", "skip"] = "stop"
    """Action for unreadable clips: stop, or skip and report them."""
    clips_per_shard: int = 8192
    """Number of clips per shard."""
    workers: int = 0
    """Number of threads; 0 for the number of cores plus 4, at most 32."""
    force: bool = False
    """Replace the files of an earlier psla pack of this name."""


def pack(arguments: list[str]) -> int:
    """psla pack D.json DEST"""
    options = dataclasses.asdict(parse(Pack, arguments, "psla pack"))

    from psla_jax.data import datasets, pack

    source = datasets.locate(options.pop("data"), _log_to_stderr)
    print(printable(pack.pack(source, options.pop("destination"), **options).report()))
    return 0
