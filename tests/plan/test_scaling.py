"""The model of scaling, against times by hand."""

from __future__ import annotations

import pytest

from psla_jax.plan.scaling import ETHERNET, LATENCY, scale
from psla_jax.plan.summary import Collective

GRADIENTS = Collective(4, 54_800_000)


@pytest.mark.parametrize(
    ("devices", "machines"), [(1, 1), (4, 1), (8, 1), (16, 2), (20, 3), (64, 8)]
)  # fmt: skip
def test_devices_add_in_machines_and_machines_exchange_the_sums(devices, machines):
    own = min(devices, 8)
    inside = 4 * 15e-6 + 2 * (own - 1) / own * 54.8e6 / 450e9 if own > 1 else 0
    between = 4 * 40e-6 + 2 * (machines - 1) / machines * 54.8e6 / 12.5e9 if machines > 1 else 0
    estimate = scale(devices, 0.01, GRADIENTS, 450e9)
    assert (LATENCY, ETHERNET.latency, ETHERNET.bandwidth) == (15e-6, 40e-6, 12.5e9)
    assert estimate.communication == pytest.approx(inside + between)
    assert estimate.seconds == pytest.approx(0.01 + inside + between)
    assert estimate.efficiency == pytest.approx(0.01 / (0.01 + inside + between))
