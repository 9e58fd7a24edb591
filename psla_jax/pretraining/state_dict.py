"""Conversion between model weights and official PyTorch state dicts.

The modules are named like their PyTorch counterparts, so that one rule maps every weight. Loading is strict.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
IGNORED = re.compile(r"(^|\.)num_batches_tracked$|^(effnet\.)?_fc\.|^fc\.|^classifier\.1\.")
"""Entries without a counterpart in any model: batch counters and ImageNet classifiers."""
PREFIX = "module."
"""Prefix that PyTorch's DataParallel adds to every name."""
WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Names that wrappers of PyTorch (DataParallel, torch.compile, FSDP, activation checkpointing) add to a module's."""
MAX_PROBLEMS = 8
"""Number of problems listed in an error message."""


class PretrainingError(ValueError):
    """Weights that cannot be used; the message names the file or the entries, and the remedy."""


@dataclass(frozen=True)
class LoadReport:
    """Outcome of loading a state dict. Entries have their official names without prefix.

    Attributes:
        loaded: entries loaded into the model, one for each of its leaves.
        ignored: entries without a counterpart in any model.
        missing: leaves of the model without an entry; always empty because loading is strict.
        reshaped: entries of `loaded` whose axes were permuted.
    """

    loaded: tuple[str, ...]
    ignored: tuple[str, ...]
    missing: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Returns the report as lines for the screen."""
        counters = [name for name in self.ignored if name.endswith("num_batches_tracked")]
        others = [name for name in self.ignored if name not in counters]
        ignored = [f"{len(counters)} batch counters"] * bool(counters) + others
        return [
            f"loaded    {len(self.loaded)} arrays, one for each leaf of the model",
            f"reshaped  {len(self.reshaped)} of them (PyTorch kernels have the output channels first)",
            f"ignored   {', '.join(ignored) or 'none'}",
            f"missing   {', '.join(self.missing) or 'none'}",
        ]


def without_wrappers(name: str) -> str:
    """Returns the name of an entry without the names of wrappers, at the beginning or around a part of the model."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def official_names(model: nnx.Module) -> dict[str, nnx.Variable]:
    """Returns the parameters and batch statistics of a model by their names in the official state dict."""
    return {_official_name(path): v for path, v in nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat)))}


def _official_name(path: tuple[Any, ...]) -> str:
    *modules, leaf = (str(part) for part in path)
    if modules[:1] == ["classifier"]:  # The linear head is part of the backbone in the official model.
        modules.insert(0, "model")
    return ".".join([*modules, LEAVES.get(leaf, leaf)])


def _to_torch(value: np.ndarray) -> np.ndarray:
    """Permutes a kernel from (height, width, in, out) to (out, in, height, width), or from (in, out) to (out, in)."""
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T


def _from_torch(value: np.ndarray) -> np.ndarray:
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T


def load_state_dict(model: nnx.Module, state_dict: Mapping[str, np.ndarray]) -> LoadReport:
    """Sets all parameters and batch statistics of `model` from official weights, in place.

    If the weights do not fit, the model is left unchanged.

    Args:
        model: a model from ``build_model``, or its backbone.
        state_dict: arrays by official name, with or without the names of wrappers (:data:`WRAPPERS`).

    Raises:
        PretrainingError: an entry is missing, duplicated, not part of the model, of another shape, or not finite.
    """
    arrays = {without_wrappers(name): np.asarray(value) for name, value in state_dict.items()}
    counts = Counter(map(without_wrappers, state_dict))
    variables = official_names(model)
    ignored = tuple(name for name in arrays if IGNORED.search(name))
    values = {name: _from_torch(value) for name, value in arrays.items() if name not in ignored}
    common = [name for name in values if name in variables]
    problems = [f"duplicate: {name}" for name in arrays if counts[name] > 1]
    problems += [f"missing: {name}" for name in variables if name not in values]
    problems += [f"not part of the model: {name}" for name in values if name not in variables]
    problems += [
        f"{name} has shape {arrays[name].shape} instead of {_to_torch(np.empty(variables[name].shape)).shape}"
        for name in common
        if values[name].shape != variables[name].shape
    ]
    problems += [
        f"{name} holds {arrays[name].dtype} instead of floating-point numbers"
        for name in common
        if not np.issubdtype(arrays[name].dtype, np.floating)
    ]
    problems += [f"{name} is not finite" for name in common if not np.isfinite(values[name]).all()]
    if problems:
        more = f"; and {len(problems) - MAX_PROBLEMS} more" if len(problems) > MAX_PROBLEMS else ""
        raise PretrainingError(
            f"the weights do not fit the model ({'; '.join(problems[:MAX_PROBLEMS])}{more}): use weights of this "
            "architecture."
        )
    for name, variable in variables.items():
        variable.set_value(jnp.asarray(values[name], jnp.float32))
    return LoadReport(tuple(values), ignored, reshaped=tuple(name for name in values if values[name].ndim > 1))


def to_state_dict(model: nnx.Module) -> dict[str, np.ndarray]:
    """Returns the weights of a model by official name, in PyTorch's layout."""
    return {name: _to_torch(np.asarray(variable[...])) for name, variable in official_names(model).items()}
