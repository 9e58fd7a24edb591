"""Losses against PyTorch and float64, their gradients against finite differences, and errors."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tolerance import assert_close

from psla_jax.config import ConfigError, OptimizerConfig, is_exclusive
from psla_jax.ingredients import IngredientError, call
from psla_jax.training import losses
from psla_jax.vocabulary.vocabulary import Vocabulary

CLIPS, CLASSES = 6, 5
WEIGHTS = np.array([0.5, 1.0, 2.0, 0.0, 1.5], np.float32)
VOCABULARY = Vocabulary(("a", "b", "c"), ("A", "B", "C"))


@pytest.fixture
def scores() -> np.ndarray:
    return np.random.default_rng(0).uniform(0.02, 0.98, (CLIPS, CLASSES)).astype(np.float32)


@pytest.fixture
def tags() -> np.ndarray:
    return (np.random.default_rng(1).random((CLIPS, CLASSES)) < 0.4).astype(np.float32)


@pytest.fixture
def mixed() -> np.ndarray:
    """Two classes per clip with soft labels that add up to 1."""
    labels = np.eye(CLASSES, dtype=np.float32)[np.random.default_rng(1).integers(CLASSES, size=CLIPS)]
    return 0.7 * labels + 0.3 * labels[::-1]


def torch_focal(scores: np.ndarray, labels: np.ndarray, gamma: float) -> np.ndarray:
    """torchvision's sigmoid_focal_loss without alpha, on probabilities."""
    p, y = torch.from_numpy(scores), torch.from_numpy(labels)
    entropy = torch.nn.functional.binary_cross_entropy(p, y, reduction="none")
    p_t = p * y + (1 - p) * (1 - y)
    return (entropy * (1 - p_t) ** gamma).mean(1).numpy()


def torch_asymmetric(scores: np.ndarray, labels: np.ndarray, pos: float, neg: float, clip: float) -> np.ndarray:
    """AsymmetricLoss of the authors' repository, without disabling the gradient of the focusing factor."""
    xs_pos, y = torch.from_numpy(scores), torch.from_numpy(labels)
    xs_neg = (1 - xs_pos + clip).clamp(max=1)
    loss = y * torch.log(xs_pos.clamp(min=1e-8)) + (1 - y) * torch.log(xs_neg.clamp(min=1e-8))
    p_t = xs_pos * y + xs_neg * (1 - y)
    return (-loss * torch.pow(1 - p_t, pos * y + neg * (1 - y))).mean(1).numpy()


def test_binary_cross_entropy_is_torchs_on_clamped_scores(scores: np.ndarray):
    scores[0, :3] = 0.0, 1.0, 1.0001
    labels = np.random.default_rng(1).random((CLIPS, CLASSES)).astype(np.float32)
    clamped = torch.clamp(torch.from_numpy(scores), 1e-7, 1 - 1e-7)
    wanted = torch.nn.functional.binary_cross_entropy(clamped, torch.from_numpy(labels), reduction="none").mean(1)
    assert_close(losses.binary_cross_entropy(jnp.asarray(scores), labels), wanted, 1e-5)


def test_cross_entropy_is_torchs_with_soft_targets_and_weights(scores: np.ndarray, mixed: np.ndarray):
    logits, targets = torch.log(torch.from_numpy(scores)), torch.from_numpy(mixed)
    for weights in (None, WEIGHTS):
        weight = None if weights is None else torch.from_numpy(weights)
        wanted = torch.nn.functional.cross_entropy(logits, targets, weight, reduction="none")
        assert_close(losses.cross_entropy(jnp.asarray(scores), mixed, weights), wanted, 1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_the_focal_loss_is_torchs(scores: np.ndarray, tags: np.ndarray, gamma: float):
    assert_close(losses.focal(scores, tags, gamma=gamma), torch_focal(scores, tags, gamma), 1e-5)


@pytest.mark.parametrize(("pos", "neg", "margin"), [(0.0, 4.0, 0.05), (1.0, 2.0, 0.2), (0.0, 0.0, 0.0)])
def test_the_asymmetric_loss_is_that_of_its_authors(
    scores: np.ndarray, tags: np.ndarray, pos: float, neg: float, margin: float
):
    scores[:, 0] = 0.03  # Below the first margin: such negatives do not count.
    ours = losses.asymmetric(scores, tags, gamma_positive=pos, gamma_negative=neg, margin=margin)
    assert_close(ours, torch_asymmetric(scores, tags, pos, neg, margin), 1e-5)


@pytest.mark.parametrize("name", ["bce", "focal", "asymmetric"])
def test_class_weights_scale_the_terms_of_their_classes(scores: np.ndarray, tags: np.ndarray, name: str):
    per_class = [losses.LOSSES[name](scores[:, [k]], tags[:, [k]]) for k in range(CLASSES)]
    wanted = np.mean([weight * np.asarray(each) for weight, each in zip(WEIGHTS, per_class)], axis=0)
    assert_close(losses.LOSSES[name](scores, tags, WEIGHTS), wanted, 1e-6)


@pytest.mark.parametrize("name", ["bce", "ce", "focal", "focal(gamma=0.5)", "asymmetric", "asymmetric(margin=0.2)"])
def test_gradients_are_those_of_finite_differences(scores: np.ndarray, mixed: np.ndarray, name: str):
    loss = losses.from_config(OptimizerConfig(loss=name, label_smoothing=0.1), WEIGHTS)
    with jax.enable_x64(True):
        scores = np.float64(scores)
        scores[0, :2] = 1e-3, 1 - 1e-3
        gradient = jax.grad(lambda x: call(loss, x, np.float64(mixed), field="loss").sum())(scores)
        step = 1e-6
        for index in np.ndindex(*scores.shape):
            moved = np.zeros_like(scores)
            moved[index] = step
            high, low = (call(loss, scores + sign * moved, np.float64(mixed), field="loss").sum() for sign in (1, -1))
            assert float(gradient[index]) == pytest.approx(float(high - low) / (2 * step), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", losses.LOSSES)
@pytest.mark.parametrize("edge", [0.0, 1.0])
def test_certain_scores_give_finite_losses_and_gradients(name: str, edge: float):
    scores, labels = jnp.full((2, 3), edge), jnp.eye(2, 3)
    value, gradient = jax.value_and_grad(lambda x: losses.LOSSES[name](x, labels).sum())(scores)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(("name", "chance"), [("bce", 0.5), ("focal", 0.5), ("ce", 1 / CLASSES)])
def test_label_smoothing_mixes_labels_with_chance(scores: np.ndarray, mixed: np.ndarray, name: str, chance: float):
    smoothed = losses.from_config(OptimizerConfig(loss=name, label_smoothing=0.2))
    wanted = losses.LOSSES[name](scores, 0.8 * mixed + 0.2 * chance)
    assert_close(smoothed(scores, mixed), wanted, 1e-6)


def squared(scores: jax.Array, labels: jax.Array, valid: jax.Array, *, power: float = 2.0) -> jax.Array:
    """A loss of one's own, which requires a field of the batch."""
    return valid * jnp.sum(jnp.abs(scores - labels) ** power, axis=1)


def single(scores: jax.Array, labels: jax.Array) -> jax.Array:
    return -jnp.sum(labels * scores, axis=1)


single.exclusive = True


@pytest.mark.parametrize("smoothing", [0.0, 0.5])
def test_a_loss_of_ones_own_is_given_the_fields_that_it_names(scores: np.ndarray, tags: np.ndarray, smoothing: float):
    config = OptimizerConfig(loss=f"{__name__}:squared(power=1)", label_smoothing=smoothing)
    loss, valid = losses.from_config(config), np.arange(CLIPS, dtype=np.float32)
    losses.require_usable(loss, CLASSES, {"valid": valid[:2], "other": valid[:2]}, config.loss)
    result = call(loss, scores, tags, field="loss", valid=valid, other=None)
    labels = (1 - smoothing) * tags + smoothing / 2
    assert_close(result, valid * np.abs(scores - labels).sum(1), 1e-6)


def test_a_loss_can_declare_that_classes_are_exclusive(scores: np.ndarray, mixed: np.ndarray):
    config = OptimizerConfig(loss=f"{__name__}:single", label_smoothing=0.5)
    assert [is_exclusive(loss) for loss in (config.loss, "ce", "bce", "focal", f"{__name__}:squared")] == [
        *(True, True, False, False, False)
    ]
    wanted = -np.sum((0.5 * mixed + 0.5 / CLASSES) * scores, axis=1)
    assert_close(losses.from_config(config)(scores, mixed), wanted, 1e-6)


def total(scores: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.sum(scores - labels)


def broken(scores: jax.Array, labels: jax.Array) -> jax.Array:
    return scores @ labels


def demanding(scores: jax.Array, labels: jax.Array, difficulty: jax.Array) -> jax.Array:
    return difficulty


@pytest.mark.parametrize(
    "text", ["focal(gamma=-1)", "asymmetric(gamma_positive=-1)", "asymmetric(gamma_negative=-0.5)"]
)
def test_a_negative_exponent_is_refused(text: str):
    with pytest.raises(
        IngredientError, match=r"optimizer\.loss is .*, which cannot be computed \(ValueError: .*negative"
    ):
        losses.require_usable(losses.from_config(OptimizerConfig(loss=text)), 3, {}, text)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("total", r"optimizer\.loss is '.*total', which returns \(\) for two clips: return one value per clip"),
        (
            "broken",
            r"optimizer\.loss is '.*broken', which cannot be computed \(TypeError: .*\): correct the function\.$",
        ),
        (
            "demanding",
            r"optimizer\.loss: demanding\(scores, labels, difficulty\) cannot be called \(.*\): it may take valid\.$",
        ),
    ],
)
def test_a_loss_that_cannot_be_used_is_refused(name: str, message: str):
    text = f"{__name__}:{name}"
    with pytest.raises(IngredientError, match=message):
        losses.require_usable(
            losses.from_config(OptimizerConfig(loss=text)), 3, {"valid": jax.ShapeDtypeStruct((2,), jnp.float32)}, text
        )


def test_class_weights_are_those_of_counts_or_of_a_file_with_a_mean_of_one(tmp_path):
    counts = np.array([0.0, 4.0, 16.0])
    assert_close(losses.class_weights("inverse", counts, VOCABULARY), np.array([16, 4, 1]) / 7, 1e-6)
    assert_close(losses.class_weights("sqrt", counts, VOCABULARY), np.array([4, 2, 1]) * 3 / 7, 1e-6)
    file = tmp_path / "weights.csv"
    file.write_text("mid,weight\nc,3\na,0\nb,1.5\n")
    weights = losses.class_weights(str(file), counts, VOCABULARY)
    assert weights.dtype == np.float32
    assert_close(weights, [0, 1, 2], 1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mid,weight\na,1\nb,2\n", "which lacks 'c': give every class a row"),
        ("class,weight\na,1\n", "which lacks 'mid': give every class a row below the header mid,weight"),
        ("mid,weight\na,1\nb,much\nc,1\n", "could not convert string to float: 'much'"),
        ("mid,weight\na,1\nb,-2\nc,1\n", r"with weights from -2\.0 to 1\.0: use finite ones of 0 or more"),
        ("mid,weight\na,0\nb,0\nc,0\n", r"with weights from 0\.0 to 0\.0"),
        ("mid,weight\na,nan\nb,1\nc,1\n", "use finite ones"),
        (None, "choose inverse or sqrt, or name a CSV file"),
    ],
)
def test_a_file_of_class_weights_that_cannot_be_used_is_named(tmp_path, text: str | None, message: str):
    file = tmp_path / "weights.csv"
    if text:
        file.write_text(text)
    with pytest.raises(ConfigError, match=rf"optimizer\.class_weights is '.*weights\.csv'.*{message}"):
        losses.class_weights(str(file), np.ones(3), VOCABULARY)


def test_class_weights_need_a_loss_that_takes_them():
    config = OptimizerConfig(loss=f"{__name__}:total", class_weights="inverse")
    with pytest.raises(ConfigError, match=r"class_weights is 'inverse', but the loss .*total takes no parameter"):
        losses.from_config(config, WEIGHTS)


def test_every_registered_loss_gives_one_value_per_clip():
    for name in losses.LOSSES:
        loss: Callable = losses.from_config(OptimizerConfig(loss=name), np.ones(4, np.float32))
        losses.require_usable(loss, 4, {}, name)
