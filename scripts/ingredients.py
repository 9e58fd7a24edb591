"""What each ingredient of PSLA adds on the embedded data set: trains with and without, and prints the README's table.

python scripts/ingredients.py [--seeds 0 1 2] [--directory runs/ingredients]
"""

from __future__ import annotations

import dataclasses
import json
import runpy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from psla_jax import experiment
from psla_jax.config import RunConfig, SamplingConfig
from psla_jax.run_directory import SUMMARY

ROWS = (
    "best single epoch",
    "+ weight average, batch statistics re-estimated",
    "weight average with plainly averaged statistics",
    "+ checkpoint ensemble",
)
DEMO = Path(__file__).resolve().parent.parent / "configs" / "demo.py"


@dataclass(frozen=True)
class Options:
    """What to train."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """A run of each kind per seed."""
    directory: str = "runs/ingredients"
    """Where the runs go; finished ones are not trained again."""


def without_sampling(config: RunConfig) -> RunConfig:
    """The same run without balanced sampling, mixup and masks."""
    return dataclasses.replace(config, sampling=SamplingConfig(balanced=False, mixup=0.0, freq_mask=0, time_mask=0))


def evaluation_maps(config: RunConfig) -> list[float]:
    """Evaluation mAP of every row of the summary: best single, weight average, plain average, ensemble."""
    experiment.train(config)
    summary = json.loads((Path(config.run_dir) / SUMMARY).read_text(encoding="utf-8"))
    return [figures["evaluation"]["mAP"] for figures in summary.values()]


def main(options: Options) -> None:
    """Trains what is missing and prints the table."""
    demo: RunConfig = runpy.run_path(str(DEMO))["config"]
    plain: list[list[float]] = []
    psla: list[list[float]] = []
    for seed in options.seeds:
        for kind, change, maps in (("plain", without_sampling, plain), ("psla", lambda config: config, psla)):
            run_dir = str(Path(options.directory) / f"{kind}-{seed}")
            maps.append(evaluation_maps(change(dataclasses.replace(demo, seed=seed, run_dir=run_dir))))
    print(f"\nevaluation mAP, mean of seeds {options.seeds}\n")
    print("| | no sampling, mixup or masks | + sampling, mixup and masks |")
    print("|---|---|---|")
    for row, name in enumerate(ROWS):
        print(f"| {name} | {np.mean(plain, axis=0)[row]:.3f} | {np.mean(psla, axis=0)[row]:.3f} |")


if __name__ == "__main__":
    main(tyro.cli(Options))
