"""PSLA on full AudioSet (2 million training clips) with the original labels.

    psla prepare audioset --audio DIR \\
        --segments balanced_train_segments.csv unbalanced_train_segments.csv eval_segments.csv
    psla train audioset_full

Time: about a week on four 12 GB GPUs (published for the reference).
Expected evaluation mAP (published): single model 0.440 (AUC 0.974, d-prime 2.75), weight average 0.444, checkpoint
ensemble 0.453.

If the data set was prepared with --out ELSEWHERE instead of in data/audioset, set PSLA_AUDIOSET=ELSEWHERE. AudioSet has
no validation set, so the metrics of the single model are the mean over the last five epochs, as in the paper.
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
    aggregation=AggregationConfig(first=16),
)
