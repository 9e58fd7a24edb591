"""A training loop of one's own, in forty lines.

    python examples/own_loop.py

The parts of PSLA are plain functions, so that a notebook or a script needs no framework around them:

- ``psla_jax.loader`` returns a Grain dataset. With a ``SamplingConfig``, it draws clips balanced by their classes and
  mixes them; without one, every clip comes once, for evaluation.
- ``psla_jax.make_train_step`` returns a pure function ``step(state, batch, key) -> (state, metrics)``, which can be
  jitted, scanned over, sharded and differentiated. Model, optimizer, loss and augmentation are its arguments: any Flax
  NNX model, any ``optax`` transformation, any function of scores and labels.
- ``psla_jax.predict`` scores a data set, and ``metrics()`` of its result has mAP, AUC and d'.
- ``psla_jax.save_model`` writes a model directory for ``psla tag``, ``psla evaluate`` and ``psla_jax.load``.

``psla_jax.train`` adds what this loop lacks: checkpoints, exact resumption, several devices, averages of weights.
"""

from __future__ import annotations

from typing import Any

import jax
import optax
import tyro
from flax import nnx

import psla_jax

ARCHITECTURE: dict[str, Any] = {"name": "efficientnet-tiny", "heads": 4, "drop_connect": 0.0}


def main(directory: str = "runs/own_loop", epochs: int = 6) -> float:
    """Trains on the embedded demo set, saves the model, and returns its mAP on the evaluation set."""
    classes = psla_jax.Vocabulary.read("demo")
    frontend = psla_jax.Frontend(target_length=96)  # log-mel spectrograms of 96 frames, one every 10 ms
    sampling = psla_jax.SamplingConfig(balanced=True, mixup=0.5, freq_mask=24, time_mask=16)
    train = psla_jax.loader("demo:train", frontend, labels=classes, sampling=sampling, epochs=epochs, batch_size=24)
    test = psla_jax.loader("demo:evaluation", frontend, labels=classes, batch_size=24)

    model = psla_jax.build_model(**ARCHITECTURE, num_classes=len(classes), rngs=nnx.Rngs(0))
    optimizer = optax.adamw(optax.cosine_decay_schedule(4e-3, len(train)))
    augment = psla_jax.augmentation(sampling, frontend)
    step = psla_jax.make_train_step(model, optimizer, augment=augment, frontend=frontend)
    step = jax.jit(step, donate_argnums=0)

    state = psla_jax.init_state(model, optimizer)
    for number, batch in enumerate(train):
        state, metrics = step(state, batch, jax.random.key(number))
        if number % 18 == 0:
            print(f"step {number:3} of {len(train)}: loss {metrics['loss']:.3f}")

    nnx.update(model, state["params"], state["batch_stats"])
    result = psla_jax.predict(model, frontend, test).metrics()
    print(f"evaluation mAP {result.mAP:.3f}, AUC {result.mAUC:.3f}")
    card = psla_jax.ModelCard(psla_jax.ModelConfig(**ARCHITECTURE), frontend, classes)
    psla_jax.save_model(directory, card, state["params"], state["batch_stats"])
    print(f"saved: psla tag recording.wav --model {directory}")
    return result.mAP


if __name__ == "__main__":
    tyro.cli(main)
