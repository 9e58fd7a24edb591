"""The map between a model's weights and their official PyTorch names.

The modules carry the names of their PyTorch counterparts, so one rule maps every weight; loading is strict.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
IGNORED = re.compile(r"(^|\.)num_batches_tracked$|^(effnet\.)?_fc\.|^fc\.|^classifier\.1\.")
"""Entries that no model here has a place for: counters, and ImageNet's classifiers."""
PREFIX = "module."
"""What DataParallel writes in front of every name."""
SHOWN = 8
"""Entries named in an error; the rest are counted."""


class PretrainingError(ValueError):
    """Weights that cannot be used; the message names the file or the entries, and the remedy."""


@dataclass(frozen=True)
class LoadReport:
    """What became of the entries of a state dict, by their official names without prefix.

    Attributes:
        loaded: those that fill the model, each of them exactly once.
        ignored: those that no model has a place for.
        missing: leaves of the model that were not given; empty, as loading is strict.
        reshaped: those of `loaded` whose axes were brought into the order of this package.
    """

    loaded: tuple[str, ...]
    ignored: tuple[str, ...]
    missing: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The report for people."""
        counters = [name for name in self.ignored if name.endswith("num_batches_tracked")]
        others = [name for name in self.ignored if name not in counters]
        ignored = [f"{len(counters)} counters of batches"] * bool(counters) + others
        return [
            f"loaded    {len(self.loaded)} arrays, every leaf of the model once",
            f"reshaped  {len(self.reshaped)} of them (kernels: PyTorch has the output channels first)",
            f"ignored   {', '.join(ignored) or 'none'}",
            f"missing   {', '.join(self.missing) or 'none'}",
        ]


def official_names(model: nnx.Module) -> dict[str, nnx.Variable]:
    """The model's parameters and batch statistics, each under its name in the official state dict."""
    variables = nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat)))
    return {_official_name(path): variable for path, variable in variables}


def _official_name(path: tuple[Any, ...]) -> str:
    *modules, leaf = (str(part) for part in path)
    if modules[:1] == ["classifier"]:  # The linear head sits inside the backbone there.
        modules.insert(0, "model")
    return ".".join([*modules, LEAVES.get(leaf, leaf)])


def _to_torch(value: np.ndarray) -> np.ndarray:
    """Kernels from (height, width, in, out) to (out, in, height, width), or from (in, out) to (out, in)."""
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T


def _from_torch(value: np.ndarray) -> np.ndarray:
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T


def load_state_dict(model: nnx.Module, state_dict: Mapping[str, np.ndarray]) -> LoadReport:
    """Fills every parameter and statistic of `model` from official weights, in place; all or nothing.

    Args:
        model: as from ``build_model``, or its backbone.
        state_dict: arrays under official names, with or without the ``module.`` of DataParallel.

    Raises:
        PretrainingError: if an entry is missing, given twice, has no place in the model, or has another shape.
    """
    given = {name.removeprefix(PREFIX): np.asarray(value) for name, value in state_dict.items()}
    plain = [name.removeprefix(PREFIX) for name in state_dict]
    wanted = official_names(model)
    ignored = tuple(name for name in given if IGNORED.search(name))
    values = {name: _from_torch(value) for name, value in given.items() if name not in ignored}
    problems = [f"given twice: {name}" for name in given if plain.count(name) > 1]
    problems += [f"missing: {name}" for name in wanted if name not in values]
    problems += [f"has no place in the model: {name}" for name in values if name not in wanted]
    problems += [
        f"{name} has shape {given[name].shape}, the model wants {_to_torch(np.empty(wanted[name].shape)).shape}"
        for name in values
        if name in wanted and values[name].shape != wanted[name].shape
    ]
    problems += [
        f"{name} holds {given[name].dtype} instead of floating-point numbers"
        for name in values
        if name in wanted and not np.issubdtype(given[name].dtype, np.floating)
    ]
    problems += [f"{name} is not finite" for name in values if name in wanted and not np.isfinite(values[name]).all()]
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise PretrainingError(
            f"the weights do not fit the model ({'; '.join(problems[:SHOWN])}{more}): use weights of this architecture."
        )
    for name, variable in wanted.items():
        variable.set_value(jnp.asarray(values[name], jnp.float32))
    reshaped = tuple(name for name in values if values[name].ndim > 1)
    return LoadReport(tuple(values), ignored, reshaped=reshaped)


def to_state_dict(model: nnx.Module) -> dict[str, np.ndarray]:
    """The model's weights under their official names, as PyTorch lays them out."""
    return {name: _to_torch(np.asarray(variable[...])) for name, variable in official_names(model).items()}
