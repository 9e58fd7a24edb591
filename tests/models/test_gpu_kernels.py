"""The depthwise convolution of GPUs against automatic differentiation of the plain one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import assert_trees_close

from psla_jax.models.gpu_kernels import depthwise_conv, plain_depthwise_conv
from psla_jax.models.padding import Pads, static_padding, symmetric_padding

CASES = [
    (size, stride, padding, height, width)
    for size in (3, 5)
    for stride, padding in (
        (1, symmetric_padding(size)),
        (2, symmetric_padding(size)),
        (2, static_padding(size, 2, 260)),
    )
    for height, width in ((4, 33), (7, 1), (16, 15))
]
"""Kernel, stride, padding, height, width: images smaller and larger than the kernel, of even and odd size."""


def values_and_gradients(function, size: int, stride: int, padding: Pads, height: int, width: int) -> list[jax.Array]:
    """Returns the output and its gradients for the input and the kernel."""
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.standard_normal(shape)) for shape in ((2, height, width, 3), (size, size, 1, 3)))
    y, pull_back = jax.vjp(lambda x, kernel: function(x, kernel, stride, padding), x, kernel)
    return [y, *pull_back(jnp.sin(y))]


@pytest.mark.parametrize(("size", "stride", "padding", "height", "width"), CASES)
def test_gradients_are_those_of_autodiff_in_float64(
    size: int, stride: int, padding: Pads, height: int, width: int
) -> None:
    with jax.enable_x64(True):
        ours = values_and_gradients(depthwise_conv, size, stride, padding, height, width)
        plain = values_and_gradients(plain_depthwise_conv, size, stride, padding, height, width)
        assert_trees_close(ours, plain, 1e-12)


@pytest.mark.parametrize(("size", "stride", "padding", "height", "width"), CASES)
def test_the_kernel_is_smaller_than_the_image_that_its_gradient_reads(
    size: int, stride: int, padding: Pads, height: int, width: int
) -> None:
    """Otherwise XLA calls cuDNN for a forward convolution whose kernel is the image."""
    x, kernel = jnp.zeros((2, height, width, 3)), jnp.zeros((size, size, 1, 3))
    gradient = jax.grad(lambda kernel: depthwise_conv(x, kernel, stride, padding).sum())
    convolutions = [e for e in jax.make_jaxpr(gradient)(kernel).eqns if e.primitive.name == "conv_general_dilated"]
    numbers = convolutions[-1].params["dimension_numbers"]
    image = [convolutions[-1].invars[1].aval.shape[axis] for axis in numbers.rhs_spec[2:]]
    assert min(image) > size
