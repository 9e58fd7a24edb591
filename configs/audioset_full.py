"""Full AudioSet (2 million clips): the PSLA recipe, on the original labels.

    psla prepare audioset --audio DIR \\
        --segments balanced_train_segments.csv unbalanced_train_segments.csv eval_segments.csv
    psla train configs/audioset_full.py

The first writes to data/audioset, and the config reads from there; with --out ELSEWHERE it is
PSLA_AUDIOSET=ELSEWHERE psla train configs/audioset_full.py.

Time: the reference takes about a week on four 12 GB GPUs (published).
Expected mAP on the evaluation set (published):
single 0.440 (AUC 0.974, d-prime 2.75), weight average 0.444, checkpoint ensemble 0.453.
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
    run_dir="runs/audioset_full",
    data=DataConfig(
        train=f"{DATA}/train_data.json",
        evaluation=f"{DATA}/eval_data.json",
        labels=f"{DATA}/class_labels_indices.csv",
        batch_size=100,
        workers=16,
    ),
    frontend=FrontendConfig(target_length=1056),
    model=ModelConfig(name="efficientnet-b2", heads=4),
    pretraining=PretrainingConfig(source="imagenet"),
    sampling=SamplingConfig(balanced=True, mixup=0.5, freq_mask=48, time_mask=192),
    optimizer=OptimizerConfig(learning_rate=1e-4, epochs=30, warmup_steps=1000, decay_start=10, decay_every=5),
    aggregation=AggregationConfig(first=16, last=30),
)
