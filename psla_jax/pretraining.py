"""Weights under the official PyTorch names, into a model and back out.

The modules carry the names of their PyTorch counterparts, so one rule maps every weight; loading is strict.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from flax import nnx

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
IGNORED = re.compile(r"num_batches_tracked$|^effnet\._fc\.")
"""Entries of a state dict that no model here has a place for: a counter, and ImageNet's classifier."""


class PretrainingError(ValueError):
    """Weights that do not fit the model; the message lists everything that is wrong with them."""


@dataclass(frozen=True)
class LoadReport:
    """What became of a state dict's entries, by their names there."""

    loaded: tuple[str, ...]
    ignored: tuple[str, ...]


def official_names(model: nnx.Module) -> dict[str, nnx.Variable]:
    """The model's parameters and batch statistics, each under its name in the official state dict."""
    variables = nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat)))
    return {_official_name(path): variable for path, variable in variables}


def _official_name(path: tuple[str | int, ...]) -> str:
    *modules, leaf = (str(part) for part in path)
    return ".".join([*modules, LEAVES.get(leaf, leaf)])


def _to_torch(value: np.ndarray) -> np.ndarray:
    """Convolution kernels from (height, width, in, out) to (out, in, height, width)."""
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value


def _from_torch(value: np.ndarray) -> np.ndarray:
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value


def load_state_dict(model: nnx.Module, state_dict: Mapping[str, np.ndarray]) -> LoadReport:
    """Fills every parameter and statistic of `model` from official weights, in place; all or nothing.

    Args:
        model: as from ``build_model``.
        state_dict: arrays under official names, with or without the ``module.`` of DataParallel.

    Raises:
        PretrainingError: if an entry is missing, has no place in the model, or has another shape; all are listed.
    """
    given = {name.removeprefix("module."): np.asarray(value) for name, value in state_dict.items()}
    wanted = official_names(model)
    ignored = tuple(name for name in given if IGNORED.search(name))
    values = {name: _from_torch(value) for name, value in given.items() if name not in ignored}
    problems = [f"missing: {name}" for name in wanted if name not in values]
    problems += [f"has no place in the model: {name}" for name in values if name not in wanted]
    problems += [
        f"{name} has shape {given[name].shape}, the model wants {_to_torch(np.empty(wanted[name].shape)).shape}"
        for name in values
        if name in wanted and values[name].shape != wanted[name].shape
    ]
    if problems:
        raise PretrainingError("the weights do not fit the model: " + "; ".join(problems) + ".")
    for name, variable in wanted.items():
        variable[...] = jnp.asarray(values[name], jnp.float32)
    return LoadReport(tuple(values), ignored)


def to_state_dict(model: nnx.Module) -> dict[str, np.ndarray]:
    """The model's weights under their official names, as PyTorch lays them out."""
    return {name: _to_torch(np.asarray(variable[...])) for name, variable in official_names(model).items()}
