"""One's own backbone: any Flax NNX module from spectrograms to features, trained on the embedded data set.

    python examples/own_backbone.py --epochs 3

A backbone is a module with the attribute ``num_features`` that maps spectrograms `(batch, frames, mels)` to features
`(batch, output frames, num_features)`; its attribute ``stride`` says how many spectrogram frames an output frame stands
for. It gets one of the pooling heads, or one of your own, and with it everything that the backbones of the package
have: events and the timeline, embeddings, weight averages, and fine-tuning with a frozen backbone.

A network of another project needs a few lines around it. This one trains the ConvNeXt of https://github.com/jax-ml/bonsai
(its package in the index is empty, so get the source; psla_jax does not need it)::

    git clone https://github.com/jax-ml/bonsai
    PYTHONPATH=bonsai python examples/own_backbone.py --backbone "own_backbone:bonsai_convnext"
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

import psla_jax
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
from psla_jax.data.datasets import locate

BACKBONE = "own_backbone:ConvNet(width=16)"
"""Import path of the class below, with an option: ``config.json`` and the model directory record it."""


class ConvNet(nnx.Module):
    """Five convolutions of stride 2 with Flax's own layers: an output frame per 32 spectrogram frames."""

    stride = 32

    def __init__(self, width: int = 16, *, rngs: nnx.Rngs) -> None:
        widths = [1, *(width * 2**i for i in range(4)), width * 8]
        pairs = itertools.pairwise(widths)
        self.convs = nnx.List(nnx.Conv(*pair, (3, 3), strides=2, padding=1, rngs=rngs) for pair in pairs)
        self.norms = nnx.List(nnx.BatchNorm(after, momentum=0.9, rngs=rngs) for after in widths[1:])
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.num_features = widths[-1]

    def __call__(self, spectrograms: jax.Array) -> jax.Array:
        """Maps `(batch, frames, mels)` to `(batch, output frames, features)`."""
        x = spectrograms[..., None]
        for conv, norm in zip(self.convs, self.norms):
            x = jax.nn.relu(norm(conv(x)))
        return self.dropout(jnp.mean(x, axis=2))


class BonsaiConvNeXt(nnx.Module):
    """The stages of bonsai's ConvNeXt, without its classifier."""

    stride, offset = 32, 15.5  # It divides spectrograms into patches: the first one is centred at frame 15.5.

    def __init__(self, network: nnx.Module) -> None:
        self.embedding, self.stages, self.norm = network.embedding_layer, network.stages, network.norm
        self.num_features = network.config.stage_dims[-1]

    def __call__(self, spectrograms: jax.Array) -> jax.Array:
        """Maps `(batch, frames, mels)` to `(batch, output frames, features)`."""
        x = self.embedding(spectrograms[..., None])
        for stage in self.stages:
            x = stage(x, rngs=None, train=False)  # Its drop-path rate is 0.
        return self.norm(jnp.mean(x, axis=2))


def bonsai_convnext(*, rngs: nnx.Rngs) -> nnx.Module:
    """Returns a small ConvNeXt for one input channel."""
    from bonsai.models.convnext.modeling import ConvNeXt, ModelConfig

    config = ModelConfig((1, 1, 2, 1), (16, 32, 64, 128), drop_path_rate=0.0, num_classes=1, in_channels=1)
    config.layer_scale_init_value = 1.0
    return BonsaiConvNeXt(ConvNeXt(config, rngs=rngs))


def main(run_dir: str = "runs/own_backbone", epochs: int = 3, backbone: str = BACKBONE) -> None:
    """Trains a backbone, tags a recording with it, and trains another head on the frozen backbone."""
    sets = {name: f"demo:{name}" for name in ("train", "validation", "evaluation", "labels")}
    config = RunConfig(
        run_dir=run_dir,
        data=DataConfig(**sets, batch_size=12, workers=0),
        frontend=FrontendConfig(target_length=96),
        model=ModelConfig(backbone, "attention", heads=2),
        sampling=SamplingConfig(freq_mask=24, time_mask=16),
        optimizer=OptimizerConfig(learning_rate=2e-3, epochs=epochs, warmup_steps=0),
        aggregation=AggregationConfig(first=epochs),
        bootstrap=0,
    )
    psla_jax.train(config)

    clips = json.loads(Path(locate("demo:evaluation")).read_text(encoding="utf-8"))["data"]
    tagger = psla_jax.load(run_dir, trust=True)  # The model directory names code, which nothing else imports.
    tags, timeline, embeddings = (call(clips[0]["wav"]) for call in (tagger.tag, tagger.timeline, tagger.embed))
    print(f"labels {clips[0]['labels']}; tags {[(tag.name, round(tag.score, 2)) for tag in tags.top(3)]}")
    print(f"timeline {timeline.scores.shape}, embeddings {embeddings.frames.shape}")

    fine_tuned = dataclasses.replace(
        config,
        run_dir=f"{run_dir}-head",
        model=ModelConfig(backbone, "mean"),
        pretraining=PretrainingConfig(source=run_dir, freeze=True),
    )
    best = psla_jax.train(fine_tuned)[0]
    print(f"another head on the frozen backbone: evaluation mAP {best.sets['evaluation'].mAP:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-dir", default="runs/own_backbone")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--backbone", default=BACKBONE)
    options = parser.parse_args()
    main(options.run_dir, options.epochs, options.backbone)
