"""Measures the effect of label enhancement on FSD50K: trains on the original and on enhanced labels.

    psla prepare fsd50k /data/FSD50K --out data/fsd50k
    python scripts/enhancement.py data/fsd50k --ontology ontology.json [--seeds 0 1 2] [--directory runs/enhancement]

The scores for the enhancement come from models that were not trained on the clip (a cross-fit of three folds), except
in the last row, where the model was trained on the same clips. The model is small, as it is trained about thirty times.
"""

from __future__ import annotations

import json
import runpy
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from tyro.conf import Positional

from psla_jax.aggregation import evaluate_models
from psla_jax.config import DataConfig, FrontendConfig, Kind, ModelConfig, RunConfig, Threshold
from psla_jax.data.datafile import Datafile
from psla_jax.labeling import crossfit, enhance
from psla_jax.labeling.rules import Labels, Relations
from psla_jax.models.layers import BatchNorm, Conv
from psla_jax.models.pooling import build_pooling
from psla_jax.runtime import process
from psla_jax.runtime.logging import Logger
from psla_jax.training import loop
from psla_jax.training.run_directory import SUMMARY
from psla_jax.vocabulary.ontology import Ontology
from psla_jax.vocabulary.vocabulary import Vocabulary

DEMO = Path(__file__).resolve().parent.parent / "configs" / "demo.py"
FRAMES = 208
ORIGINAL = "original labels"
THRESHOLDS: tuple[Threshold, ...] = ("mean", "10")
ENHANCED: tuple[tuple[str, str, Kind, Threshold], ...] = (
    ("type I, mean", "crossfit", "type1", "mean"),
    ("type II, mean", "crossfit", "type2", "mean"),
    ("merged, mean", "crossfit", "type1_2", "mean"),
    ("merged, 10th percentile", "crossfit", "type1_2", "10"),
    ("merged, mean, scores of a model trained on the same clips", "same", "type1_2", "mean"),
)
"""Name of the row, source of the scores, kind and threshold of the enhancement."""


@dataclass(frozen=True)
class Options:
    """Command-line arguments."""

    data: Positional[str]
    """Output directory of psla prepare fsd50k."""
    ontology: str
    """AudioSet's ontology.json."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the runs; every row is trained once per seed."""
    epochs: int = 20
    """Number of epochs per run; the weights of the last third are averaged."""
    directory: str = "runs/enhancement"
    """Directory of the runs and datafiles; finished runs are not repeated."""


class SmallNetwork(nnx.Module):
    """Two layers on five statistics of each mel band over the clip: mean, deviation, maximum, minimum, mean change."""

    def __init__(self, num_classes: int, rngs: nnx.Rngs) -> None:
        self.norm = BatchNorm(5 * 128, momentum=0.9)
        self.hidden = Conv(5 * 128, 256, bias=True, rngs=rngs)
        self.attention = build_pooling("attention", 256, num_classes, 1, rngs=rngs)

    def __call__(self, spectrograms: jax.Array, valid: jax.Array | None = None) -> jax.Array:
        """Maps spectrograms `(batch, frames, mels)` to scores `(batch, classes)`."""
        features = self.norm(statistics(spectrograms), valid)
        return self.attention(jax.nn.relu(self.hidden(features[:, None, None]))[:, 0])


def statistics(x: jax.Array) -> jax.Array:
    """Computes the statistics of each band over the valid frames: `(batch, frames, mels)` to `(batch, 5 * mels)`."""
    valid = jnp.any(x != x[..., :1], axis=-1, keepdims=True)  # Padded and masked frames have equal values in all bands.
    valid_pairs = valid[:, 1:] & valid[:, :-1]

    def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
        return jnp.sum(values * mask, axis=1) / jnp.maximum(jnp.sum(mask, axis=1), 1)

    mean = masked_mean(x, valid)
    deviation = jnp.sqrt(masked_mean((x - mean[:, None]) ** 2, valid) + 1e-6)
    maximum = jnp.max(jnp.where(valid, x, -10.0), axis=1)
    minimum = jnp.min(jnp.where(valid, x, 10.0), axis=1)
    change = masked_mean(jnp.abs(x[:, 1:] - x[:, :-1]), valid_pairs)
    return jnp.concatenate([mean, deviation, maximum, minimum, change], axis=-1)


def build(num_classes: int, rngs: nnx.Rngs) -> SmallNetwork:
    """Builds the network; named ``enhancement:build`` in configs."""
    return SmallNetwork(num_classes, rngs)


@dataclass(frozen=True)
class Result:
    """Result of a run."""

    added: int
    """Number of added labels."""
    without_parent: int
    """Number of labels with a missing direct parent."""
    without_child: int
    """Number of labels with children in the vocabulary, but none of them on the clip."""
    best: float
    """Evaluation mAP of the best epoch."""
    ensemble: float
    """Evaluation mAP of the checkpoint ensemble."""


def base_config(options: Options, seed: int) -> RunConfig:
    """Returns the demo config with :class:`SmallNetwork` on FSD50K with the original labels."""
    demo: RunConfig = runpy.run_path(str(DEMO))["config"]
    files = Path(options.data) / "datafiles"
    data = DataConfig(
        train=str(files / "fsd50k_tr_full.json"),
        validation=str(files / "fsd50k_val_full.json"),
        evaluation=str(files / "fsd50k_eval_full.json"),
        labels=str(files / "class_labels_indices.csv"),
        batch_size=24,
        workers=0,
    )
    return replace(
        demo,
        run_dir=str(Path(options.directory) / f"seed{seed}" / "original"),
        seed=seed,
        data=data,
        model=ModelConfig(name="enhancement:build"),
        frontend=FrontendConfig(target_length=FRAMES),
        sampling=replace(demo.sampling, time_mask=24),
        optimizer=replace(demo.optimizer, epochs=options.epochs, decay_start=max(options.epochs * 2 // 3, 1)),
        aggregation=replace(demo.aggregation, first=options.epochs * 2 // 3 + 1),
        bootstrap=0,
    )


def enhanced_by_crossfit(config: RunConfig, ontology: str) -> str:
    """Enhances by a cross-fit; returns the path of the datafiles up to kind and threshold."""
    folder = f"{config.run_dir}{crossfit.SUFFIX}/labels"
    crossfit.run(crossfit.Request(config, ontology, threshold=THRESHOLDS, out=folder, force=True))
    return f"{folder}/{Path(config.data.train).stem}"


def enhanced_by_same_clips(config: RunConfig, ontology: str) -> str:
    """Enhances by the weight average of the run of `config`, which was trained on the same clips."""
    scores, folder = Path(config.run_dir) / "train_scores.npz", f"{config.run_dir}-same/labels"
    if not scores.is_file():
        evaluate_models.evaluate_request(
            evaluate_models.Request((config.run_dir,), config.data.train, bootstrap=0, trust=True, save=str(scores))
        )
    enhance.run(
        enhance.Request(
            config.data.train, str(scores), config.data.labels, ontology, ("mean",), out=folder, force=True
        ),
        Logger(),
    )
    return f"{folder}/{Path(config.data.train).stem}"


def train_and_count(config: RunConfig, original: Labels, relations: Relations) -> Result:
    """Trains a run unless it is finished, and returns its result."""
    loop.train(config)
    summary = json.loads((Path(config.run_dir) / SUMMARY).read_text(encoding="utf-8"))
    best, *_, ensemble = (metrics["evaluation"]["mAP"] for metrics in summary.values())
    labels = read_labels(config)
    errors = labels.without_parent(relations), labels.without_child(relations)
    return Result(len(labels) - len(original), *errors, best, ensemble)


def read_labels(config: RunConfig) -> Labels:
    """Returns the training labels of a config."""
    return Labels.from_datafile(Datafile.read(config.data.train, Vocabulary.read(config.data.labels)))


def rows_of_seed(options: Options, seed: int) -> dict[str, Result]:
    """Returns all rows of the table for one seed."""
    config = base_config(options, seed)
    relations = Relations.from_ontology(Vocabulary.read(config.data.labels), Ontology.read(options.ontology))
    original = read_labels(config)
    rows = {ORIGINAL: train_and_count(config, original, relations)}
    stems = {
        "crossfit": enhanced_by_crossfit(config, options.ontology),
        "same": enhanced_by_same_clips(config, options.ontology),
    }
    for name, scores, kind, threshold in ENHANCED:
        data = replace(config.data, train=f"{stems[scores]}_{kind}_{threshold}.json")
        run_dir = str(Path(config.run_dir).with_name(f"{scores}_{kind}_{threshold}"))
        rows[name] = train_and_count(replace(config, run_dir=run_dir, data=data), original, relations)
    return rows


def show(seeds: dict[int, dict[str, Result]]) -> None:
    """Prints the table for the finished seeds."""
    print(f"\nevaluation mAP per seed {tuple(seeds)} and their mean; counts are means over the seeds\n")
    print("| training labels | added | without parent | without child | best epoch | mean | ensemble | mean |")
    print("|---|---|---|---|---|---|---|---|")
    for name in next(iter(seeds.values())):
        results = [rows[name] for rows in seeds.values()]
        counts = [np.mean([getattr(r, f) for r in results]) for f in ("added", "without_parent", "without_child")]
        best, ensemble = [r.best for r in results], [r.ensemble for r in results]
        cells = [name, *(f"{count:.0f}" for count in counts)]
        for maps in (best, ensemble):
            cells += [" ".join(f"{value:.3f}" for value in maps), f"{np.mean(maps):.3f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


def main(options: Options) -> None:
    """Trains the missing runs and prints the table after every seed."""
    process.configure_libraries()
    results: dict[int, dict[str, Result]] = {}
    for seed in options.seeds:
        results[seed] = rows_of_seed(options, seed)
        show(results)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
