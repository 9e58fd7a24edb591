"""A linear probe: a logistic regression on the embeddings of a trained network.

    python examples/linear_probe.py
    python examples/linear_probe.py --model models/as0 --labels labels.csv --train train.json --evaluation eval.json

The embedding of a clip is the mean of the backbone's features over the output frames with sound. For classes that a
network was not trained on, and data sets too small to train one, a linear model on these features is the first thing
to try: it takes seconds, needs no GPU, and shows how much of the task the features already contain.

``psla_jax.load`` loads any model of this package: one just trained, a released checkpoint that ``psla models`` or
``psla convert`` has converted, or one by ``psla_jax.save_model``. ``Tagger.embed`` embeds one recording of any format
and length, and ``Tagger.embed_all`` many, in batches. Without ``--model``, a small network is trained first, for a few
epochs on the demo set.
"""

from __future__ import annotations

import numpy as np
import tyro
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import psla_jax


def embed(tagger: psla_jax.Tagger, path: str, labels: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns embeddings ``(clips, channels)`` and labels ``(clips, classes)`` of the clips of a datafile."""
    data = psla_jax.read_datafile(path, labels)
    clips = range(len(data))
    embeddings = tagger.embed_all(data.audio(clip) for clip in clips)
    return np.stack([each.clip for each in embeddings]), np.stack([data.multi_hot(clip) for clip in clips])


def train_network(run_dir: str) -> str:
    """Trains a small network on the demo set for a few epochs; returns its run directory."""
    settings = {
        "run_dir": run_dir,
        "data.batch_size": 24,
        "data.evaluation": "",
        "optimizer.epochs": 5,
        "optimizer.learning_rate": 4e-3,
        "aggregation.first": 4,
    }
    psla_jax.train(psla_jax.read_config("demo", settings))
    return run_dir


def main(
    model: str = "",
    labels: str = "demo",
    train: str = "demo:train",
    evaluation: str = "demo:evaluation",
    run_dir: str = "runs/linear_probe",
) -> float:
    """Fits the probe to the training set, and returns its mAP on the evaluation set."""
    tagger = psla_jax.load(model or train_network(run_dir))
    features, targets = embed(tagger, train, labels)
    probe = make_pipeline(StandardScaler(), OneVsRestClassifier(LogisticRegression(C=0.01, max_iter=1000)))
    probe.fit(features, targets)

    features, targets = embed(tagger, evaluation, labels)
    metrics = psla_jax.metrics.evaluate(probe.predict_proba(features), targets)
    print(f"linear probe on {features.shape[1]} features: evaluation mAP {metrics.mAP:.3f}, AUC {metrics.mAUC:.3f}")
    return metrics.mAP


if __name__ == "__main__":
    tyro.cli(main)
