"""What is left of long recordings, against the maximum taken at once."""

from __future__ import annotations

import numpy as np
import pytest

from psla_jax.tagging.strip import Strip


@pytest.mark.parametrize(("rows", "each"), [(1, 1), (15, 1), (16, 2), (31, 2), (32, 4), (1000, 64)])
def test_columns_are_the_highest_of_as_many_rows_however_they_come(rows: int, each: int) -> None:
    rng = np.random.default_rng(rows)
    values = rng.normal(size=(rows, 3)).astype(np.float32)
    strip, start = Strip(columns=16), 0
    while start < rows:
        size = int(rng.integers(0, 40))
        strip.push(values[start : start + size])
        start += size
    expected = np.stack([values[i : i + each].max(axis=0) for i in range(0, rows, each)])
    np.testing.assert_array_equal(strip.finish(), expected)
    assert strip.each == each
    assert len(expected) <= 16


def test_nothing_but_the_columns_is_kept() -> None:
    strip = Strip(columns=64)
    for _ in range(500):
        strip.push(np.ones((1000, 4), np.float32))
    held = [array for array in [*strip._kept, strip._rest] if array is not None]
    assert sum(array.size if array.base is None else array.base.size for array in held) < 4 * 64 * 1000
    assert strip.finish().shape == (-(-500_000 // strip.each), 4)
    assert strip.each == 8192


def test_values_may_have_no_columns() -> None:
    strip = Strip(columns=4)
    strip.push(np.zeros((9, 0), np.float32))
    assert strip.finish().size == 0
