"""PSLA on the embedded data set, which is synthesised on first use, with a small network from random weights.

    psla train demo

Time: two to three minutes on two CPU cores, including compilation and the synthesis of the data.
Expected evaluation mAP: about 0.6 for the best epoch, the weight average and the checkpoint ensemble with the default
seed; 0.46 to 0.64 with other seeds.
"""

from psla_jax.config import (
    AggregationConfig,
    DataConfig,
    FrontendConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    SamplingConfig,
)

config = RunConfig(
    run_dir="runs/demo",
    data=DataConfig(
        train="demo:train",
        validation="demo:validation",
        evaluation="demo:evaluation",
        labels="demo:labels",
        batch_size=12,
        workers=0,
    ),
    frontend=FrontendConfig(target_length=96),
    model=ModelConfig(name="efficientnet-tiny", heads=4, drop_connect=0.0),
    sampling=SamplingConfig(balanced=True, mixup=0.5, freq_mask=24, time_mask=16),
    optimizer=OptimizerConfig(learning_rate=2e-3, epochs=30, warmup_steps=0, decay_start=20, decay_every=5),
    aggregation=AggregationConfig(first=21),
)
