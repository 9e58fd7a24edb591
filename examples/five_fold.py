"""Five-fold cross-validation, for data sets that are too small for an evaluation set.

    python examples/five_fold.py

``psla_jax.write_folds`` divides a datafile into folds that are similar in size and in the number of each class; with
``groups``, the clips of a recording, speaker or site stay in one fold. ``psla_jax.crossval`` trains a model per fold on
the other folds and evaluates it on that one. Nothing is selected on a fold: the result is that of the last epochs, the
weight average and the ensemble of epochs that the config fixes, each with mean and standard deviation over the folds.

The runs are in ``RUN_DIR-crossval``, with tables beside them. An interrupted cross-validation is resumed by the same
call. On the command line, ``psla prepare ... --folds 5`` writes the folds and ``psla crossval CONFIG`` does the rest;
data sets with folds of their own, such as ESC-50 and UrbanSound8K, keep them.
"""

from __future__ import annotations

import tyro

import psla_jax


def main(run_dir: str = "runs/five_fold", epochs: int = 6) -> float:
    """Cross-validates on a part of the embedded demo set, and returns the mean mAP of the weight averages."""
    classes = psla_jax.Vocabulary.read("demo")
    data = psla_jax.read_datafile("demo:evaluation", classes)
    folds = psla_jax.write_folds(data, classes, f"{run_dir}-folds", 5)

    settings = {
        "run_dir": run_dir,
        "data.batch_size": 24,
        "data.validation": "",
        "optimizer.epochs": epochs,
        "optimizer.learning_rate": 4e-3,
        "aggregation.first": max(1, epochs - 2),
        "bootstrap": 0,
    }
    results = psla_jax.crossval(psla_jax.read_config("demo", settings), folds)
    for result in results:
        values = "  ".join(f"{metrics.mAP:.3f}" for metrics in result.folds)
        print(f"{result.name}: mAP {result.estimate('mAP')}, by fold {values}")
    _, average, *_ = results
    return average.estimate("mAP").mean


if __name__ == "__main__":
    tyro.cli(main)
