"""Distillation: a network that learns from the scores of another one, besides the labels.

    python examples/distillation.py

A teacher's scores contain more than labels: how similar classes are, which labels are missing, which clips are hard.
The best convolutional networks of the field are trained so. There are three steps:

1. Train teachers, or take released models. Several make a better teacher than one.
2. ``psla_jax.evaluate`` scores the training set and saves the mean of the teachers' scores by clip id and class mid.
   Published scores or logits in ``.npz`` or HDF5 files can be used instead.
3. ``DistillConfig(teacher=...)`` trains the student: the loss is ``weight`` times the cross-entropy with the teacher's
   scores, plus ``1 - weight`` times the loss with the labels. Mixup mixes the scores as it mixes the labels.

The student is trained with and without the teacher here. On a set and in a time this small, the gain is within the
spread of the seeds. On the command line, the steps are ``psla train``, ``psla evaluate RUN... --data train.json --save
teacher.npz`` and ``psla train CONFIG --distill.teacher teacher.npz``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tyro

import psla_jax


def main(
    run_dir: str = "runs/distillation",
    teacher_epochs: int = 8,
    epochs: int = 4,
    weight: float = 0.9,
    compare: bool = True,
) -> float:
    """Trains a teacher, and shorter a student with it and, to compare, without it; returns the former's mAP."""
    settings = {"data.batch_size": 24, "optimizer.learning_rate": 4e-3, "bootstrap": 0}
    demo = psla_jax.read_config("demo", settings)

    def train(name: str, epochs: int, **changes: Any) -> float:
        changes |= {"run_dir": f"{run_dir}/{name}", "optimizer.epochs": epochs, "aggregation.first": epochs - 1}
        _, average, *_ = psla_jax.train(psla_jax.with_settings(demo, changes))
        return average.sets["evaluation"].mAP

    teacher = train("teacher", teacher_epochs)
    scores = Path(run_dir) / "teacher.npz"
    if not scores.exists():
        psla_jax.evaluate(f"{run_dir}/teacher", demo.data.train, save=scores, bootstrap=0)

    distill = psla_jax.DistillConfig(teacher=str(scores), weight=weight)
    student = train("student", epochs, seed=1, distill=distill)
    alone = train("alone", epochs, seed=1) if compare else None
    print(f"teacher, {teacher_epochs} epochs: evaluation mAP {teacher:.3f}")
    if alone is not None:
        print(f"student, {epochs} epochs, labels only: evaluation mAP {alone:.3f}")
    print(f"student, {epochs} epochs, with the teacher: evaluation mAP {student:.3f}")
    return student


if __name__ == "__main__":
    tyro.cli(main)
