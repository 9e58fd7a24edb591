"""Optimizers and schedules against PyTorch and formulas in NumPy, masks by name, and errors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from tolerance import assert_close, assert_trees_close

from psla_jax.config import OptimizerConfig, PretrainingConfig
from psla_jax.ingredients import IngredientError
from psla_jax.training.optimizer import make_optimizer, make_schedule, require_usable, same_rates, unmatched

RATE, STEPS_PER_EPOCH = 1e-2, 10
PLAIN = PretrainingConfig()


def config(name: str = "adam", **fields: object) -> OptimizerConfig:
    """A constant rate, and a decay far above the recipe's, so that its coupling shows."""
    values = {"schedule": "constant", "learning_rate": RATE, "warmup_steps": 0, "weight_decay": 0.1, **fields}
    return OptimizerConfig(name=name, **values)


def parameters() -> dict:
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    return {"effnet": {"kernel": draw(3, 4), "bias": draw(4)}, "head": {"kernel": draw(4, 2), "bias": draw(2)}}


def gradients(step: int) -> dict:
    rng = np.random.default_rng(100 + step)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), parameters())


def five_steps(transform: optax.GradientTransformation) -> dict:
    params = parameters()
    state = transform.init(params)
    for step in range(5):
        updates, state = transform.update(gradients(step), state, params)
        params = optax.apply_updates(params, updates)
    return jax.device_get(params)


def made(name: str, **fields: object) -> optax.GradientTransformation:
    return make_optimizer(config(name, **fields), PLAIN, STEPS_PER_EPOCH, "")


def of_torch(optimizer: type[torch.optim.Optimizer], **options: object) -> dict:
    leaves, structure = jax.tree.flatten(parameters())
    tensors = [torch.nn.Parameter(torch.from_numpy(leaf.copy())) for leaf in leaves]
    reference = optimizer(tensors, lr=RATE, weight_decay=0.1, **options)
    for step in range(5):
        for tensor, gradient in zip(tensors, jax.tree.leaves(gradients(step))):
            tensor.grad = torch.from_numpy(gradient)
        reference.step()
    return jax.tree.unflatten(structure, [tensor.detach().numpy() for tensor in tensors])


@pytest.mark.parametrize(
    ("name", "optimizer", "options"),
    [
        ("adam", torch.optim.Adam, {"betas": (0.95, 0.999)}),
        ("adam(b1=0.8, b2=0.9, eps=1e-3)", torch.optim.Adam, {"betas": (0.8, 0.9), "eps": 1e-3}),
        ("adamw", torch.optim.AdamW, {}),
        ("adamw(b2=0.98)", torch.optim.AdamW, {"betas": (0.9, 0.98)}),
        ("sgd", torch.optim.SGD, {"momentum": 0.9}),
        ("sgd(momentum=0.5, nesterov=True)", torch.optim.SGD, {"momentum": 0.5, "nesterov": True}),
    ],
)
def test_five_steps_are_those_of_torch(name: str, optimizer: type, options: dict):
    assert_trees_close(five_steps(made(name)), of_torch(optimizer, **options), 2e-6)


def test_an_optimizer_of_optax_can_be_named():
    found, expected = (
        five_steps(each)
        for each in (made("optax:adamw(nesterov=True)"), optax.adamw(RATE, nesterov=True, weight_decay=0.1))
    )
    assert_trees_close(found, expected, 1e-7)
    assert np.abs(found["head"]["bias"] - five_steps(made("adamw"))["head"]["bias"]).max() > 1e-3


def lion(value: np.ndarray, steps: list[np.ndarray]) -> np.ndarray:
    """Chen et al., Symbolic discovery of optimization algorithms, algorithm 2."""
    momentum = np.zeros_like(value)
    for gradient in steps:
        value = value - RATE * (np.sign(0.9 * momentum + 0.1 * gradient) + 0.1 * value)
        momentum = 0.99 * momentum + 0.01 * gradient
    return value


def lamb(value: np.ndarray, steps: list[np.ndarray]) -> np.ndarray:
    """You et al., Large batch optimization for deep learning, algorithm 2, with the norm as scaling function."""
    first, second = np.zeros_like(value), np.zeros_like(value)
    for number, gradient in enumerate(steps, 1):
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        ratio = first / (1 - 0.9**number) / (np.sqrt(second / (1 - 0.999**number)) + 1e-6)
        update = ratio + 0.1 * value
        value = value - RATE * np.linalg.norm(value) / np.linalg.norm(update) * update
    return value


@pytest.mark.parametrize("formula", [lion, lamb])
def test_five_steps_are_those_of_the_published_formula(formula):
    steps = [gradients(step) for step in range(5)]
    expected = jax.tree.map(
        lambda value, *steps: formula(np.float64(value), list(map(np.float64, steps))), parameters(), *steps
    )
    assert_trees_close(five_steps(made(formula.__name__)), expected, 1e-5)


def test_muon_updates_kernels_as_matrices_and_everything_else_by_adam():
    rng = np.random.default_rng(0)
    shapes = {
        "dense": (3, 3, 8, 6),
        "pointwise": (1, 1, 12, 5),
        "linear": (10, 4),
        "depthwise": (3, 3, 1, 8),
        "bias": (6,),
    }
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    # With scales from 1 to 20, the features of a gradient are far from orthonormal.
    gradient = {
        name: (rng.normal(size=shape) * np.geomspace(1, 20, shape[-1])).astype(np.float32)
        for name, shape in shapes.items()
    }
    transform = made("muon", weight_decay=0.0)
    updates, _ = transform.update(gradient, transform.init(params), params)
    for name in ("dense", "pointwise", "linear"):
        matrix = np.asarray(updates[name]).reshape(-1, shapes[name][-1])
        direction = gradient[name].reshape(matrix.shape)
        values = np.linalg.svd(matrix, compute_uv=False)
        # The five Newton-Schulz iterations give singular values near 1, up to a common factor.
        assert values.max() / values.min() < 2, name
        assert np.linalg.cond(direction) > 5, name
        left, _, right = np.linalg.svd(direction, full_matrices=False)
        closest = -(left @ right)
        assert np.sum(closest * matrix) / np.linalg.norm(closest) / np.linalg.norm(matrix) > 0.97, name
    for name in ("depthwise", "bias"):
        first_step = 1 + 0.9 * 0.1 / (1 - 0.9**2)  # of Adam with Nesterov momentum
        np.testing.assert_allclose(updates[name], -RATE * first_step * np.sign(gradient[name]), rtol=1e-3)
    decayed = made("muon", weight_decay=0.5, no_decay=("dense",))
    after, _ = decayed.update(gradient, decayed.init(params), params)
    for name in shapes:
        decay = RATE * 0.5 if name in ("pointwise", "linear") else 0.0
        assert_close(after[name], updates[name] - decay * params[name], 1e-5, name)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "lion", "lamb"])
def test_parameters_by_name_do_not_decay(name: str):
    """Those that do are as without the pattern, and the others as without decay."""
    some = five_steps(made(name, no_decay=("*.bias", "head.k*")))
    all_, none = five_steps(made(name)), five_steps(made(name, weight_decay=0.0))
    assert_trees_close(some["effnet"]["kernel"], all_["effnet"]["kernel"], 1e-6)
    assert_trees_close(some["head"], none["head"], 1e-6)
    assert_close(some["effnet"]["bias"], none["effnet"]["bias"], 1e-6)
    assert np.abs(all_["head"]["kernel"] - none["head"]["kernel"]).max() > 1e-4


def test_the_first_pattern_gives_the_relative_rate():
    plain, scaled = five_steps(made("adamw")), five_steps(made("adamw", rates=("effnet.bias=0", "effnet.*=0.1")))
    start = parameters()
    np.testing.assert_array_equal(scaled["effnet"]["bias"], start["effnet"]["bias"])
    assert_trees_close(scaled["head"], plain["head"], 1e-6)
    sgd, slow = (five_steps(made("sgd", weight_decay=0.0, rates=rates)) for rates in ((), ("effnet.*=0.1",)))
    moved = (slow["effnet"]["kernel"] - start["effnet"]["kernel"]) / (
        sgd["effnet"]["kernel"] - start["effnet"]["kernel"]
    )
    np.testing.assert_allclose(moved, 0.1, rtol=1e-3)


@pytest.mark.parametrize("backbone", ["", "effnet"])
def test_the_gradient_of_all_parameters_together_is_clipped(backbone: str):
    """Also where the backbone has a rate of its own."""
    gradient, pretraining = gradients(0), PretrainingConfig(backbone_rate=0.5)
    norm = float(np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(gradient))))
    for clip in (norm / 4, norm * 4):
        settings = config("sgd", weight_decay=0.0, clip=clip)
        transform = make_optimizer(settings, pretraining, STEPS_PER_EPOCH, backbone)
        updates, _ = transform.update(gradient, transform.init(parameters()), parameters())
        scales = {"effnet": 0.5 if backbone else 1.0, "head": 1.0}
        factors = {part: -RATE * min(clip / norm, 1.0) * scale for part, scale in scales.items()}
        expected = {part: {name: factors[part] * x for name, x in gradient[part].items()} for part in gradient}
        assert_trees_close(updates, expected, 1e-6)


def test_the_backbone_can_be_frozen_or_learn_at_its_own_rate():
    """Against plain Adam on a tree of two groups."""

    def updates(backbone: str, **fields: object) -> dict:
        transform = make_optimizer(config(), PretrainingConfig(source="x", **fields), STEPS_PER_EPOCH, backbone)
        return transform.update(gradients(0), transform.init(parameters()), parameters())[0]

    plain = updates("")
    slow, frozen = updates("effnet", backbone_rate=0.1), updates("effnet", freeze=True)
    assert_trees_close(slow["effnet"], jax.tree.map(lambda x: 0.1 * x, plain["effnet"]), 1e-6)
    assert_trees_close(slow["head"], plain["head"], 1e-6)
    jax.tree.map(np.testing.assert_array_equal, frozen["effnet"], jax.tree.map(np.zeros_like, plain["effnet"]))
    assert_trees_close(frozen["head"], plain["head"], 1e-6)


def test_patterns_without_a_parameter_are_found():
    assert unmatched(("*.bias", "effnet.*", "head.gain"), parameters()) == ["head.gain"]
    assert unmatched(("neck.*=0.1", "head.*=2"), parameters()) == ["neck.*"]


# ---- Schedules -------------------------------------------------------------------------------------------------------


def rates(schedule: str, *steps: int, **fields: object) -> list[float]:
    values = {"learning_rate": 1e-3, "warmup_steps": 10, "epochs": 11, **fields}
    made = make_schedule(OptimizerConfig(schedule=schedule, **values), STEPS_PER_EPOCH)
    return [float(made(step)) for step in steps]


def test_the_step_decay_follows_the_reference_after_warm_up():
    parameter = torch.nn.Parameter(torch.zeros(1))
    adam = torch.optim.Adam([parameter], lr=1e-3)
    reference = torch.optim.lr_scheduler.MultiStepLR(adam, list(range(10, 1000, 5)), gamma=0.5)
    for epoch in range(30):
        rate = adam.param_groups[0]["lr"]
        assert rates("step_decay", 10 * epoch, 10 * epoch + 9, warmup_steps=0) == pytest.approx([rate] * 2, rel=1e-6)
        adam.step()
        reference.step()


@pytest.mark.parametrize("name", ["step_decay", "cosine", "constant", "exponential"])
def test_every_named_schedule_begins_with_a_linear_warm_up_that_never_is_zero(name: str):
    assert rates(name, 0, 1, 5, 9, decay_start=30) == pytest.approx([1e-4, 2e-4, 6e-4, 1e-3], rel=1e-5)
    assert rates(name, 0, warmup_steps=0, decay_start=30) == pytest.approx([1e-3], rel=1e-5)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1, 1, 1]),
        ("cosine", [1, 0.5, 0]),
        ("cosine(final=0.2)", [1, 0.6, 0.2]),
        ("exponential", [1, 0.1, 0.01]),
        ("exponential(final=0.25)", [1, 0.5, 0.25]),
    ],
)
def test_schedules_at_the_end_of_the_warm_up_in_the_middle_and_at_the_end(schedule: str, expected: list[float]):
    assert rates(schedule, 10, 60, 110) == pytest.approx([1e-3 * each for each in expected], rel=1e-5, abs=1e-9)
    assert rates(schedule, 5000) == pytest.approx([1e-3 * expected[-1]], rel=1e-5, abs=1e-9)


def test_a_schedule_of_optax_can_be_named():
    found = rates("optax:cosine_decay_schedule(init_value=1e-3, decay_steps=100)", 0, 50, 100)
    assert found == pytest.approx([1e-3, 5e-4, 0], abs=1e-9)
    # It takes the length of the warm-up from the config.
    text = "optax:warmup_cosine_decay_schedule(init_value=0.0, peak_value=0.5, decay_steps=110)"
    assert rates(text, 0, 5, 10, 60) == pytest.approx([0, 0.25, 0.5, 0.25], abs=1e-6)


def slanted(learning_rate: float, steps: int, *, share: float = 0.5) -> optax.Schedule:
    return lambda step: learning_rate * (1 - share * step / steps)


def test_a_schedule_of_ones_own_is_given_what_it_names():
    assert rates(f"{__name__}:slanted(share=1)", 0, 55) == pytest.approx([1e-3, 5e-4])


# ---- Errors ----------------------------------------------------------------------------------------------------------


def half(learning_rate: float) -> float:
    return learning_rate / 2


def stepwise() -> optax.Schedule:
    return lambda step: step.unknown


def each() -> optax.Schedule:
    return lambda step: jnp.ones(3) * step


def nothing(learning_rate: optax.Schedule) -> None:
    return None


def demanding(learning_rate: optax.Schedule, momentum: float) -> None:
    raise AssertionError


ERRORS = [
    ("schedule", "linear", r"optimizer\.schedule is 'linear': 'linear' is unknown: choose one of step_decay, cosine, "),
    (
        "schedule",
        "cosine(end=1)",
        r"cosine has no option 'end': its parameters are learning_rate, steps, warmup_steps, ",
    ),
    ("schedule", "half", r"schedule is '.*half', whose result cannot be computed \(TypeError: .*not callable.*\)"),
    ("schedule", "stepwise", r"schedule is '.*stepwise', whose result cannot be computed \(AttributeError"),
    ("schedule", "each", r"schedule is '.*each', which gives rates of the shape \(3,\): give one number"),
    (
        "name",
        "adamx",
        r"optimizer\.name is 'adamx': 'adamx' is unknown: choose one of adam, adamw, lamb, lion, muon, sgd",
    ),
    ("name", "optax:adamx", r"'optax:adamx' cannot be imported \(.*has no attribute 'adamx'\): name it as module:"),
    ("name", "adamw(beta=1)", r"adamw has no option 'beta': its parameters are learning_rate, b1, b2, "),
    ("name", "muon(beta3=1)", r"optimizer\.name is 'muon\(beta3=1\)', which cannot be made \(TypeError: .*'beta3'"),
    ("name", "nothing", r"optimizer\.name is '.*nothing', which returns a NoneType: return an optax\.Gradient"),
    (
        "name",
        "demanding",
        r"optimizer\.name: demanding\(learning_rate, momentum\) cannot be called \(missing .*'momentum'",
    ),
    ("name", "math:pi", r"'math:pi' is a float: name a callable"),
]


@pytest.mark.parametrize(("field", "text", "message"), ERRORS)
def test_an_ingredient_that_cannot_be_used_is_refused(field: str, text: str, message: str):
    text = f"{__name__}:{text}" if text in globals() else text
    with pytest.raises(IngredientError, match=message) as raised:
        make_optimizer(config(**{field: text}), PLAIN, STEPS_PER_EPOCH, "")
    assert str(raised.value).endswith(".")
    assert "\n" not in str(raised.value)


def widening(learning_rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.stateless(
        lambda updates, params: jax.tree.map(lambda x: x[None] * jnp.ones((2, 1)), {"a": updates["a"]})
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [("optax:lbfgs", "whose updates cannot be computed"), (f"{__name__}:widening", "change shapes or types")],
)
def test_an_optimizer_that_needs_more_than_gradients_is_refused(text: str, message: str):
    transform = made(text)
    with pytest.raises(IngredientError, match=f"optimizer.name is '{text}', .*{message}"):
        require_usable(transform, {"a": jnp.ones(3)}, text)


def test_settings_of_other_ingredients_are_not_passed_to_an_optimizer():
    """RMSProp has a parameter decay, which is not the factor of the schedule."""
    found = five_steps(made("optax:rmsprop", weight_decay=0.0))
    assert_trees_close(found, five_steps(optax.rmsprop(RATE)), 1e-6)


@pytest.mark.parametrize(("schedule", "same"), [("step_decay", True), ("constant", True), ("cosine", False)])
def test_rates_of_a_longer_run_differ_if_the_schedule_depends_on_its_length(schedule: str, same: bool) -> None:
    short, long = (OptimizerConfig(schedule=schedule, epochs=epochs, warmup_steps=3) for epochs in (12, 20))
    assert same_rates(short, long, 7) is same
