"""The compiled step of a run: the same result however the batch is laid out, and what is cached and communicated."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import build
from tolerance import assert_trees_close

from psla_jax.config import (
    ConfigError,
    DataConfig,
    FrontendConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    SamplingConfig,
)
from psla_jax.models import views
from psla_jax.models.factory import from_config
from psla_jax.runtime.sharding import Placement
from psla_jax.training.objective import with_spectrograms
from psla_jax.training.trainer import Trainer, augmentation, make_trainer

CLASSES, BATCH, FRAMES = 5, 8, 40


def config(**optimizer_fields: object) -> RunConfig:
    fields = {"learning_rate": 1e-2, "epochs": 30, "warmup_steps": 0, **optimizer_fields}
    return RunConfig(
        data=DataConfig(batch_size=BATCH),
        frontend=FrontendConfig(target_length=FRAMES),
        model=ModelConfig(name="tiny:build"),
        sampling=SamplingConfig(freq_mask=24, time_mask=10),
        optimizer=OptimizerConfig(**fields),  # type: ignore[arg-type]
    )


def trainer(devices: int = 1, **optimizer_fields: object) -> Trainer:
    model = build(CLASSES, nnx.Rngs(0))
    return make_trainer(config(**optimizer_fields), model, 10, Placement.over(jax.devices()[:devices]))


def batch(clips: int = BATCH, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    samples = 400 + 160 * (FRAMES - 1)
    return {
        "waveform": rng.normal(0, 0.1, (clips, samples)).astype(np.float32),
        "num_samples": np.full(clips, samples, np.int32),
        "labels": (rng.random((clips, CLASSES)) < 0.3).astype(np.float32),
        "valid": np.ones(clips, np.float32),
    }


def run(which: Trainer, steps: int = 3, **changes: np.ndarray) -> tuple[list[float], dict]:
    state = which.init(build(CLASSES, nnx.Rngs(0)))
    losses = []
    for number in range(steps):
        placed = which.placement.shard_batch({**batch(seed=number), **changes})
        state, metrics = which.step(state, placed, np.int32(number))
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get({k: state[k] for k in ("params", "batch_stats", "progress")})


def assert_same_state(one: dict, other: dict, tolerance: float) -> None:
    """Compares parameters absolutely: Adam's updates have the size of the learning rate, 1e-2, not of the gradients."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance, rtol=0), one["params"], other["params"])
    assert_trees_close(one["batch_stats"], other["batch_stats"], tolerance)
    assert_trees_close(one["progress"], other["progress"], tolerance)


@pytest.fixture(scope="module")
def plain_run() -> tuple[list[float], dict]:
    return run(trainer())


def test_steps_lower_the_loss_and_sum_the_epochs_mean(plain_run):
    losses, state = plain_run
    same_batch, _ = run(trainer(), steps=8, **batch())
    assert same_batch[-1] < same_batch[0]
    assert state["progress"]["count"] == 3 * BATCH
    assert state["progress"]["loss"] / (3 * BATCH) == pytest.approx(np.mean(losses), rel=1e-5)


def test_the_same_seed_gives_the_same_bits(plain_run):
    losses, state = run(trainer())
    assert losses == plain_run[0]
    jax.tree.map(np.testing.assert_array_equal, state, plain_run[1])


@pytest.mark.parametrize("devices", [2, 4])
def test_devices_share_the_work_and_change_nothing(plain_run, devices):
    losses, state = run(trainer(devices))
    assert losses == pytest.approx(plain_run[0], abs=1e-5)
    assert_same_state(state, plain_run[1], 1e-3)


EIGHT = """
import jax
jax.config.update("jax_num_cpu_devices", 8)
import json, test_trainer
print(json.dumps(test_trainer.run(test_trainer.trainer(8))[0]))
"""


def test_eight_devices_give_the_losses_of_one(plain_run):
    places = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1]), *sys.path])
    environment = os.environ | {"PYTHONPATH": places}
    done = subprocess.run([sys.executable, "-c", EIGHT], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == pytest.approx(plain_run[0], abs=1e-5)


def test_the_compilers_memory_is_released_before_the_first_step(monkeypatch: pytest.MonkeyPatch):
    calls: list[str] = []

    def compiled(*arguments: object) -> Callable[..., tuple]:
        calls.append("compile")
        return lambda *arguments: (calls.append("step"), {})

    which = trainer()
    monkeypatch.setattr(Trainer, "_compile", compiled)
    monkeypatch.setattr("psla_jax.training.trainer.release_freed_memory", lambda: calls.append("release"))
    for number in range(2):
        which.step({}, {}, np.int32(number))
    assert calls == ["compile", "release", "step", "step"]


def test_a_cached_step_is_that_of_the_process_that_made_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Its numbers are those of the step that is not cached; nothing is traced where it is found, whatever the seed."""
    monkeypatch.setenv("PSLA_CACHE", str(tmp_path))
    small = ModelConfig(name="efficientnet-tiny", heads=1)
    traces, step = [], Trainer._step

    def counted_step(self: Trainer, *arguments: jax.Array) -> tuple:
        traces.append(1)
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "_step", counted_step)

    def train(cache_programs: bool, seed: int = 0) -> tuple[list[float], dict]:
        run_config = dataclasses.replace(config(), model=small, seed=seed)
        model = from_config(small, CLASSES, jnp.float32, nnx.Rngs(0))
        placement = Placement.over(jax.devices()[:1])
        which = make_trainer(run_config, model, 10, placement, cache_programs=cache_programs)
        state, losses = which.init(model), []
        for number in range(3):
            state, metrics = which.step(state, placement.shard_batch(batch(seed=number)), np.int32(number))
            losses.append(float(metrics["loss"]))
        return losses, jax.device_get({k: state[k] for k in ("params", "batch_stats", "progress")})

    first, again = train(True), train(True)
    assert len(traces) == 1
    assert again[0] == first[0]
    jax.tree.map(np.testing.assert_array_equal, again[1], first[1])
    assert train(True, seed=1)[0] != first[0]
    assert len(traces) == 1
    with jax.log_compiles():
        plain = train(False)
    assert len(traces) == 2
    assert caplog.text.count("Finished XLA compilation of jit(counted_step)") == 1
    assert plain[0] == pytest.approx(first[0], rel=1e-5)
    assert_same_state(plain[1], first[1], 1e-3)


@dataclasses.dataclass(frozen=True)
class Forms:
    """Forms of the layers in the jaxpr of a training step."""

    grouped_convolutions: bool
    rational_swish: bool
    clips_in_a_loop: bool


@pytest.mark.parametrize(
    ("platform", "devices", "expected"),
    [
        ("gpu", 1, Forms(grouped_convolutions=True, rational_swish=False, clips_in_a_loop=False)),
        ("cpu", 1, Forms(grouped_convolutions=False, rational_swish=True, clips_in_a_loop=True)),
        ("gpu", 2, Forms(grouped_convolutions=True, rational_swish=False, clips_in_a_loop=False)),
        ("cpu", 2, Forms(grouped_convolutions=False, rational_swish=True, clips_in_a_loop=False)),
    ],
)
def test_a_step_is_traced_for_the_devices_of_its_mesh(monkeypatch, platform: str, devices: int, expected: Forms):
    """This process has four CPU devices, whatever the mesh has; the cases share the caches of inner jitted functions.

    A CPU computes the gradient of a depthwise kernel in a loop over taps and rows, one device also over clips.
    """
    monkeypatch.setattr(Placement, "platform", platform)
    small = ModelConfig(name="efficientnet-tiny", heads=1)
    model = from_config(small, CLASSES, jnp.float32, nnx.Rngs(0))
    placement = Placement.over(jax.devices()[:devices])
    which = make_trainer(dataclasses.replace(config(), model=small), model, 10, placement)
    arguments = which.init(model), placement.shard_batch(batch()), which.seed, np.int32(0)
    jaxpr = str(which.jitted_step.trace(*arguments).jaxpr)
    groups = [int(number) for number in re.findall(r"feature_group_count=(\d+)", jaxpr)]
    lengths = [int(number) for number in re.findall(r"\blength=(\d+)", jaxpr)]
    shortest_loop = min((length for length in lengths if length > 1), default=0)
    found = Forms(max(groups, default=1) > 1, "rational_swish" in jaxpr, shortest_loop >= 9 * BATCH)
    assert found == expected


@pytest.mark.parametrize(("batch_norm", "sums"), [("synchronised", 6), ("local", 2)])
def test_only_gradients_and_sums_of_batch_statistics_travel_between_devices(batch_norm: str, sums: int):
    """Read off the compiled program: nothing but all-reduce, and no more numbers than these sums have.

    Per channel, synchronised statistics are two sums forward and up to four backward, and local ones two means.
    """
    which = trainer(4)
    which = dataclasses.replace(which, config=with_batch_norm(which.config, batch_norm))
    state = which.init(build(CLASSES, nnx.Rngs(0)))
    program = which.lower(state, which.placement.shard_batch(batch())).compile().as_text()
    travels = r" = (.*?) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast)"
    found = [match.groups() for match in re.finditer(travels + r"(?:-start)?\(", program)]
    assert {kind for _, kind in found} == {"all-reduce"}
    shapes = [shape for result, _ in found for shape in re.findall(r"f32\[([\d,]*)\]", result)]
    numbers = sum(math.prod(int(n) for n in shape.split(",") if n) for shape in shapes)
    gradients = sum(leaf.size for leaf in jax.tree.leaves(state["params"]))
    channels = sum(leaf.size for leaf in jax.tree.leaves(state["batch_stats"])) // 2
    # Scalars are losses and counts of clips.
    assert gradients // 2 < numbers <= gradients + sums * channels + 16


def with_batch_norm(config: RunConfig, batch_norm: Any) -> RunConfig:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, batch_norm=batch_norm))


def test_devices_with_local_statistics_train_as_each_of_them_alone():
    """The gradients of two devices are the mean of those of their halves of a batch, and so are the statistics."""
    model, halves = model_without_drop_connect(), [slice(0, BATCH // 2), slice(BATCH // 2, BATCH)]
    states = []
    for devices, rows in ((2, slice(0, BATCH)), (1, halves[0]), (1, halves[1])):
        local = with_batch_norm(config(name="sgd", learning_rate=1.0), "local")
        local = dataclasses.replace(local, sampling=NO_AUGMENTATION)
        which = make_trainer(local, model, 10, Placement.over(jax.devices()[:devices]))
        data = which.placement.shard_batch({name: value[rows] for name, value in batch().items()})
        state, _ = which.step(which.init(model), data, np.int32(0))
        states.append(jax.device_get((state["params"], state["batch_stats"])))
    together, *alone = states
    assert_trees_close(together, jax.tree.map(lambda one, other: (one + other) / 2, *alone), 1e-5)


def test_local_statistics_of_a_model_without_batch_normalisation_are_an_error():
    local = with_batch_norm(config(), "local")
    with pytest.raises(ConfigError, match=r"model\.batch_norm is 'local', but tiny:build has no"):
        make_trainer(local, Linear(nnx.Rngs(0)), 10, Placement.over(jax.devices()[:1]))


def test_blocks_that_are_not_known_cannot_be_computed_again():
    with pytest.raises(ConfigError, match="the blocks of tiny:build are not known"):
        trainer(remat=True)


def test_batch_statistics_are_global_over_devices():
    _, one = run(trainer(1), steps=1)
    _, four = run(trainer(4), steps=1)
    assert_trees_close(one["batch_stats"], four["batch_stats"], 1e-5)


def test_an_unfilled_batch_is_a_smaller_batch():
    """Rows without a clip leave loss, gradient and batch statistics as if they were not there."""
    which = dataclasses.replace(trainer(), config=dataclasses.replace(config(), sampling=NO_AUGMENTATION))
    model = model_without_drop_connect()
    full, partial = batch(), batch()
    partial["valid"][5:] = 0
    partial["waveform"][5:] = 7.0
    small = {k: v[:5] for k, v in full.items()}
    results = []
    for data in (partial, small):
        state, metrics = which.step(which.init(model), which.placement.shard_batch(data), np.int32(0))
        results.append(jax.device_get((metrics["loss"], state)))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    assert_same_state(results[0][1], results[1][1], 1e-5)


NO_AUGMENTATION = SamplingConfig(mixup=0, freq_mask=0, time_mask=0)


def model_without_drop_connect() -> nnx.Module:
    model = build(CLASSES, nnx.Rngs(0))
    model.drop.rate = 0.0
    return model


def test_microbatches_give_the_gradient_of_the_whole_batch():
    """With statistics frozen (an affine model) the sum over microbatches is exact; here it is a model without any."""
    results = []
    for parts in (1, 2, 4):
        run_config = dataclasses.replace(config(accumulate=parts), sampling=NO_AUGMENTATION)
        model = Linear(nnx.Rngs(0))
        which = make_trainer(run_config, model, 10, Placement.over(jax.devices()[:2]))
        data = batch()
        data["valid"][6:] = 0
        state, metrics = which.step(which.init(model), which.placement.shard_batch(data), np.int32(0))
        results.append(jax.device_get((metrics, state)))
    for metrics, state in results[1:]:
        assert_trees_close(metrics, results[0][0], 1e-5)
        assert_same_state(state, results[0][1], 1e-5)


class Linear(nnx.Module):
    """A model that takes neither ``valid`` nor ``rngs``: any module of that shape can be trained."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.linear = nnx.Linear(128, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(self.linear(x.mean(axis=1)))


@pytest.mark.parametrize(("accumulate", "sizes"), [(1, [6, 8]), (4, [8, 16])])
def test_rows_of_padding_for_the_devices_change_nothing(accumulate: int, sizes: list[int]):
    """Six clips on four devices: padding to 8 or 16 rows leaves the draws, the microbatches and the results."""
    results = []
    for devices in (1, 4):
        which = trainer(devices, accumulate=accumulate)
        rows = len(which.placement.rows(6, accumulate))
        data = {k: np.pad(v, [(0, rows - 6)] + [(0, 0)] * (v.ndim - 1)) for k, v in batch(clips=6).items()}
        model = build(CLASSES, nnx.Rngs(0))
        state, metrics = which.step(which.init(model), which.placement.shard_batch(data), np.int32(3))
        results.append((rows, *jax.device_get((metrics, state))))
    assert [rows for rows, *_ in results] == sizes
    assert_trees_close(results[1][1], results[0][1], 1e-5)
    assert_same_state(results[1][2], results[0][2], 1e-4)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_statistics_stay_as_they_are_in_a_microbatch_without_a_clip(accumulate: int):
    """A batch with one clip in four microbatches updates the running statistics once, one without any not at all."""
    which = trainer(accumulate=accumulate)
    empty = batch() | {"valid": np.zeros(BATCH, np.float32)}
    before = which.init(build(CLASSES, nnx.Rngs(0)))
    expected = jax.device_get(before["batch_stats"])
    after, _ = which.step(before, which.placement.shard_batch(empty), np.int32(0))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(after["batch_stats"]), expected)
    single = batch() | {"valid": np.eye(BATCH, dtype=np.float32)[0]}
    after, _ = which.step(after, which.placement.shard_batch(single), np.int32(0))
    assert 0.9 <= float(after["batch_stats"]["norm"]["var"].min()) < 1.0, "one update has a momentum of 0.9"


def test_augmentation_masks_before_normalisation_and_depends_on_the_step_alone():
    which = trainer()
    data = with_spectrograms({k: jnp.asarray(v) for k, v in batch().items()}, which.frontend)
    augment = augmentation(SamplingConfig(mixup=0, freq_mask=48, time_mask=20), which.frontend)
    one, again, other = (augment(data, jax.random.key(k))["spectrogram"] for k in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert np.any(np.asarray(one) != np.asarray(other))
    plain = data["spectrogram"]
    masked = np.asarray(one) != np.asarray(plain)
    assert masked.any()
    np.testing.assert_allclose(np.asarray(one)[masked], 4.6476 / 4.5699, rtol=1e-5)


def test_bfloat16_computes_the_backbone_and_keeps_parameters_in_float32():
    run_config = dataclasses.replace(config(precision="bf16"), sampling=NO_AUGMENTATION)
    model = model_without_drop_connect()
    for conv in (model.stem, model.depthwise, model.project):
        conv.dtype = jnp.bfloat16
    which = make_trainer(run_config, model, 10, Placement.over(jax.devices()[:1]))
    exact = dataclasses.replace(trainer(), config=run_config)
    losses = []
    for one in (which, exact):
        state, metrics = one.step(
            one.init(model_without_drop_connect()), one.placement.shard_batch(batch()), np.int32(0)
        )
        losses.append(float(metrics["loss"]))
        assert {x.dtype for x in jax.tree.leaves(state["params"])} == {jnp.dtype(jnp.float32)}
        assert {x.dtype for x in jax.tree.leaves(state["batch_stats"])} == {jnp.dtype(jnp.float32)}
    assert losses[0] == pytest.approx(losses[1], abs=0.02)
    assert losses[0] != losses[1]


def tones(seed: int) -> dict[str, np.ndarray]:
    """Returns a batch of clips with a tone for each of their classes, in noise."""
    rng = np.random.default_rng(seed)
    data = batch(seed=seed)
    time = np.arange(data["waveform"].shape[1]) / 16_000
    waves = np.sin(2 * np.pi * 300 * 2.0 ** np.arange(CLASSES)[:, None] * time)
    phase = rng.uniform(0.05, 0.2, (BATCH, CLASSES)) * data["labels"]
    return data | {"waveform": (0.1 * data["waveform"] + phase @ waves).astype(np.float32)}


def loss_curve(seed: int, dtype: type = jnp.float32) -> np.ndarray:
    """Returns the losses of 200 steps as means of ten; `seed` draws the weights and the clips."""
    model = build(CLASSES, nnx.Rngs(seed))
    for conv in (model.stem, model.depthwise, model.project):
        conv.dtype = dtype
    run_config = dataclasses.replace(config(), sampling=NO_AUGMENTATION)
    which = make_trainer(run_config, model, 1000, Placement.over(jax.devices()[:1]))
    state, losses = which.init(model), []
    for number in range(200):
        placed = which.placement.shard_batch(tones(1000 * seed + number))
        state, metrics = which.step(state, placed, np.int32(number))
        losses.append(metrics["loss"])
    return np.array(losses).reshape(20, 10).mean(axis=1)


def test_the_losses_of_bfloat16_stay_within_the_spread_of_two_seeds():
    exact, other, rounded = loss_curve(0), loss_curve(1), loss_curve(0, jnp.bfloat16)
    assert exact[-1] < 0.7 * exact[0]
    assert 0 < np.abs(rounded - exact).mean() < np.abs(other - exact).mean()


def test_views_share_their_variables():
    model = build(CLASSES, nnx.Rngs(0))
    view = views.train_view(model)
    before = np.asarray(model.norm.mean[...])
    views.apply(view, jnp.ones((2, FRAMES, 128)), jnp.ones(2), nnx.Rngs(drop=0))
    assert np.any(np.asarray(model.norm.mean[...]) != before)
    assert model.norm.use_running_average
