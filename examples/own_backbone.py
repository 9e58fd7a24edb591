"""One's own backbone: any Flax NNX module from spectrograms to features, trained on the embedded data set.

    python examples/own_backbone.py

A backbone is a module with the attribute ``num_features`` that maps spectrograms `(batch, frames, mels)` to features
`(batch, output frames, num_features)`; its attribute ``stride`` is the number of spectrogram frames per output
frame. It gets one of the pooling heads, or one of your own, and with it everything that the backbones of the package
have: events and the timeline, embeddings, weight averages, and fine-tuning with a frozen backbone.

A network of another project needs a few lines around it. This one trains the ConvNeXt of https://github.com/jax-ml/bonsai
(its package in the index is empty, so get the source; psla_jax does not need it)::

    git clone https://github.com/jax-ml/bonsai
    PYTHONPATH=bonsai python examples/own_backbone.py --backbone "own_backbone:bonsai_convnext"
"""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from flax import nnx

import psla_jax

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

    def __init__(self, network: Any) -> None:
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


def main(run_dir: str = "runs/own_backbone", epochs: int = 3, backbone: str = BACKBONE) -> float:
    """Trains a backbone, tags a recording with it, and trains another head on the frozen backbone; returns its mAP."""
    settings = {
        "run_dir": run_dir,
        "model": psla_jax.ModelConfig(backbone, "attention", heads=2),
        "optimizer.epochs": epochs,
        "aggregation.first": epochs,
        "bootstrap": 0,
    }
    config = psla_jax.read_config("demo", settings)
    psla_jax.train(config)

    clip = psla_jax.read_datafile("demo:evaluation", "demo").audio(0)
    tagger = psla_jax.load(run_dir, trust=True)  # The model directory names code, which nothing else imports.
    tags, timeline, embeddings = tagger.tag(clip), tagger.timeline(clip), tagger.embed(clip)
    print("tags:", ", ".join(f"{tag.name} {tag.score:.2f}" for tag in tags.top(3)))
    print(f"timeline {timeline.scores.shape}, embeddings {embeddings.frames.shape}")

    fine_tuning = {
        "run_dir": f"{run_dir}-head",
        "model.pooling": "mean",
        "pretraining.source": run_dir,
        "pretraining.freeze": True,
    }
    best, *_ = psla_jax.train(psla_jax.with_settings(config, fine_tuning))
    print(f"another head on the frozen backbone: evaluation mAP {best.sets['evaluation'].mAP:.3f}")
    return best.sets["evaluation"].mAP


if __name__ == "__main__":
    tyro.cli(main)
