"""The whole method on the embedded data set.

psla train configs/demo.py
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
        batch_size=24,
        workers=0,
    ),
    frontend=FrontendConfig(target_length=128),
    model=ModelConfig(name="efficientnet-b0", heads=4),
    sampling=SamplingConfig(balanced=True, mixup=0.5, freq_mask=24, time_mask=24),
    optimizer=OptimizerConfig(learning_rate=1e-3, epochs=12, warmup_steps=0, decay_start=6, decay_every=3),
    aggregation=AggregationConfig(first=7, last=12),
)
