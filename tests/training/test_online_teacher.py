"""Teachers and pairs of views in the training step: values against direct computation, on one and on four devices."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sounds
import tiny
from flax import nnx
from scipy.special import expit, logit, softmax
from tolerance import assert_trees_close

from psla_jax.audio.frontend import Frontend
from psla_jax.config import (
    DataConfig,
    FrontendConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    SamplingConfig,
)
from psla_jax.config_distill import DistillConfig
from psla_jax.data.teacher import TeacherError
from psla_jax.models.factory import from_config
from psla_jax.models.model_dir import ModelCard, load_model, save_model
from psla_jax.models.state import split_model
from psla_jax.runtime.sharding import Placement
from psla_jax.training import losses
from psla_jax.training.distillation import agreement, distilled
from psla_jax.training.objective import augmented, with_spectrograms
from psla_jax.training.online_teacher import OnlineTeacher, load_teacher
from psla_jax.training.trainer import Trainer, augmentation, make_trainer, step_key
from psla_jax.vocabulary.vocabulary import Vocabulary

FRAMES, ROWS, CLASSES = 40, 8, len(sounds.VOCABULARY)
FRONTEND = FrontendConfig(target_length=FRAMES)


def config(optimizer: dict | None = None, sampling: dict | None = None, **distill: object) -> RunConfig:
    return RunConfig(
        data=DataConfig(batch_size=ROWS),
        frontend=FRONTEND,
        model=ModelConfig(name="tiny:build"),
        sampling=SamplingConfig(**{"freq_mask": 24, "time_mask": 10, **(sampling or {})}),
        optimizer=OptimizerConfig(**{"learning_rate": 1e-2, "warmup_steps": 0, "loss": "bce", **(optimizer or {})}),
        distill=DistillConfig(**distill),
    )


def trainer(config: RunConfig, teacher: OnlineTeacher | None = None, devices: int = 1) -> Trainer:
    loss = losses.from_config(config.optimizer)
    if config.distill.active:
        loss = distilled(loss, config.distill, exclusive=config.optimizer.loss == "ce")
    model = tiny.build(CLASSES, nnx.Rngs(0))
    return make_trainer(config, model, 10, Placement.over(jax.devices()[:devices]), loss=loss, teacher=teacher)


def batch(seed: int = 0, rows: int = ROWS) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    samples = Frontend.from_config(FRONTEND).num_samples
    return {
        "waveform": rng.normal(0, 0.1, (rows, samples)).astype(np.float32),
        "num_samples": np.full(rows, samples, np.int32),
        "labels": np.eye(CLASSES, dtype=np.float32)[rng.integers(CLASSES, size=rows)],
        "valid": np.ones(rows, np.float32),
    }


def run(which: Trainer, *batches: dict[str, np.ndarray]) -> tuple[list[float], dict]:
    state, values = which.init(tiny.build(CLASSES, nnx.Rngs(0))), []
    for number, each in enumerate(batches):
        state, metrics = which.step(state, which.placement.shard_batch(each), np.int32(number))
        values.append(float(metrics["loss"]))
    return values, jax.device_get({name: state[name] for name in ("params", "batch_stats", "progress")})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two teachers; the second one has another normalisation, another order of classes, and lacks one of them."""
    folder = tmp_path_factory.mktemp("models")
    vocabulary = Vocabulary(("/t/noise", "/t/other", "/t/low", "/t/high"), ("Noise", "Other", "Low", "High"))
    first, second = FRONTEND, FrontendConfig(target_length=FRAMES, mean=-3.0, std=2.5)
    for name, frontend, classes in (("a", first, sounds.VOCABULARY), ("b", second, vocabulary)):
        network = from_config(ModelConfig("tiny:build"), CLASSES, jnp.float32, nnx.Rngs(ord(name)))
        # A trained network has batch statistics.
        params, stats = split_model(network)
        stats = jax.tree.map(lambda x: x + 0.3, stats)
        save_model(folder / name, ModelCard(ModelConfig("tiny:build"), frontend, classes, {}), params, stats)
    return [str(folder / name) for name in "ab"]


def load(paths: list[str], frontend: FrontendConfig = FRONTEND, **settings: object) -> OnlineTeacher:
    defaults = {"exclusive": False, "trusted": ("tiny:build",), "field": "distill.model"}
    return load_teacher(paths, Frontend.from_config(frontend), sounds.VOCABULARY, **{**defaults, **settings})


def spectrograms(config: RunConfig, data: dict[str, np.ndarray], number: int) -> dict[str, jax.Array]:
    """The batch as the student of a step on one device sees it."""
    frontend = Frontend.from_config(config.frontend)
    given = with_spectrograms({name: jnp.asarray(value) for name, value in data.items()}, frontend)
    key, _ = jax.random.split(step_key(np.uint32(config.seed), np.int32(number)))
    return augmented(given, augmentation(config.sampling, frontend), key)


def expected_scores(models: list[str], seen: dict[str, jax.Array], temperature: float) -> np.ndarray:
    """The mean of both models where both have the class; the label of the class that no model has."""
    a, b = (load_model(path, trust=True).network for path in models)
    log_mel = np.asarray(seen["spectrogram"]) * FRONTEND.std + FRONTEND.mean
    own, other = np.array(a(seen["spectrogram"])), np.asarray(b(jnp.asarray((log_mel + 3.0) / 2.5)))
    own[:, :3] = (own[:, :3] + other[:, [2, 3, 0]]) / 2
    return expit(logit(own) / temperature)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_teacher_scores_what_the_student_sees(models, temperature):
    settings = config(sampling={"spectrogram": ("mixup", "specaugment")}, model=tuple(models), temperature=temperature)
    seen = spectrograms(settings, batch(), 0)
    expected = expected_scores(models, seen, temperature)
    teacher = load(models)
    targets = teacher.targets(seen, teacher.weights, temperature, exclusive=False)
    np.testing.assert_allclose(targets, expected, rtol=1e-4)
    online, _ = run(trainer(settings, teacher), batch())
    stored, _ = run(trainer(settings), {**batch(), "taught": expected.astype(np.float32)})
    assert online == pytest.approx(stored, rel=1e-5)
    untaught, _ = run(trainer(dataclasses.replace(settings, distill=DistillConfig())), batch())
    assert online != pytest.approx(untaught, rel=1e-3)


def test_a_teacher_of_exclusive_classes_gives_a_distribution(models):
    seen = spectrograms(config(), batch(), 0)
    scores = np.asarray(load_model(models[0], trust=True).network(seen["spectrogram"]))
    teacher = load(models[:1], exclusive=True)
    targets = teacher.targets(seen, teacher.weights, 2.0, exclusive=True)
    np.testing.assert_allclose(targets, softmax(np.log(scores) / 2.0, axis=1), rtol=1e-4)


def test_labels_stand_in_for_classes_that_a_teacher_lacks(models):
    teacher = load(models[1:])
    seen = spectrograms(config(), batch(), 0)
    targets = teacher.targets(seen, teacher.weights, 1.0, exclusive=False)
    np.testing.assert_array_equal(targets[:, 3], seen["labels"][:, 3])
    assert teacher.notes == (
        f"teacher {models[1]}: lacks 1 of the 4 classes, for which labels stand in, such as /t/never",
    )
    with pytest.raises(TeacherError, match=r"distill.model names .* lacks 1 of the 4 classes, such as '/t/never'"):
        load(models[1:], exclusive=True)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_devices_and_microbatches_share_a_teacher(models, accumulate):
    """A row without a clip changes nothing, and the weights are neither donated nor part of the state."""
    settings = config({"accumulate": accumulate}, model=tuple(models))
    short = batch(3)
    short["valid"][5:] = 0
    short["labels"][5:] = np.nan
    results = [run(trainer(settings, load(models), devices), batch(1), batch(2), short) for devices in (1, 4)]
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-4)
    assert np.isfinite(results[0][0]).all()
    assert_trees_close(results[0][1]["batch_stats"], results[1][1]["batch_stats"], 1e-3)


def test_the_weights_of_a_teacher_are_arguments_of_the_program(models):
    """A program compiled with one teacher gives the results of another one with the weights of the other."""
    first, second = load(models[:1]), load(models[:1])
    changed = jax.tree.map(lambda x: x * 0.5, second.weights)
    settings = config(model=tuple(models[:1]))
    compiled = trainer(settings, first)
    before = run(compiled, batch())[0]
    compiled.__dict__["_teacher_weights"] = (compiled.placement.replicate(changed),)
    after = run(compiled, batch())[0]
    assert after == run(trainer(settings, dataclasses.replace(second, weights=changed)), batch())[0]
    assert after != before


@pytest.mark.parametrize(
    ("paths", "settings", "message"),
    [
        (["/nowhere"], {}, "distill.model: there is no model at /nowhere"),
        (
            None,
            {"trusted": ()},
            "tiny:build, which the student does not use: score the clips with psla evaluate --trust --save",
        ),
    ],
)
def test_a_teacher_that_cannot_be_used_is_named(models, paths, settings, message):
    with pytest.raises(TeacherError, match=message):
        load(paths or models, **settings)


def test_a_teacher_of_another_length_is_noted(models):
    teacher = load(models[:1], FrontendConfig(target_length=60))
    assert teacher.notes == (f"teacher {models[0]}: scores 60 frames as the student does, and was trained on 40",)


# ---- two views


def binary(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return -(targets * np.log(scores) + (1 - targets) * np.log(1 - scores)).mean(axis=1)


@pytest.mark.parametrize("loss", ["bce", "ce"])
def test_the_loss_of_two_views_is_their_mean_and_their_disagreement(loss):
    """The views are drawn by hand, and pass through the model together; there is no drop-connect in this model."""
    settings = config({"loss": loss}, consistency=0.7)
    data = batch()
    data["valid"][6:] = 0
    frontend = Frontend.from_config(FRONTEND)
    given = with_spectrograms({name: jnp.asarray(value) for name, value in data.items()}, frontend)
    augment_key, _ = jax.random.split(step_key(np.uint32(0), np.int32(0)))
    views = [augmented(given, augmentation(settings.sampling, frontend), key) for key in jax.random.split(augment_key)]
    assert not np.array_equal(views[0]["spectrogram"], views[1]["spectrogram"])

    model = tiny.build(CLASSES, nnx.Rngs(0))
    model.drop.rate = 0.0
    which = make_trainer(settings, model, 10, Placement.over(jax.devices()[:1]))
    state = which.init(model)
    _, metrics = which.step(state, which.placement.shard_batch(data), np.int32(0))
    both = jnp.concatenate([view["spectrogram"] for view in views])
    training = nnx.view(model, deterministic=False, use_running_average=False, raise_if_not_found=False)
    scores = np.asarray(training(both, jnp.asarray(np.tile(data["valid"], 2))))
    one, other = scores[:6], scores[8:14]
    labels = data["labels"][:6]
    if loss == "bce":
        expected = (binary(one, labels) + binary(other, labels)) / 2
        expected = expected + 0.7 * (binary(one, other) + binary(other, one)) / 2
    else:
        one, other = (x / x.sum(axis=1, keepdims=True) for x in (one, other))
        terms = [labels * np.log(one), labels * np.log(other), 0.7 * other * np.log(one), 0.7 * one * np.log(other)]
        expected = -sum(term.sum(axis=1) for term in terms) / 2
    assert float(metrics["loss"]) == pytest.approx(expected.mean(), rel=1e-4)


def test_each_view_learns_from_the_other_as_a_constant():
    term = agreement(DistillConfig(consistency=2.0), exclusive=False)
    rng = np.random.default_rng(0)
    one, other = rng.uniform(0.1, 0.9, (2, 3, 4))
    gradient = jax.grad(lambda scores: term(scores, jnp.asarray(other)).sum())(jnp.asarray(one))
    # The derivative of 2 * mean BCE(one, other) / 2 alone.
    np.testing.assert_allclose(gradient, (one - other) / (one * (1 - one)) / 4, rtol=1e-4)


@pytest.mark.parametrize("changes", [{"accumulate": 2}, {"precision": "bf16"}, {}], ids=str)
def test_pairs_of_views_stay_on_their_devices_and_change_nothing(changes, models):
    settings = config(changes, consistency=0.5, model=tuple(models))
    short = batch(3)
    short["valid"][5:] = 0
    results = [run(trainer(settings, load(models), devices), batch(1), short) for devices in (1, 4)]
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-2 if "precision" in changes else 1e-4)
    counts = [result[1]["progress"]["count"] for result in results]
    assert counts == [13.0, 13.0]
