"""Measures what ingredients add: the two tables in the README.

    python scripts/ingredients.py [--seeds 0 1 2]                   # PSLA's own, on the embedded data set
    python scripts/ingredients.py --data DATAFILES [--seeds 0 1 2]  # changes to PSLA's recipe, on FSD50K

The first form trains the demo config with and without balanced sampling, mixup and masks. The second one trains an
EfficientNet-B0 from random weights on the datafiles that ``psla prepare fsd50k`` wrote to the folder DATAFILES, with
PSLA's recipe, with one change at a time, and with all changes that helped. It adds the result of every run to
``ingredients.csv`` beside this script and does not repeat those that are there, so that it can be interrupted and
continued on another machine; ``--share 0/2`` and ``--share 1/2`` divide the runs between two processes.
"""

from __future__ import annotations

import csv
import runpy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from filelock import FileLock

import psla_jax
from psla_jax.cli.sweep import parse_share
from psla_jax.config import RunConfig
from psla_jax.config_fields import with_settings
from psla_jax.runtime import process
from psla_jax.runtime.files import atomic_path
from psla_jax.tagging.share import Share
from psla_jax.training.estimates import Estimate
from psla_jax.training.sweep import SettingResult, sweep

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
RESULTS = Path(__file__).resolve().with_suffix(".csv")
PLAIN = {"sampling.balanced": False, "sampling.mixup": 0.0, "sampling.freq_mask": 0, "sampling.time_mask": 0}
"""The demo config without balanced sampling, mixup and masks."""
SMALL = {
    "model.name": "efficientnet-b0",
    "pretraining.source": "",
    "frontend.target_length": 208,
    "sampling.time_mask": 40,
    "optimizer.learning_rate": 1e-3,
    "optimizer.warmup_steps": 0,
    "optimizer.epochs": 20,
    "optimizer.ema": 0.99,
    "aggregation.first": 11,
    "data.workers": 0,
    "bootstrap": 0,
}
"""What differs from configs/fsd50k.py, so that a run takes minutes on a CPU; the average of steps changes no other."""
PSLA = "PSLA"
ADAMW = {"optimizer.name": "adamw", "optimizer.weight_decay": 0.01, "optimizer.schedule": "cosine"}
LONG = {"optimizer.epochs": 50, "aggregation.first": 36}
PLUS = "all that helped (fsd50k_plus)"
CHANGES: dict[str, dict[str, Any]] = {
    PSLA: {},
    PLUS: ADAMW
    | LONG
    | {"optimizer.learning_rate": 3e-3, "optimizer.weight_decay": 0.05, "optimizer.warmup_steps": 56},
    "AdamW and cosine": ADAMW,
    "freq-MixStyle": {"sampling.spectrogram": ("specaugment", "freq_mixstyle")},
    "gain and roll": {"sampling.waveform": ("gain", "roll", "mixup")},
    "label smoothing 0.1": {"optimizer.label_smoothing": 0.1},
    "measured normalisation": {"frontend.mean": "auto", "frontend.std": "auto"},
    "mixup of 2 to 5 clips": {"sampling.waveform": ("mixup(most=5)",)},
    "two consistent views": {"distill.consistency": 1.0},
    "50 epochs": LONG | {"optimizer.decay_start": 25, "optimizer.decay_every": 12},
}
"""Settings by label; all but PLUS change one thing. With more epochs, averaging and the decays begin later."""
TEACHERS = ("distillation, stored scores", "distillation, consistent", "distillation per second")
MODELS = {
    "best": "best single",
    "average": "weight average, statistics re-estimated",
    "EMA": "moving average of the weights",
    "ensemble": "checkpoint ensemble",
}
"""Columns of the second table, and the beginnings of the names in a summary."""


@dataclass(frozen=True)
class Options:
    """Command-line arguments."""

    data: str = ""
    """Folder of the datafiles of FSD50K; empty for the embedded data set."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the runs; every configuration is trained once per seed."""
    directory: str = "runs/ingredients"
    """Directory of the runs; finished runs are not repeated."""
    share: str = "0/1"
    """INDEX/COUNT: the part of the runs that this process trains."""


def main(options: Options) -> None:
    """Trains the missing runs and prints the table."""
    if options.data:
        print_changes(options)
    else:
        print_demo(options)


def print_demo(options: Options) -> None:
    """Prints what balanced sampling, mixup and masks add on the embedded data set."""
    demo = runpy.run_path(str(CONFIGS / "demo.py"))["config"]
    plain, psla = "no sampling, mixup or masks", "+ sampling, mixup and masks"
    settings = {plain: with_settings(demo, PLAIN), psla: demo}
    results = trained(settings, options, options.directory)
    print(f"\nevaluation mAP, mean and standard error of seeds {options.seeds}\n")
    print(f"| | {plain} | {psla} |\n|---|---|---|")
    for model in results[psla].models:
        estimates = (results[label].estimate(model, "evaluation", "mAP") for label in settings)
        print(f"| {model} | {' | '.join(map(cell, estimates))} |")


def print_changes(options: Options) -> None:
    """Trains the missing runs and prints what changes to PSLA's recipe add on FSD50K."""
    base = with_settings(runpy.run_path(str(CONFIGS / "fsd50k.py"))["config"], SMALL | data_settings(options.data))
    record({label: with_settings(base, settings) for label, settings in CHANGES.items()}, options)
    if missing(TEACHERS, options):
        psla = trained({PSLA: base}, options, f"{options.directory}/changes")[PSLA]
        models = [run.run_dir for run in psla.finished]
        if len(models) < len(options.seeds):
            print("The teachers are not trained yet: start the script again when all shares have ended.")
            return
        record({k: with_settings(base, settings) for k, settings in teachers(models, base, options).items()}, options)
    print(f"\nevaluation mAP, mean and standard error of seeds {options.seeds}, or of as many as given in brackets\n")
    print(f"| | {' | '.join(MODELS)} |\n|---|{'---|' * len(MODELS)}")
    for label in (*CHANGES, *TEACHERS):
        rows = [row for row in recorded() if row["setting"] == label and int(row["seed"]) in options.seeds]
        estimates = [Estimate.of([float(row[column]) for row in rows]) for column in MODELS]
        seeds = "" if len(rows) == len(options.seeds) else f" ({len(rows)})"
        print(f"| {label}{seeds} | {' | '.join(map(cell, estimates))} |")


def recorded() -> list[dict[str, str]]:
    """Returns the recorded runs: setting, seed, and the evaluation mAP of every column of the table."""
    if not RESULTS.is_file():
        return []
    with open(RESULTS, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def missing(labels: Iterable[str], options: Options) -> list[tuple[str, int]]:
    """Returns the setting and seed of the runs that are not recorded."""
    found = {(row["setting"], int(row["seed"])) for row in recorded()}
    return [(label, seed) for label in labels for seed in options.seeds if (label, seed) not in found]


def record(configs: Mapping[str, RunConfig], options: Options) -> None:
    """Trains this process's share of the runs that are not recorded, and records them."""
    index, count = parse_share(options.share)
    runs = missing(configs, options)
    for label, seed in runs[len(runs) * index // count : len(runs) * (index + 1) // count]:
        (result,) = sweep({label: configs[label]}, (seed,), f"{options.directory}/changes", cache_programs=True)
        if not result.finished:
            continue
        names = {column: next(n for n in result.models if n.startswith(start)) for column, start in MODELS.items()}
        values = {column: result.estimate(name, "evaluation", "mAP").mean for column, name in names.items()}
        row = {"setting": label, "seed": str(seed)} | {column: f"{value:.4f}" for column, value in values.items()}
        with FileLock(f"{options.directory}/results.lock"), atomic_path(RESULTS) as path:
            write([*recorded(), row], path)


def write(rows: Iterable[Mapping[str, str]], path: str) -> None:
    """Writes recorded runs."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["setting", "seed", *MODELS], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def data_settings(folder: str) -> dict[str, Any]:
    """Returns the settings for the datafiles of ``psla prepare fsd50k``."""
    sets = {"train": "tr", "validation": "val", "evaluation": "eval"}
    paths = {f"data.{name}": f"{folder}/fsd50k_{short}_full.json" for name, short in sets.items()}
    return {**paths, "data.labels": f"{folder}/class_labels_indices.csv"}


def teachers(models: Sequence[str], base: RunConfig, options: Options) -> dict[str, dict[str, Any]]:
    """Returns the settings of distillation from the ensemble of the weight averages of `models`, and stores its scores.

    The consistent teacher scores the augmented clips in the step, which equals stored scores of ``psla teach``.
    """
    stored = Path(options.directory) / "teacher.npz", Path(options.directory) / "teacher_per_second.npz"
    for path, segments in zip(stored, (0.0, 1.0)):
        if not path.is_file():
            psla_jax.evaluate(models, base.data.train, bootstrap=0, save=path, segments=segments)
    whole, per_second = ({"distill.teacher": str(path), "distill.weight": 0.5} for path in stored)
    consistent = {"distill.model": tuple(models), "distill.weight": 0.5}
    return dict(zip(TEACHERS, (whole, consistent, {**per_second, "distill.segments": 1.0})))


def trained(configs: Mapping[str, RunConfig], options: Options, directory: str) -> dict[str, SettingResult]:
    """Trains the missing runs of this process; returns the results by label, in the order of `configs`."""
    share = Share(*parse_share(options.share))
    results = sweep(configs, options.seeds, directory, share=share, cache_programs=True)
    by_label = {result.label: result for result in results}
    return {label: by_label[label] for label in configs}


def cell(estimate: Estimate) -> str:
    """Returns mean and standard error."""
    if not estimate.count:
        return "-"
    return f"{estimate.mean:.3f} +- {estimate.error:.3f}" if estimate.count > 1 else f"{estimate.mean:.3f}"


if __name__ == "__main__":
    process.restart_with_huge_pages()  # As psla train does.
    main(tyro.cli(Options, description=__doc__))
