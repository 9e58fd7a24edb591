"""PSLA on balanced AudioSet (20 thousand training clips).

    psla prepare audioset --segments balanced_train_segments.csv eval_segments.csv --audio DIR
    psla train audioset_balanced

Time: about 12 hours on four 12 GB GPUs (published for the reference).
Expected evaluation mAP (published): 0.312 with the original labels, 0.316 with labels enhanced at the mean threshold.

To train on enhanced labels, add --data.train FILE.json. If the data set was prepared with --out ELSEWHERE instead of in
data/audioset, set PSLA_AUDIOSET=ELSEWHERE. AudioSet has no validation set, so the metrics of the single model are the
mean over the last five epochs, as in the paper.
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
    aggregation=AggregationConfig(first=41),
)
