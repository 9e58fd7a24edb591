"""Balanced AudioSet (20 thousand clips): the PSLA recipe.

    psla prepare audioset --segments balanced_train_segments.csv eval_segments.csv --audio DIR
    psla train configs/audioset_balanced.py

The first writes to data/audioset, and the config reads from there; with --out ELSEWHERE it is
PSLA_AUDIOSET=ELSEWHERE psla train configs/audioset_balanced.py. Enhanced labels: --data.train FILE.json.

Time: the reference takes about 12 hours on four 12 GB GPUs (published).
Expected mAP on the evaluation set (published):
0.312 with the original labels, 0.316 with labels enhanced at the mean threshold (the recipe's).
There is no validation set: "single" is the mean of the last five epochs, as in the paper.
"""

import os

from psla_jax.config import (
    AggregationConfig,
    DataConfig,
    FrontendConfig,
    ModelConfig,
    OptimizerConfig,
    PretrainingConfig,
    RunConfig,
    SamplingConfig,
)

DATA = os.environ.get("PSLA_AUDIOSET", "data/audioset")

config = RunConfig(
    run_dir="runs/audioset_balanced",
    data=DataConfig(
        train=f"{DATA}/balanced_train_data.json",
        evaluation=f"{DATA}/eval_data.json",
        labels=f"{DATA}/class_labels_indices.csv",
        batch_size=100,
        workers=16,
    ),
    frontend=FrontendConfig(target_length=1056),
    model=ModelConfig(name="efficientnet-b2", heads=4),
    pretraining=PretrainingConfig(source="imagenet"),
    sampling=SamplingConfig(balanced=False, mixup=0.5, freq_mask=48, time_mask=192),
    optimizer=OptimizerConfig(learning_rate=1e-3, epochs=60, warmup_steps=1000, decay_start=35, decay_every=5),
    aggregation=AggregationConfig(first=41, last=60),
)
