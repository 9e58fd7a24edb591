"""Output frames of other strides on the grid of the timeline."""

from __future__ import annotations

import types

import jax.numpy as jnp
import numpy as np
import pytest

from psla_jax.models.protocols import Parts
from psla_jax.tagging.frame_grid import is_on_grid, overlaps, to_grid


def parts(stride: float, offset: float = 0) -> Parts:
    return Parts(types.SimpleNamespace(stride=stride, offset=offset), None)


def test_frames_of_the_own_backbones_stay_as_they_are() -> None:
    assert is_on_grid(Parts(object(), None))
    assert is_on_grid(parts(32))
    assert not is_on_grid(parts(16))
    assert not is_on_grid(parts(32, 15.5))


@pytest.mark.parametrize(("stride", "offset"), [(1, 0), (8, 3.5), (16, 0), (32, 15.5)])
def test_a_frame_of_the_timeline_is_the_mean_of_the_frames_around_its_centre(stride: float, offset: float) -> None:
    inputs = int(320 / stride)
    centres = offset + stride * np.arange(inputs)
    values = jnp.asarray(np.stack([centres, np.ones(inputs)], axis=1)[None], jnp.float32)
    means = np.asarray(to_grid(values, jnp.ones((1, inputs)), overlaps(parts(stride, offset), inputs, 10)))[0]
    np.testing.assert_allclose(means[:, 1], 1, atol=1e-6)
    # A linear function keeps its value at the centre; the first frame has only its second half.
    np.testing.assert_allclose(means[1:-1, 0], 32 * np.arange(1, 9), atol=0.01)


def test_coarse_frames_are_repeated_and_silent_ones_do_not_count() -> None:
    shared = overlaps(parts(64, 31.5), 2, 4)
    values = jnp.asarray([[[1.0], [3.0]]])
    np.testing.assert_allclose(to_grid(values, jnp.ones((1, 2)), shared)[0, :, 0], [1, 1, 2, 3], atol=0.05)
    np.testing.assert_allclose(to_grid(values, jnp.asarray([[1.0, 0.0]]), shared)[0, :, 0], [1, 1, 1, 0], atol=0.05)
    np.testing.assert_array_equal(overlaps(parts(4, 100), 3, 2).argmax(axis=1), [0, 0])
