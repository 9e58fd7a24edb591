"""Command ``psla sweep``: several settings and seeds."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from psla_jax.cli.arguments import UsageError
from psla_jax.cli.train_evaluate import split_config
from psla_jax.config import RunConfig, flatten

REFUSED = {"run_dir": "it follows from the settings", "seed": "use --seeds"}
"""Fields that a sweep sets, and what to do instead."""


@dataclass(frozen=True)
class Sweep:
    """Trains all combinations of settings, each with several seeds, and reports mean and spread; rerun to resume.

    Example: psla sweep demo --set optimizer.learning_rate 1e-3 3e-3 --set sampling.mixup 0.3 0.5 --seeds 3

    Under Slurm, sbatch --array=0-3 --wrap "psla sweep ..." divides the runs among the tasks of the array."""

    config: Annotated[RunConfig, tyro.conf.FlagConversionOff, tyro.conf.arg(name="")]
    set: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """A field and its values; give it once per field. A value with spaces is quoted: --set metrics "lwlrap top_k"."""
    seeds: int = 1
    """Number of seeds, counted from the one of the config."""
    share: str = ""
    """INDEX/COUNT: the part of the runs to train, such as 0/4. Empty: all, or that of the task of a Slurm array."""


def sweep(arguments: list[str]) -> int:
    """psla sweep CONFIG [--set FIELD VALUE ...] [--seeds N] [--share I/N] [--section.field value ...]"""
    config, rest, program = split_config("sweep", arguments, "psla sweep demo --seeds 3")
    options = tyro.cli(Sweep, default=Sweep(config), args=rest, prog=program)
    if options.seeds < 1:
        raise UsageError(f"--seeds is {options.seeds}: use at least one seed.")
    configs = combinations(options.config, options.set)

    from psla_jax.runtime import launcher
    from psla_jax.tagging.share import Share
    from psla_jax.training import sweep

    share = parse_share(options.share) if options.share else launcher.array_share()
    seeds = range(options.config.seed, options.config.seed + options.seeds)
    directory = f"{options.config.run_dir.rstrip('/')}{sweep.SUFFIX}"
    results = sweep.sweep(configs, seeds, directory, share=Share(*share), cache_programs=True)
    return 1 if any(run.failed for setting in results for run in setting.runs) else 0


def combinations(config: RunConfig, settings: Sequence[Sequence[str]]) -> dict[str, RunConfig]:
    """Returns the configs with all combinations of values, by their label, such as ``learning_rate=0.001, mixup=0.3``.

    Args:
        config: the config that they change.
        settings: each the command-line name of a field and its values, as text.

    Raises:
        UsageError: a field is unknown, or given twice or without values, or two values are the same.
        ConfigError: a combination is invalid.
    """
    settings = [(name.replace("-", "_"), *values) for name, *values in settings]
    known, names = flatten(config), [name for name, *_ in settings]
    for name, *values in settings:
        if name in REFUSED or name.startswith("distributed."):
            raise UsageError(f"--set {name}: {REFUSED.get(name, 'use the option of this name')}.")
        if name not in known:
            raise UsageError(f"--set {name}: there is no such field; psla train CONFIG --help lists them.")
        if not values or names.count(name) > 1:
            raise UsageError(f"--set {name}: give each field once, followed by its values.")
    ends = [name.rpartition(".")[2] for name in names]
    titles = [end if ends.count(end) == 1 else name for name, end in zip(names, ends)]
    found: dict[str, RunConfig] = {}
    for combination in itertools.product(*([(name, value) for value in values] for name, *values in settings)):
        changed = _parsed(config, combination)
        flat = flatten(changed)
        label = ", ".join(f"{title}={_text(flat[name])}" for title, name in zip(titles, names)) or "unchanged"
        if label in found:
            raise UsageError(f"--set gives {label} twice: name each value once.")
        found[label] = changed
    return found


def _parsed(config: RunConfig, values: Sequence[tuple[str, str]]) -> RunConfig:
    """Returns the config with some fields set, as ``psla train`` parses them."""
    arguments: list[str] = []
    for name, value in values:
        several = isinstance(flatten(config)[name], tuple)
        arguments += [f"--{name}", *_words(value)] if several else [f"--{name}={value}"]
    parsed: Any = tyro.cli(
        RunConfig, default=config, args=arguments, prog="psla sweep", config=(tyro.conf.FlagConversionOff,)
    )
    return parsed


def _words(text: str) -> list[str]:
    """Returns the elements of a list, which are separated by spaces except within parentheses."""
    words: list[str] = []
    for part in text.split(" "):
        if words and words[-1].count("(") > words[-1].count(")"):
            words[-1] += f" {part}"
        elif part:
            words.append(part)
    return words


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return str(value) or "none"


def parse_share(text: str) -> tuple[int, int]:
    """Returns index and count of ``INDEX/COUNT``. Raises UsageError if that is no share."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise UsageError(f"--share is {text!r}: give INDEX/COUNT with an index from 0, such as 0/4 to 3/4.")
    return int(match[1]), int(match[2])
