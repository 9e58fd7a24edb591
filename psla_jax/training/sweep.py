"""Several settings with several seeds each (``psla sweep``): one table with mean and spread of every setting.

All settings are checked before the first run starts. A run that fails is reported in the table and does not end the
sweep. Settings are sorted by the validation set; nothing is selected on the evaluation set.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import re
import tempfile
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from psla_jax import ingredients
from psla_jax.config import FREE_FIELDS, RunConfig, flatten, from_json
from psla_jax.data.datasets import EVALUATION, VALIDATION, DataSets
from psla_jax.evaluation import tables
from psla_jax.evaluation.tables import ACCURACY
from psla_jax.runtime import distributed
from psla_jax.runtime.distributed import PeerError
from psla_jax.runtime.errors import is_own
from psla_jax.runtime.logging import Logger
from psla_jax.runtime.preemption import StopHandler
from psla_jax.runtime.sharding import Placement
from psla_jax.tagging.share import ALL, Share
from psla_jax.training import loop, resolve, run_directory
from psla_jax.training.estimates import Estimate
from psla_jax.training.monitor import TrainingError
from psla_jax.training.run_directory import CONFIG, DATA, SUMMARY
from psla_jax.training.selection import selecting_columns

SUFFIX = "-sweep"
"""Suffix of the directory of a sweep, appended to the run directory of the config."""
TABLE, RESULTS = "sweep.csv", "sweep.json"
PROTOCOL = "Settings are sorted by their highest mean on the validation set. Nothing is selected on the evaluation set."
WITHOUT_VALIDATION = "There is no validation set to sort the settings by: do not select one by its evaluation."
SPREAD = "standard error over the seeds"
_MAX_NAME = 120
"""Number of characters of the name of a run directory; longer ones are cut and end with a hash."""
_COSMETIC = FREE_FIELDS - {"optimizer.patience", "aggregation.first", "aggregation.last", "bootstrap", "select"}
"""Fields that do not affect the summary of a run."""
_COUNTS = ("num_clips", "num_classes", "num_scored")


class SweepError(ValueError):
    """A sweep that cannot be run; the message names the setting and the remedy."""


@dataclass(frozen=True)
class PlannedRun:
    """A run of a sweep."""

    label: str
    config: RunConfig


@dataclass(frozen=True)
class RunResult:
    """A run of a setting: its results, or why there are none."""

    seed: int
    run_dir: str
    status: str
    """``finished``, ``unfinished``, or the error that ended the run."""
    models: Mapping[str, Mapping[str, Mapping[str, float]]] = dataclasses.field(default_factory=dict)
    """Metrics by name of the model (without epochs), of the set, and of the metric; empty unless finished."""

    @property
    def failed(self) -> bool:
        """Whether an error ended the run."""
        return self.status not in ("finished", "unfinished")


@dataclass(frozen=True)
class SettingResult:
    """The runs of a setting, one per seed."""

    label: str
    runs: tuple[RunResult, ...]

    @property
    def finished(self) -> list[RunResult]:
        """The finished runs."""
        return [run for run in self.runs if run.models]

    @property
    def models(self) -> list[str]:
        """Names of the models of finished runs, such as ``best single`` and ``checkpoint ensemble``."""
        return list(dict.fromkeys(model for run in self.runs for model in run.models))

    def estimate(self, model: str, kind: str, metric: str) -> Estimate:
        """Returns mean and spread of a metric of a model on a set, over the finished runs that have it."""
        measured = (run.models.get(model, {}).get(kind, {}).get(metric, math.nan) for run in self.runs)
        return Estimate.of([value for value in measured if not math.isnan(value)])

    def best(self, kind: str, metric: str) -> float:
        """Returns the highest mean over its models; minus infinity if no run is finished."""
        means = (self.estimate(model, kind, metric).mean for model in self.models)
        return max((mean for mean in means if not math.isnan(mean)), default=-math.inf)


def sweep(
    configs: Mapping[str, RunConfig],
    seeds: Sequence[int],
    directory: str | Path,
    *,
    share: Share = ALL,
    cache_programs: bool = False,
) -> list[SettingResult]:
    """Trains every config with every seed, and writes and prints the table of all runs that are finished.

    Finished runs are not repeated, and interrupted ones are resumed. Several processes can each run a `share` of the
    runs at the same time; the one that ends last writes the complete table.

    Args:
        configs: configs by the label of the setting; `run_dir` and `seed` of each are replaced.
        seeds: the seeds of every setting.
        directory: the directory of the run directories and of ``sweep.csv`` and ``sweep.json``.
        share: the runs that this process trains.
        cache_programs: as for :func:`psla_jax.training.loop.train`.

    Returns:
        The settings, sorted by the validation set; without one, in the given order.

    Raises:
        SweepError: there is no run, two settings have the same name, or a setting cannot be trained.
        PeerError, Stopped: as :func:`psla_jax.training.loop.train`.
    """
    directory = Path(directory)
    runs = plan(configs, seeds, directory)
    with distributed.session(runs[0].config.distributed):
        logger = Logger(silent=not distributed.is_primary())
        with distributed.agree():
            missing = _unfinished(runs, logger)
        # Runs of a setting are neighbours, which share compiled programs.
        own = runs[len(runs) * share.index // share.count : len(runs) * (share.index + 1) // share.count]
        for number, run in enumerate(own, 1):
            state = "" if run.config.run_dir in missing else " is finished"
            logger.info(f"run {number} of {len(own)}: {run.label}, seed {run.config.seed}{state}")
            if not state:
                _train(run.config, logger, cache_programs)
        metric = _selecting_metric(list(configs.values()))
        if distributed.is_primary():
            directory.mkdir(parents=True, exist_ok=True)
            with _locked(directory):
                results = _sorted(collect(runs), metric)
                _write(directory, results)
            _print(logger.console, f"sweep in {directory}", results, metric)
        distributed.barrier("swept")
        return _sorted(collect(runs), metric)


def plan(configs: Mapping[str, RunConfig], seeds: Sequence[int], directory: Path) -> list[PlannedRun]:
    """Returns all runs, those of a setting one after the other; their directories are named after the settings."""
    if not configs or not seeds:
        raise SweepError(f"there are {len(configs)} settings and {len(seeds)} seeds: name at least one of each.")
    runs: dict[str, PlannedRun] = {}
    for label, config in configs.items():
        for seed in seeds:
            run_dir = str(directory / _directory_name(label, seed))
            if run_dir in runs:
                raise SweepError(f"two runs would have the directory {run_dir}: give each setting and seed once.")
            runs[run_dir] = PlannedRun(label, replace(config, seed=seed, run_dir=run_dir))
    return list(runs.values())


def _directory_name(label: str, seed: int) -> str:
    name = re.sub(r"[^\w.=+,-]+", "_", label.replace(", ", ",")).strip("_")
    if len(name) > _MAX_NAME:
        name = f"{name[:_MAX_NAME]}-{hashlib.sha256(label.encode()).hexdigest()[:8]}"
    return f"{name},seed={seed}" if name else f"seed={seed}"


def _unfinished(runs: Sequence[PlannedRun], logger: Logger) -> set[str]:
    """Returns the directories of the runs to train, after checking them. Raises SweepError if one cannot be trained."""
    loaded: dict[Any, DataSets] = {}
    checked: set[str] = set()
    missing: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        for run in runs:
            config = run.config
            key = config.data, str(config.optimizer.loss), config.distill
            try:
                if key not in loaded:
                    loaded[key] = resolve.load_data(config, logger.info)
                resolve.require_outputs(config, loaded[key])
                config = resolve.with_loss(config, loaded[key])
                config = resolve.recorded(config, Path(config.run_dir))
                if _is_finished(config, loaded[key]):
                    continue
                run_directory.require_compatible(Path(config.run_dir), config, loaded[key])
                if run.label not in checked:  # Seeds differ in nothing that could fail.
                    placement = Placement.over_all_devices()
                    numbered = resolve.with_numbers(config)  # They are measured when the run starts.
                    loop.open_run(Path(folder), numbered, loaded[key], placement, StopHandler(), False)
            except ValueError as error:
                if not is_own(error):
                    raise
                raise SweepError(f"{run.label}: {error}") from error
            checked.add(run.label)
            missing.add(config.run_dir)
    return missing


def _is_finished(config: RunConfig, data: DataSets) -> bool:
    """Returns whether a run directory has the summary of this config and these data."""
    directory = Path(config.run_dir)
    if not _is_summarised(directory):
        return False
    before, now = flatten(from_json((directory / CONFIG).read_text(encoding="utf-8"))), flatten(config)
    same_data = json.loads((directory / DATA).read_text(encoding="utf-8")) == data.identity()
    return same_data and all(before[name] == now[name] for name in now if name not in _COSMETIC)


def _is_summarised(directory: Path) -> bool:
    """Returns whether the last start of a run has come to its end: it writes its config first, and its summary last."""
    summary, config = directory / SUMMARY, directory / CONFIG
    return summary.is_file() and summary.stat().st_mtime_ns >= config.stat().st_mtime_ns


def _train(config: RunConfig, logger: Logger, cache_programs: bool) -> None:
    """Trains a run; writes an error that ends it to a file beside its directory."""
    failure = _failure_file(config.run_dir)
    if distributed.is_primary():
        failure.unlink(missing_ok=True)
    try:
        loop.train(config, cache_programs=cache_programs)
    except PeerError:
        raise
    except Exception as error:
        # Of several processes, all have a loss that is not finite, but only some may have another error.
        if distributed.process_count() > 1 and not isinstance(error, TrainingError):
            raise
        known = is_own(error)
        reason = str(error) if known else ingredients.reason(error)
        logger.info(f"{config.run_dir} failed: {reason}")
        if distributed.is_primary():
            tables.write_text(failure, f"{reason}\n" + ("" if known else f"\n{traceback.format_exc()}"))


def _failure_file(run_dir: str) -> Path:
    return Path(f"{run_dir}.failed")


def collect(runs: Sequence[PlannedRun]) -> list[SettingResult]:
    """Returns the results of all runs as their directories hold them."""
    by_label: dict[str, list[RunResult]] = {}
    for run in runs:
        by_label.setdefault(run.label, []).append(_read(run.config))
    return [SettingResult(label, tuple(results)) for label, results in by_label.items()]


def _read(config: RunConfig) -> RunResult:
    failure, directory = _failure_file(config.run_dir), Path(config.run_dir)
    if failure.is_file():
        return RunResult(config.seed, config.run_dir, failure.read_text(encoding="utf-8").splitlines()[0])
    if not _is_summarised(directory):
        return RunResult(config.seed, config.run_dir, "unfinished")
    models = json.loads((directory / SUMMARY).read_text(encoding="utf-8"))
    named = {tables.without_epochs(name): {k: _numbers(m) for k, m in sets.items()} for name, sets in models.items()}
    return RunResult(config.seed, config.run_dir, "finished", named)


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Returns the metrics of a ``summary.json`` that are numbers; those that JSON lacks are NaN."""
    kept = {k: v for k, v in metrics.items() if k not in _COUNTS and not isinstance(v, list)}
    return {name: math.nan if value is None else float(value) for name, value in kept.items()}


def _selecting_metric(configs: Sequence[RunConfig]) -> str:
    """Returns the metric by which all settings select their best epoch; mAP if they differ, or if it is a loss."""
    names = {selecting_columns(config)[0] for config in configs}
    (name, *others) = sorted(names)
    return "mAP" if others or name == "valid_loss" else name


def _sorted(settings: list[SettingResult], metric: str) -> list[SettingResult]:
    return sorted(settings, key=lambda setting: -setting.best(VALIDATION, metric))


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Admits one process at a time, so that the table of the last one is complete."""
    lock = FileLock(directory / ".lock")
    with contextlib.suppress(RuntimeError):  # filelock raises one where the file system has no locks.
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _metrics(settings: Sequence[SettingResult]) -> list[tuple[str, str]]:
    """Returns the sets and metrics that any finished run has, each as a pair."""
    measured = [m for s in settings for run in s.runs for sets in run.models.values() for m in sets.items()]
    kinds = [kind for kind in (VALIDATION, EVALUATION) if any(kind == each for each, _ in measured)]
    names = dict.fromkeys(name for _, metrics in measured for name, v in metrics.items() if not math.isnan(v))
    return [(kind, name) for kind in kinds for name in names]


def _write(directory: Path, settings: Sequence[SettingResult]) -> None:
    """Writes a table with a row per model and run, and below them mean, spread and error; and the same as JSON."""
    columns = {f"{kind}_{metric}": (kind, metric) for kind, metric in _metrics(settings)}
    rows: list[dict[str, Any]] = []
    report: dict[str, Any] = {"protocol": PROTOCOL, "settings": {}}
    for setting in settings:
        for model in setting.models:
            rows += [
                {"setting": setting.label, "model": model, "seed": run.seed, "status": run.status}
                | {c: _cell(run.models.get(model, {}).get(k, {}).get(m, math.nan)) for c, (k, m) in columns.items()}
                for run in setting.finished
            ]
            estimates = {column: setting.estimate(model, *pair) for column, pair in columns.items()}
            for name in ("mean", "std", "error"):
                values = {column: _cell(getattr(estimate, name)) for column, estimate in estimates.items()}
                rows.append({"setting": setting.label, "model": model, "seed": name, "status": "", **values})
        for run in setting.runs:
            if not run.models:
                unknown = dict.fromkeys(columns, "")
                rows.append({"setting": setting.label, "model": "", "seed": run.seed, "status": run.status, **unknown})
        report["settings"][setting.label] = _to_json(setting, columns.values())
    tables.write_csv(directory / TABLE, ["setting", "model", "seed", "status", *columns], rows)
    tables.write_text(directory / RESULTS, json.dumps(tables.json_value(report), indent=1, allow_nan=False) + "\n")


def _cell(value: float) -> float | str:
    return "" if math.isnan(value) else value


def _to_json(setting: SettingResult, pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    models: dict[str, Any] = {}
    for model in setting.models:
        for kind, metric in pairs:
            estimate = setting.estimate(model, kind, metric)
            values = {"mean": estimate.mean, "std": estimate.std, "error": estimate.error}
            models.setdefault(model, {}).setdefault(kind, {})[metric] = values
    runs = {str(run.seed): {"directory": run.run_dir, "status": run.status} for run in setting.runs}
    return {"runs": runs, "models": models}


def _print(console: Console, title: str, settings: Sequence[SettingResult], metric: str) -> None:
    """Prints the table of the means, the runs that failed, and how it was measured."""
    shown = [(kind, name) for kind, name in _metrics(settings) if name in ("mAP", ACCURACY, metric)]
    table = Table(title=escape(title), title_justify="left")
    for column in ("setting", "model"):
        table.add_column(column, overflow="fold")
    for column in ("runs", *(f"{kind} {name}" for kind, name in shown)):
        table.add_column(column, justify="right", no_wrap=True)
    for setting in settings:
        runs = f"{len(setting.finished)} of {len(setting.runs)}"
        for model in setting.models or [""]:
            values = [setting.estimate(model, *pair).with_error() if model else "-" for pair in shown]
            table.add_row(escape(setting.label), model, runs, *values)
        table.add_section()
    console.print(table)
    for run in (run for setting in settings for run in setting.runs if run.failed):
        console.print(f"{run.run_dir} failed: {run.status}", markup=False)
    console.print(f"mean +- {SPREAD}, of the finished runs")
    console.print(PROTOCOL if any(kind == VALIDATION for kind, _ in shown) else WITHOUT_VALIDATION)
