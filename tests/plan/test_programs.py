"""The lowered steps of a plan are those of a training, and the process that compiles them."""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from psla_jax.config import DataConfig, FrontendConfig, ModelConfig, OptimizerConfig, RunConfig, SamplingConfig
from psla_jax.models.factory import from_config
from psla_jax.plan import hlo, worker
from psla_jax.plan.devices import DEVICES
from psla_jax.plan.job import Job, Memory
from psla_jax.plan.programs import evaluation_step, train_step
from psla_jax.plan.summary import summarise
from psla_jax.runtime.sharding import Placement
from psla_jax.training.trainer import make_trainer

CLASSES = 5
CONFIG = RunConfig(
    data=DataConfig(batch_size=3),
    frontend=FrontendConfig(target_length=40),
    model=ModelConfig(name="tiny:build"),
    sampling=SamplingConfig(freq_mask=24, time_mask=10),
    optimizer=OptimizerConfig(loss="bce", ema=0.99),
)


def test_the_training_step_of_a_plan_is_that_of_a_training():
    placement = Placement.over(jax.devices()[:2])
    planned = train_step(CONFIG, CLASSES, placement)
    model = from_config(CONFIG.model, CLASSES, jnp.float32, nnx.Rngs(0))
    trainer = make_trainer(CONFIG, model, 1000, placement)
    clips, samples = 4, trainer.frontend.num_samples  # Three clips and one row of padding.
    batch = {
        "waveform": np.zeros((clips, samples), np.float32),
        "num_samples": np.zeros(clips, np.int32),
        "labels": np.zeros((clips, CLASSES), np.float32),
        "valid": np.zeros(clips, np.float32),
    }
    real = trainer.lower(trainer.init(model), placement.shard_batch(batch))
    assert planned.as_text() == real.as_text()
    assert planned.args_info == real.args_info


def test_what_needs_the_data_is_left_out_of_a_plan():
    """A loss that the datafile would choose, weights of classes, and a normalisation that is to be measured."""
    optimizer = dataclasses.replace(CONFIG.optimizer, loss="auto", class_weights="inverse")
    frontend = dataclasses.replace(CONFIG.frontend, mean="auto", std="auto")
    distill = dataclasses.replace(CONFIG.distill, model=("runs/absent",))
    config = dataclasses.replace(CONFIG, optimizer=optimizer, frontend=frontend, distill=distill)
    placement = Placement.over(jax.devices()[:1])
    standard = dataclasses.replace(CONFIG.frontend, mean=0.0, std=1.0)
    expected = train_step(dataclasses.replace(CONFIG, frontend=standard), CLASSES, placement)
    assert train_step(config, CLASSES, placement).as_text() == expected.as_text()


def test_the_evaluation_step_computes_in_float32():
    config = dataclasses.replace(
        CONFIG, model=ModelConfig(name="efficientnet-tiny"), optimizer=OptimizerConfig(precision="bf16")
    )
    placement = Placement.over(jax.devices()[:1])
    text = evaluation_step(config, CLASSES, placement).as_text()
    assert "tensor<3x5xf32>" in text
    assert "bf16" not in text
    assert "bf16" in train_step(config, CLASSES, placement).as_text()


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch):
    """The process that compiles, for the CPU devices of this one; a function from a job to its exit code and result."""
    topology = SimpleNamespace(devices=jax.devices())
    monkeypatch.setattr(worker.topologies, "get_topology_desc", lambda **_: topology)

    def run(job: Job) -> tuple[int, dict]:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(pickle.dumps(job))))
        return worker.main(), json.loads(job.out.with_suffix(".json").read_text())

    return run


def test_the_process_that_compiles_writes_program_and_memory(tmp_path, local):
    code, result = local(Job("train", CONFIG, CLASSES, DEVICES["h100"], 2, tmp_path / "program.hlo"))
    assert code == 0
    assert result["seconds"] > 0
    summary = summarise(hlo.parse((tmp_path / "program.hlo").read_text()))
    assert (
        summary.num_outputs == summary.num_donated + 2
    )  # The state is donated; loss and norm of the gradient are new.
    assert set(summary.collectives) == {"all-reduce"}
    model = from_config(CONFIG.model, CLASSES, jnp.float32, nnx.Rngs(0))
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model)))
    memory = Memory(**result["memory"])
    # Weights, their average, and two moments of the parameters, besides half a batch.
    batch = 2 * 4 * (FrontendConfig(40).num_samples + 1 + CLASSES + 1)
    assert 3.5 * weights + batch < memory.arguments < 4 * weights + batch + 200
    assert memory.total >= memory.arguments + memory.working


def test_errors_of_a_config_are_handed_on(tmp_path, local):
    config = dataclasses.replace(CONFIG, optimizer=OptimizerConfig(no_decay=("absent.*",)))
    code, result = local(Job("train", config, CLASSES, DEVICES["h100"], 1, tmp_path / "program.hlo"))
    assert code == 2
    assert result == {"error": "optimizer.no_decay has 'absent.*', which matches no parameter: correct the pattern."}
