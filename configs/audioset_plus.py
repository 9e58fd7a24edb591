"""Past PSLA on full AudioSet: AdamW with a cosine schedule, a moving average, and a teacher if one is given.

    psla prepare audioset --audio DIR \\
        --segments balanced_train_segments.csv unbalanced_train_segments.csv eval_segments.csv
    psla train audioset_plus
    psla train audioset_plus --distill.teacher SCORES --distill.weight 0.9

The network and the cost of inference are those of the config audioset_full. SCORES are a teacher's scores of the
training clips: of `psla evaluate --save`, of `psla teach`, or published ones; CNNs of this size reach 0.47 to 0.49 in
the literature with such teachers. If the data set was prepared with --out ELSEWHERE instead of in data/audioset, set
PSLA_AUDIOSET=ELSEWHERE.

Nothing in this config was measured on AudioSet. Optimizer, schedule and moving average are those that helped on a part
of FSD50K (README, "Past PSLA"); the learning rate is higher than PSLA's by the same factor as there.
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
    run_dir="runs/audioset_plus",
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
    optimizer=OptimizerConfig(
        name="adamw",
        schedule="cosine",
        learning_rate=3e-4,
        weight_decay=0.05,
        epochs=30,
        warmup_steps=5000,
        ema=0.9999,
    ),
    aggregation=AggregationConfig(first=22),
)
