"""Measures what each ingredient of PSLA adds on the embedded data set: the table in the README.

    python scripts/ingredients.py [--seeds 0 1 2] [--directory runs/ingredients]

Trains the demo config with and without balanced sampling, mixup and masks, once per seed.
"""

from __future__ import annotations

import dataclasses
import json
import runpy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from psla_jax.config import RunConfig, SamplingConfig
from psla_jax.training import loop
from psla_jax.training.run_directory import SUMMARY

ROWS = (
    "best single epoch",
    "+ weight average, batch statistics re-estimated",
    "weight average with plainly averaged statistics",
    "+ checkpoint ensemble",
)
DEMO = Path(__file__).resolve().parent.parent / "configs" / "demo.py"


@dataclass(frozen=True)
class Options:
    """Command-line arguments."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the runs; every configuration is trained once per seed."""
    directory: str = "runs/ingredients"
    """Directory of the runs; finished runs are not repeated."""


def without_sampling(config: RunConfig) -> RunConfig:
    """Returns the config without balanced sampling, mixup and masks."""
    return dataclasses.replace(config, sampling=SamplingConfig(balanced=False, mixup=0.0, freq_mask=0, time_mask=0))


def evaluation_maps(config: RunConfig) -> list[float]:
    """Trains and returns the evaluation mAP of the best epoch, the two weight averages and the ensemble."""
    loop.train(config)
    summary = json.loads((Path(config.run_dir) / SUMMARY).read_text(encoding="utf-8"))
    return [metrics["evaluation"]["mAP"] for metrics in summary.values()]


def main(options: Options) -> None:
    """Trains the missing runs and prints the table."""
    demo: RunConfig = runpy.run_path(str(DEMO))["config"]
    plain: list[list[float]] = []
    psla: list[list[float]] = []
    for seed in options.seeds:
        for name, config, maps in (("plain", without_sampling(demo), plain), ("psla", demo, psla)):
            run_dir = str(Path(options.directory) / f"{name}-{seed}")
            maps.append(evaluation_maps(dataclasses.replace(config, seed=seed, run_dir=run_dir)))
    print(f"\nevaluation mAP, mean of seeds {options.seeds}\n")
    print("| | no sampling, mixup or masks | + sampling, mixup and masks |")
    print("|---|---|---|")
    for row, name in enumerate(ROWS):
        print(f"| {name} | {np.mean(plain, axis=0)[row]:.3f} | {np.mean(psla, axis=0)[row]:.3f} |")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
