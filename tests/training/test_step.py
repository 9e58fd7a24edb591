"""The step as a library function: transformed by JAX, with one's own ingredients, and the average of the weights."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tolerance import assert_close, assert_trees_close

from psla_jax.audio.frontend import Frontend
from psla_jax.models.layers import BatchNorm
from psla_jax.models.state import split_model
from psla_jax.sampling.spectrogram import SPECTROGRAM_STEPS, compose
from psla_jax.training.losses import binary_cross_entropy
from psla_jax.training.step import Step, init_state, make_train_step

CLASSES, BATCH, FRAMES, MELS, STEPS = 3, 8, 20, 12, 5
SETTINGS = {"specaugment": {"freq_mask": 4, "time_mask": 8}, "filter_augment": {"std": 4.0}}
AUGMENTATION = {name: functools.partial(step, **SETTINGS.get(name, {})) for name, step in SPECTROGRAM_STEPS.items()}
MIXING = {"freq_mixstyle", "mixup"}
TWO = compose(AUGMENTATION["specaugment"], AUGMENTATION["mixup"])


class Backbone(nnx.Module):
    def __init__(self, mels: int, rngs: nnx.Rngs) -> None:
        self.norm = BatchNorm(mels, momentum=0.9)
        self.linear = nnx.Linear(mels, 6, rngs=rngs)

    def __call__(self, x: jax.Array, valid: jax.Array | None) -> jax.Array:
        return jnp.tanh(self.linear(self.norm(x, valid))).mean(axis=1)


class Small(nnx.Module):
    """Batch normalisation and a linear layer per frame as the backbone, and a linear head."""

    def __init__(self, mels: int = MELS, seed: int = 0) -> None:
        rngs = nnx.Rngs(seed)
        self.model = Backbone(mels, rngs)
        self.head = nnx.Linear(6, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array, valid: jax.Array | None = None) -> jax.Array:
        return jax.nn.sigmoid(self.head(self.model(x, valid)))


def batch(seed: int = 0, rows: int = BATCH) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "spectrogram": rng.normal(0.3, 1.5, (rows, FRAMES, MELS)).astype(np.float32),
        "labels": (rng.random((rows, CLASSES)) < 0.4).astype(np.float32),
        "valid": np.ones(rows, np.float32),
    }


def key(step: int) -> jax.Array:
    return jax.random.fold_in(jax.random.key(7), step)


def ready(tx: optax.GradientTransformation | None = None, ema: float = 0.0, **options: object) -> tuple[dict, Step]:
    model, tx = Small(), tx or optax.adam(1e-2)
    return init_state(model, tx, ema=ema), make_train_step(model, tx, ema=ema, **options)


def trained(state: dict, step: Step, steps: int = STEPS) -> tuple[dict, np.ndarray]:
    losses, step = [], jax.jit(step)
    for number in range(steps):
        state, metrics = step(state, batch(number), key(number))
        losses.append(metrics["loss"])
    return jax.device_get(state), np.array(losses)


def stacked(trees: list) -> dict:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@pytest.fixture(scope="module")
def five() -> tuple[dict, np.ndarray]:
    """Five jitted steps with augmentation, and their losses."""
    return trained(*ready(augment=TWO, ema=0.9))


@pytest.fixture
def augmented() -> tuple[dict, Step]:
    return ready(augment=TWO, ema=0.9)


def test_a_scan_is_a_loop(five: tuple, augmented: tuple[dict, Step]):
    state, step = augmented
    inputs = stacked([batch(n) for n in range(STEPS)]), jnp.stack([key(n) for n in range(STEPS)])
    state, metrics = jax.lax.scan(lambda state, each: step(state, *each), state, inputs)
    assert_close(metrics["loss"], five[1], 1e-5)
    assert_trees_close(state, five[0], 1e-4)


def test_several_seeds_train_at_once(five: tuple, augmented: tuple[dict, Step]):
    """The second of three models is the one that is trained alone."""
    _, step = augmented
    states = stacked([init_state(Small(seed=seed), optax.adam(1e-2), ema=0.9) for seed in (5, 0, 9)])
    together = jax.jit(jax.vmap(step, in_axes=(0, None, 0)))
    losses = []
    for number in range(STEPS):
        keys = jnp.stack([jax.random.key(1), key(number), jax.random.key(2)])
        states, metrics = together(states, batch(number), keys)
        losses.append(metrics["loss"])
    assert_close(np.array(losses)[:, 1], five[1], 1e-5)
    assert_trees_close(jax.tree.map(lambda x: x[1], states), five[0], 1e-4)
    assert len(np.unique(losses[-1])) == 3


def test_devices_share_a_batch(five: tuple, augmented: tuple[dict, Step]):
    state, step = augmented
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
    rows, everywhere = (jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)) for axes in (["data"], []))
    state, step, losses = jax.device_put(state, everywhere), jax.jit(step, out_shardings=everywhere), []
    for number in range(STEPS):
        state, metrics = step(state, jax.device_put(batch(number), rows), key(number))
        losses.append(metrics["loss"])
    assert_close(np.array(losses), five[1], 1e-5)
    assert_trees_close(state, five[0], 1e-4)


def test_a_step_is_differentiated_forwards_and_backwards():
    """The loss of the second step by the weights before the first one, against finite differences."""
    state, step = ready(optax.sgd(0.1))

    @jax.jit
    def second_loss(params: dict) -> jax.Array:
        after, _ = step({**state, "params": params}, batch(0), key(0))
        return step(after, batch(1), key(1))[1]["loss"]

    direction = jax.tree.map(
        lambda x: np.random.default_rng(x.size).normal(size=x.shape).astype(np.float32), state["params"]
    )
    _, forward = jax.jvp(second_loss, (state["params"],), (direction,))
    gradient = jax.grad(second_loss)(state["params"])
    backward = sum(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.sum(a * b), gradient, direction)))
    moved = [second_loss(jax.tree.map(lambda x, d, s=s: x + s * 1e-2 * d, state["params"], direction)) for s in (1, -1)]
    assert float(forward) == pytest.approx(float(backward), rel=1e-3)
    assert float(forward) == pytest.approx(float(moved[0] - moved[1]) / 2e-2, rel=2e-2)


def test_one_step_is_that_of_a_loop_written_by_hand():
    """With plain optax.adam and a loss of one's own."""

    def squared(scores: jax.Array, labels: jax.Array) -> jax.Array:
        return jnp.square(scores - labels).sum(axis=1)

    tx = optax.adam(1e-2)
    state, step = ready(tx, loss=squared)
    model = Small()
    model.model.norm.set_view(use_running_average=False)
    graphdef, params, statistics = nnx.split(model, nnx.Param, ...)

    def loss(params: nnx.State) -> tuple[jax.Array, nnx.State]:
        one = nnx.merge(graphdef, params, statistics, copy=True)
        return squared(one(batch()["spectrogram"]), batch()["labels"]).mean(), nnx.state(one, nnx.BatchStat)

    (value, statistics), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    updates, _ = tx.update(gradient, tx.init(params), params)
    after, metrics = step(state, batch(), key(0))
    assert float(metrics["loss"]) == pytest.approx(float(value), rel=1e-5)
    assert float(metrics["gradient_norm"]) == pytest.approx(float(optax.global_norm(gradient)), rel=1e-5)
    assert_trees_close(after["params"], nnx.to_pure_dict(optax.apply_updates(params, updates)), 1e-4)
    assert_trees_close(after["batch_stats"], nnx.to_pure_dict(statistics), 1e-5)
    np.testing.assert_array_equal(split_model(model)[0]["head"]["kernel"], state["params"]["head"]["kernel"])


def test_waveforms_need_a_frontend_and_give_its_spectrograms():
    frontend, tx, model = Frontend(target_length=FRAMES), optax.sgd(0.1), Small(mels=128)
    samples = 400 + 160 * (FRAMES - 1)
    waves = np.random.default_rng(0).normal(0, 0.1, (BATCH, samples)).astype(np.float32)
    data = {name: value for name, value in batch().items() if name != "spectrogram"}
    sounds = {**data, "waveform": waves, "num_samples": np.full(BATCH, samples, np.int32)}
    spectrograms = {**data, "spectrogram": frontend(waves, zero_mean=False)}
    state = init_state(model, tx)
    one, _ = make_train_step(model, tx, frontend=frontend)(state, sounds, key(0))
    other, _ = make_train_step(nnx.graphdef(model), tx)(state, spectrograms, key(0))
    assert_trees_close(one, other, 1e-4)
    with pytest.raises(ValueError, match="the batch has waveforms: pass a frontend to make_train_step, or batches of"):
        make_train_step(model, tx)(state, sounds, key(0))


def test_a_loss_without_one_value_per_clip_is_an_error():
    for loss, shape in ((optax.l2_loss, r"\(8, 3\)"), (lambda s, y: binary_cross_entropy(s, y).mean(), r"\(\)")):
        state, step = ready(loss=loss)
        with pytest.raises(ValueError, match=f"the loss has the shape {shape}: return one value per clip"):
            step(state, batch(), key(0))


@pytest.mark.parametrize("name", AUGMENTATION)
def test_rows_of_padding_change_nothing_with_any_augmentation(name: str):
    """Whatever they contain; and where clips are not combined, a batch without them gives the same."""
    state, step = ready(augment=compose(AUGMENTATION[name]))
    valid = np.float32([1, 1, 1, 1, 1, 0, 0, 0])
    full = batch() | {"valid": valid}
    spoilt = {field: np.where(valid.reshape(-1, *[1] * (x.ndim - 1)) > 0, x, 7.0) for field, x in batch().items()}
    results = [jax.jit(step)(state, data, key(3)) for data in (full, {**spoilt, "valid": valid})]
    if name not in MIXING:
        results.append(jax.jit(step)(state, {field: x[:5] for field, x in batch().items()}, key(3)))
    for other in results[1:]:
        assert_trees_close(other, results[0], 1e-5)


# ---- The average of the weights --------------------------------------------------------------------------------------


def recursion(trees: list[dict], decay: float) -> dict:
    """The average over the trees after the first one, which has the initial weights."""
    average = jax.tree.map(np.float64, trees[0])
    for number, tree in enumerate(trees[1:]):
        kept = min(decay, (1 + number) / (10 + number))
        average = jax.tree.map(lambda a, b, kept=kept: kept * a + (1 - kept) * np.float64(b), average, tree)
    return average


@pytest.mark.parametrize("decay", [0.2, 0.9])
@pytest.mark.parametrize("frozen", ["", "model"])
def test_the_moving_average_is_that_of_the_weights_after_every_step(decay: float, frozen: str):
    """A step that is skipped does not count. With a decay of 0.9, all ten steps are within its warm-up."""
    state, step = ready(ema=decay, skip_nonfinite=True, frozen=frozen)
    step, visited = jax.jit(step), [{name: state[name] for name in ("params", "batch_stats")}]
    for number in range(11):
        data = batch(number)
        if number == 4:
            data["spectrogram"] = data["spectrogram"] * np.float32("nan")
        before = jax.device_get(state)
        state, metrics = step(state, data, key(number))
        if number == 4:
            assert np.isnan(metrics["loss"])
            assert float(state["progress"]["skipped"]) == 1
            for part in ("params", "batch_stats", "opt", "ema"):
                jax.tree.map(np.testing.assert_array_equal, before[part], jax.device_get(state[part]))
            continue
        visited.append({name: jax.device_get(state[name]) for name in ("params", "batch_stats")})
    average = {name: state["ema"][name] for name in ("params", "batch_stats")}
    assert int(state["ema"]["steps"]) == 10
    assert_trees_close(average, recursion(visited, decay), 1e-5)
    moved = not np.array_equal(
        average["params"]["model"]["linear"]["kernel"], visited[0]["params"]["model"]["linear"]["kernel"]
    )
    assert moved or frozen


class Counting(Small):
    """A model with a counter of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = nnx.BatchStat(jnp.zeros((), jnp.int32))

    def __call__(self, x: jax.Array, valid: jax.Array | None = None) -> jax.Array:
        self.calls.set_value(self.calls[...] + 1)
        return super().__call__(x, valid)


def test_the_moving_average_has_the_latest_counters():
    model, tx = Counting(), optax.sgd(0.1)
    state, step = init_state(model, tx, ema=0.9), jax.jit(make_train_step(model, tx, ema=0.9))
    for number in range(3):
        state, _ = step(state, batch(number), key(number))
    calls = state["ema"]["batch_stats"]["calls"]
    assert (calls, calls.dtype) == (3, jnp.int32)


def test_a_state_without_an_average_has_none_and_trains_the_same():
    (plain, without), (averaged, with_average) = (trained(*ready(ema=ema)) for ema in (0.0, 0.5))
    assert "ema" not in plain
    np.testing.assert_array_equal(without, with_average)
    for part in plain:
        jax.tree.map(np.testing.assert_array_equal, plain[part], averaged[part])


def test_a_step_keeps_no_reference_to_the_weights_of_the_model():
    """The state is a copy: donating it leaves the model usable."""
    model, tx = Small(), optax.sgd(0.1)
    state = init_state(model, tx)
    step: Callable = jax.jit(make_train_step(model, tx), donate_argnums=0)
    step(state, batch(), key(0))
    assert np.isfinite(model(jnp.asarray(batch()["spectrogram"]))).all()
