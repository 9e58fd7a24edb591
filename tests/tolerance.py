"""Comparison of floating-point arrays whose rounding differs between processors and compiled programs."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike


def assert_close(actual: ArrayLike, expected: ArrayLike, tolerance: float, message: str = "") -> None:
    """Asserts that no element differs by more than `tolerance` times the largest magnitude in `expected`.

    The order of a sum depends on the vector width of the processor. Its rounding error scales with the largest terms,
    not with the element that results, so element-wise relative tolerances fail for small elements.
    """
    expected = np.asarray(expected, np.float64)
    scale = float(np.abs(expected).max(initial=0.0))
    actual = np.asarray(actual, np.float64)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale, err_msg=message)


def assert_trees_close(actual: Any, expected: Any, tolerance: float) -> None:
    """Applies :func:`assert_close` to every pair of leaves of two trees of the same structure."""
    expected_leaves, structure = jax.tree.flatten_with_path(expected)
    leaves = structure.flatten_up_to(actual)
    for (path, expected_leaf), leaf in zip(expected_leaves, leaves, strict=True):
        assert_close(leaf, expected_leaf, tolerance, jax.tree_util.keystr(path))
