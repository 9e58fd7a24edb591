"""Conversion between models and official state dicts: names, shapes, values and errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flax import nnx
from torch_reference import ReferenceTagger, make_reference, to_numpy

from psla_jax.models.factory import build_model
from psla_jax.pretraining.state_dict import PretrainingError, load_state_dict, to_state_dict

CLASSES = 3
COUNTER = "num_batches_tracked"
StateDict = dict[str, np.ndarray]


def build(heads: int, num_classes: int = CLASSES) -> nnx.Module:
    pooling = "attention" if heads else "mean"
    return build_model(
        "efficientnet-b0", num_classes=num_classes, pooling=pooling, heads=max(heads, 1), rngs=nnx.Rngs(0)
    )


@pytest.fixture(scope="module")
def official() -> StateDict:
    """Returns the state dict of a B0 with four heads in which all arrays differ."""
    return to_numpy(make_reference(num_classes=CLASSES, heads=4).state_dict())


@pytest.fixture(scope="module")
def model() -> nnx.Module:
    """Returns a model of the same architecture; every test that reads its weights sets them first."""
    return build(heads=4)


def without_counters(state_dict: StateDict) -> StateDict:
    return {name: value for name, value in state_dict.items() if not name.endswith(COUNTER)}


def assert_same(actual: StateDict, expected: StateDict) -> None:
    assert set(actual) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


@pytest.mark.parametrize("heads", [0, 1, 2, 4])
def test_every_name_and_shape_is_that_of_the_reference(heads: int) -> None:
    state_dict = to_state_dict(build(heads))
    with torch.device("meta"):
        official = ReferenceTagger(0, CLASSES, heads).state_dict()
    expected = {name: tuple(tensor.shape) for name, tensor in official.items() if not name.endswith(COUNTER)}
    assert {name: value.shape for name, value in state_dict.items()} == expected
    assert all(value.dtype == np.float32 for value in state_dict.values())


@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "module.module.", "module._orig_mod.", "_orig_mod.module."]
)
def test_loading_and_exporting_preserves_the_weights(official: StateDict, model: nnx.Module, prefix: str) -> None:
    zeros = {name: np.zeros_like(value) for name, value in official.items()}
    load_state_dict(model, zeros)
    report = load_state_dict(model, {prefix + name: value for name, value in official.items()})
    assert_same(to_state_dict(model), without_counters(official))
    assert {name.removeprefix(prefix) for name in report.loaded} == set(without_counters(official))
    assert {name.removeprefix(prefix) for name in report.ignored} == {n for n in official if n.endswith(COUNTER)}


def test_wrappers_of_parts_of_the_model_are_left_out(official: StateDict, model: nnx.Module) -> None:
    wrapped = {name.replace("effnet.", "effnet._orig_mod.", 1): value for name, value in official.items()}
    load_state_dict(model, {name: np.zeros_like(value) for name, value in official.items()})
    load_state_dict(model, wrapped)
    assert_same(to_state_dict(model), without_counters(official))


def test_exported_weights_can_be_loaded_by_pytorch() -> None:
    exported = to_state_dict(build(heads=4))
    reference = ReferenceTagger(0, CLASSES, 4)
    result = reference.load_state_dict({k: torch.tensor(value) for k, value in exported.items()}, strict=False)
    assert not result.unexpected_keys
    assert all(name.endswith(COUNTER) for name in result.missing_keys)
    assert_same(without_counters(to_numpy(reference.state_dict())), exported)


def test_an_imagenet_classifier_is_ignored(official: StateDict, model: nnx.Module) -> None:
    classifier = {"effnet._fc.weight": np.zeros((1000, 1280)), "effnet._fc.bias": np.zeros(1000)}
    report = load_state_dict(model, official | classifier)
    assert set(classifier) <= set(report.ignored)
    assert not set(classifier) & set(report.loaded)


def test_half_precision_and_tensors_are_read_as_float32(official: StateDict, model: nnx.Module) -> None:
    load_state_dict(model, {name: torch.from_numpy(np.asarray(value)).half() for name, value in official.items()})
    expected = {name: value.astype(np.float16).astype(np.float32) for name, value in without_counters(official).items()}
    assert_same(to_state_dict(model), expected)


def test_all_problems_are_reported_together_and_nothing_is_loaded(official: StateDict, model: nnx.Module) -> None:
    load_state_dict(model, official)
    wrong = {name: value + 1 for name, value in official.items()}
    del wrong["effnet._blocks.3._bn1.running_mean"], wrong["attention.head_weight"]
    wrong["effnet._blocks.99._bn1.weight"] = np.zeros(7)
    wrong["effnet._conv_stem.weight"] = np.zeros((32, 3, 3, 3))
    wrong["attention.att.0.bias"] = np.zeros(527)
    with pytest.raises(PretrainingError) as caught:
        load_state_dict(model, wrong)
    message = str(caught.value)
    for name in ("effnet._blocks.3._bn1.running_mean", "attention.head_weight", "effnet._blocks.99._bn1.weight"):
        assert name in message
    assert "effnet._conv_stem.weight" in message
    assert "(32, 3, 3, 3)" in message
    assert "(32, 1, 3, 3)" in message
    assert "attention.att.0.bias" in message
    assert "(527,)" in message
    assert "(3,)" in message
    assert "_bn2.weight" not in message
    assert COUNTER not in message
    assert_same(to_state_dict(model), without_counters(official))


def test_every_missing_weight_is_detected(official: StateDict, model: nnx.Module) -> None:
    names = list(without_counters(official))
    for name in [*names[:3], *names[len(names) // 2 :: 40], names[-1]]:
        with pytest.raises(PretrainingError, match=name.replace(".", r"\.")):
            load_state_dict(model, {other: value for other, value in official.items() if other != name})


@pytest.mark.parametrize("heads", [0, 1, 3])
def test_weights_of_another_pooling_do_not_fit(official: StateDict, heads: int) -> None:
    with pytest.raises(PretrainingError, match=r"attention\."):
        load_state_dict(build(heads), official)


def test_a_duplicate_weight_is_rejected(official: StateDict, model: nnx.Module) -> None:
    duplicate = official | {"module.effnet._bn0.bias": official["effnet._bn0.bias"] + 1}
    with pytest.raises(PretrainingError, match=r"effnet\._bn0\.bias"):
        load_state_dict(model, duplicate)
