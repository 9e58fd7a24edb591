"""Past PSLA on FSD50K: AdamW with a cosine schedule, more epochs, and a moving average of the weights.

    psla prepare fsd50k DIR --out data/fsd50k
    psla train fsd50k_plus
    psla train fsd50k_plus --pretraining.source MODEL     # starts from a model that was trained on AudioSet

The network and the cost of inference are those of the config fsd50k. The second form starts from the model directory
MODEL, for example a converted checkpoint; other systems gain 8 to 10 points of mAP on FSD50K by such a start.

Optimizer, schedule and moving average were measured on a part of FSD50K (README, "Past PSLA"). Learning rate, weight
decay, number of epochs, and the start from ImageNet or from another model were not measured on the whole data set.
"""

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

DATA = "data/fsd50k/datafiles"

config = RunConfig(
    run_dir="runs/fsd50k_plus",
    data=DataConfig(
        train=f"{DATA}/fsd50k_tr_full.json",
        validation=f"{DATA}/fsd50k_val_full.json",
        evaluation=f"{DATA}/fsd50k_eval_full.json",
        labels=f"{DATA}/class_labels_indices.csv",
        batch_size=24,
        workers=8,
    ),
    frontend=FrontendConfig(target_length=3000),
    model=ModelConfig(name="efficientnet-b2", heads=4),
    pretraining=PretrainingConfig(source="imagenet"),
    sampling=SamplingConfig(balanced=True, mixup=0.5, freq_mask=48, time_mask=192),
    optimizer=OptimizerConfig(
        name="adamw",
        schedule="cosine",
        learning_rate=1.5e-3,
        weight_decay=0.05,
        epochs=60,
        warmup_steps=3000,
        ema=0.999,
    ),
    aggregation=AggregationConfig(first=43),
)
