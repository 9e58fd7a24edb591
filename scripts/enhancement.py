"""What label enhancement gives on FSD50K: trains on the labels as they are and on enhanced ones, and prints a table.

    psla prepare fsd50k /data/FSD50K --out data/fsd50k
    python scripts/enhancement.py data/fsd50k --ontology ontology.json [--seeds 0 1 2] [--directory runs/enhancement]

Scores are of models that have not seen the clip (a cross-fit of three folds), and in the last row of a model that was
trained on these very clips. The model is a small one, as it is trained some thirty times.
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

from psla_jax import comparison, crossfit, enhancement, experiment, runtime
from psla_jax.config import DataConfig, FrontendConfig, Kind, ModelConfig, RunConfig, Threshold
from psla_jax.data.datafile import Datafile
from psla_jax.journal import Journal
from psla_jax.labeling import Labels, Relations
from psla_jax.models.layers import BatchNorm, Conv
from psla_jax.models.pooling import build_pooling
from psla_jax.ontology import Ontology, Vocabulary
from psla_jax.run_directory import SUMMARY

DEMO = Path(__file__).resolve().parent.parent / "configs" / "demo.py"
FRAMES = 208
ORIGINAL = "labels as they are"
THRESHOLDS: tuple[Threshold, ...] = ("mean", "10")
ENHANCED: tuple[tuple[str, str, Kind, Threshold], ...] = (
    ("type I, mean", "crossfit", "type1", "mean"),
    ("type II, mean", "crossfit", "type2", "mean"),
    ("merged, mean", "crossfit", "type1_2", "mean"),
    ("merged, 10th percentile", "crossfit", "type1_2", "10"),
    ("merged, mean, scores of the same clips", "same", "type1_2", "mean"),
)
"""Name of a row, whose scores, kind and threshold."""


@dataclass(frozen=True)
class Options:
    """What to train on what."""

    data: Positional[str]
    """The folder that psla prepare fsd50k wrote; its datafiles are in DATA/datafiles."""
    ontology: str
    """AudioSet's ontology.json."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """All rows are trained once per seed."""
    epochs: int = 20
    """Of every run; the last third is averaged."""
    directory: str = "runs/enhancement"
    """Where runs and datafiles go; finished ones are not trained again."""


class SmallTagger(nnx.Module):
    """Two layers on what each band of the log-mel does in the clip: mean, deviation, maximum, minimum, mean change."""

    def __init__(self, num_classes: int, rngs: nnx.Rngs) -> None:
        self.norm = BatchNorm(5 * 128, momentum=0.9)
        self.hidden = Conv(5 * 128, 256, bias=True, rngs=rngs)
        self.attention = build_pooling("attention", 256, num_classes, 1, rngs=rngs)

    def __call__(self, spectrograms: jax.Array, valid: jax.Array | None = None) -> jax.Array:
        """`(batch, frames, mels)` to scores `(batch, classes)`."""
        features = self.norm(statistics(spectrograms), valid)
        return self.attention(jax.nn.relu(self.hidden(features[:, None, None]))[:, 0])


def statistics(x: jax.Array) -> jax.Array:
    """Of every band over the frames that sound, `(batch, frames, mels)` to `(batch, 5 * mels)`."""
    sounds = jnp.any(x != x[..., :1], axis=-1, keepdims=True)  # padding and masked frames have one value in all bands
    both = sounds[:, 1:] & sounds[:, :-1]

    def mean(values: jax.Array, counted: jax.Array) -> jax.Array:
        return jnp.sum(values * counted, axis=1) / jnp.maximum(jnp.sum(counted, axis=1), 1)

    middle = mean(x, sounds)
    deviation = jnp.sqrt(mean((x - middle[:, None]) ** 2, sounds) + 1e-6)
    highest = jnp.max(jnp.where(sounds, x, -10.0), axis=1)
    lowest = jnp.min(jnp.where(sounds, x, 10.0), axis=1)
    change = mean(jnp.abs(x[:, 1:] - x[:, :-1]), both)
    return jnp.concatenate([middle, deviation, highest, lowest, change], axis=-1)


def build(num_classes: int, rngs: nnx.Rngs) -> SmallTagger:
    """What ``enhancement:build`` names in a config."""
    return SmallTagger(num_classes, rngs)


@dataclass(frozen=True)
class Result:
    """A run: how its labels were, and the evaluation mAP of its best epoch and of its checkpoint ensemble."""

    added: int
    without_parent: int
    without_child: int
    best: float
    ensemble: float


def base_config(options: Options, seed: int) -> RunConfig:
    """The demo's small model on this data, with the labels as they are."""
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
        aggregation=replace(demo.aggregation, first=options.epochs * 2 // 3 + 1, last=options.epochs),
        bootstrap=0,
    )


def enhanced_by_crossfit(config: RunConfig, ontology: str) -> str:
    """Cross-fits and enhances; the stem of the datafiles, without kind and threshold."""
    folder = f"{config.run_dir}{crossfit.SUFFIX}/labels"
    crossfit.run(crossfit.Request(config, ontology, threshold=THRESHOLDS, out=folder, force=True))
    return f"{folder}/{Path(config.data.train).stem}"


def enhanced_by_same_clips(config: RunConfig, ontology: str) -> str:
    """Enhances by the weight average of the finished run of `config`, which was trained on these clips."""
    scores, folder = Path(config.run_dir) / "train_scores.npz", f"{config.run_dir}-same/labels"
    if not scores.is_file():
        comparison.evaluate(
            comparison.Request((config.run_dir,), config.data.train, bootstrap=0, trust=True, save=str(scores))
        )
    enhancement.run(
        enhancement.Request(
            config.data.train, str(scores), config.data.labels, ontology, ("mean",), out=folder, force=True
        ),
        Journal(),
    )
    return f"{folder}/{Path(config.data.train).stem}"


def trained(config: RunConfig, original: Labels, relations: Relations) -> Result:
    """Trains what is missing of a run and reads its summary."""
    experiment.train(config)
    summary = json.loads((Path(config.run_dir) / SUMMARY).read_text(encoding="utf-8"))
    best, *_, ensemble = (figures["evaluation"]["mAP"] for figures in summary.values())
    labels = read_labels(config)
    errors = labels.without_parent(relations), labels.without_child(relations)
    return Result(len(labels) - len(original), *errors, best, ensemble)


def read_labels(config: RunConfig) -> Labels:
    """The training labels of a config."""
    return Labels.of(Datafile.read(config.data.train, Vocabulary.read(config.data.labels)))


def rows_of_seed(options: Options, seed: int) -> dict[str, Result]:
    """All rows of the table for one seed."""
    config = base_config(options, seed)
    relations = Relations.of(Vocabulary.read(config.data.labels), Ontology.read(options.ontology))
    original = read_labels(config)
    rows = {ORIGINAL: trained(config, original, relations)}
    stems = {
        "crossfit": enhanced_by_crossfit(config, options.ontology),
        "same": enhanced_by_same_clips(config, options.ontology),
    }
    for name, scores, kind, threshold in ENHANCED:
        data = replace(config.data, train=f"{stems[scores]}_{kind}_{threshold}.json")
        run_dir = str(Path(config.run_dir).with_name(f"{scores}_{kind}_{threshold}"))
        rows[name] = trained(replace(config, run_dir=run_dir, data=data), original, relations)
    return rows


def show(seeds: dict[int, dict[str, Result]]) -> None:
    """The table over the seeds done so far; counts of labels are means over them."""
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
    """Trains what is missing; prints the table after every seed."""
    runtime.prepare_libraries(programs=False)  # all runs but those of the folds have the same ones
    done: dict[int, dict[str, Result]] = {}
    for seed in options.seeds:
        done[seed] = rows_of_seed(options, seed)
        show(done)


if __name__ == "__main__":
    main(tyro.cli(Options))
