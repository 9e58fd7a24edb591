"""Downsampling over time against the maxima of the whole sequence."""

from __future__ import annotations

import numpy as np
import pytest

from psla_jax.tagging.plot.heatmap import MaxDownsampler


@pytest.mark.parametrize(("rows", "group_size"), [(1, 1), (15, 1), (16, 2), (31, 2), (32, 4), (1000, 64)])
def test_columns_are_maxima_of_groups_of_rows(rows: int, group_size: int) -> None:
    rng = np.random.default_rng(rows)
    values = rng.normal(size=(rows, 3)).astype(np.float32)
    downsampler, start = MaxDownsampler(columns=16), 0
    while start < rows:
        size = int(rng.integers(0, 40))
        downsampler.push(values[start : start + size])
        start += size
    expected = np.stack([values[i : i + group_size].max(axis=0) for i in range(0, rows, group_size)])
    np.testing.assert_array_equal(downsampler.finish(), expected)
    assert downsampler.group_size == group_size
    assert len(expected) <= 16


def test_memory_is_constant() -> None:
    downsampler = MaxDownsampler(columns=64)
    for _ in range(500):
        downsampler.push(np.ones((1000, 4), np.float32))
    arrays = [array for array in [*downsampler._blocks, downsampler._remainder] if array is not None]
    assert sum(array.size if array.base is None else array.base.size for array in arrays) < 4 * 64 * 1000
    assert downsampler.finish().shape == (-(-500_000 // downsampler.group_size), 4)
    assert downsampler.group_size == 8192


def test_values_may_have_no_columns() -> None:
    downsampler = MaxDownsampler(columns=4)
    downsampler.push(np.zeros((9, 0), np.float32))
    assert downsampler.finish().size == 0
