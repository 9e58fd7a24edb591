"""Weights under the official PyTorch names, into a model and back out.

The modules carry the names of their PyTorch counterparts, so one rule maps every weight; loading is strict.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from psla_jax.cache import cache_directory
from psla_jax.config import PretrainingConfig

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
IGNORED = re.compile(r"num_batches_tracked$|^(effnet\.)?_fc\.")
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


def _official_name(path: tuple[Any, ...]) -> str:
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
    plain = [name.removeprefix("module.") for name in state_dict]
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
    if problems:
        raise PretrainingError("the weights do not fit the model: " + "; ".join(problems) + ".")
    for name, variable in wanted.items():
        variable[...] = jnp.asarray(values[name], jnp.float32)
    return LoadReport(tuple(values), ignored)


def to_state_dict(model: nnx.Module) -> dict[str, np.ndarray]:
    """The model's weights under their official names, as PyTorch lays them out."""
    return {name: _to_torch(np.asarray(variable[...])) for name, variable in official_names(model).items()}


IMAGENET_URL = "https://github.com/lukemelas/EfficientNet-PyTorch/releases/download/1.0/"
IMAGENET_FILES = {
    f"efficientnet-b{i}": f"efficientnet-b{i}-{digest}.pth"
    for i, digest in enumerate(
        ("355c32eb", "f1951068", "8bb594d6", "5fb5a3c3", "6ed6700e", "b6417697", "c76e70fd", "dcc49843")
    )
}
"""The files of efficientnet_pytorch; each name ends with the first eight digits of the content's SHA-256."""


def start_from(model: nnx.Module, name: str, config: PretrainingConfig) -> str:
    """Fills the backbone of `model` with ImageNet weights, in place; the head stays as it is.

    Args:
        model: a fresh ``AudioTagger``.
        name: its architecture, as in ``build_model``.
        config: where the weights come from.

    Returns:
        What was loaded, for the log.

    Raises:
        PretrainingError: the weights are not there, cannot be read, or are of another architecture.
    """
    backbone = getattr(model, "effnet", None)
    if backbone is None:
        raise PretrainingError(
            f"pretraining.source is {config.source!r}, but {name} has no such weights: leave it out."
        )
    path = imagenet_file(name) if config.source == "imagenet" else Path(config.source)
    weights = read_state_dict(path)
    stem = weights.get("_conv_stem.weight")
    if stem is None or stem.ndim != 4:
        raise PretrainingError(f"{path} does not hold ImageNet weights of efficientnet_pytorch: name such a file.")
    own = to_state_dict(backbone)["_conv_stem.weight"]
    # Summed over the colours, a grey image gives what it gave before; the reference draws the stem anew.
    weights["_conv_stem.weight"] = stem.sum(axis=1, keepdims=True) if config.stem == "sum" else own
    try:
        report = load_state_dict(backbone, weights)
    except PretrainingError as error:
        raise PretrainingError(f"{path} is not for {name}: {error}") from error
    counts = f"{len(report.loaded)} arrays loaded, {len(report.ignored)} ignored"
    return f"backbone from {path}: {counts}, stem {config.stem}"


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a ``.pth`` file by name. No code in the file is run.

    Raises:
        PretrainingError: the file is missing or holds something else, or PyTorch is not installed.
    """
    if not path.is_file():
        raise PretrainingError(f"there is no file {path}: name the weights with --pretraining.source PATH.")
    try:
        import torch
    except ImportError as error:
        raise PretrainingError(f"reading {path} needs PyTorch: pip install 'psla_jax[convert]'.") from error
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        return {str(name): value.numpy() for name, value in loaded.items()}
    except Exception as error:  # torch raises many kinds for files that are not its own.
        raise PretrainingError(f"{path} cannot be read as a file of weights: {type(error).__name__}.") from error


def imagenet_file(name: str) -> Path:
    """The ImageNet weights of an EfficientNet, downloaded into the cache if they are not there, and verified.

    Raises:
        PretrainingError: there are none for `name`, the download fails, or the content is not what its name says.
    """
    if name not in IMAGENET_FILES:
        raise PretrainingError(f"{name!r} has no ImageNet weights: choose one of {', '.join(IMAGENET_FILES)}.")
    path = cache_directory() / "imagenet" / IMAGENET_FILES[name]
    if not path.is_file():
        _download(IMAGENET_URL + path.name, path)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(path.stem.rsplit("-", 1)[1]):
        raise PretrainingError(f"{path} is damaged (its SHA-256 is {digest[:8]}...): delete it and start again.")
    return path


def _download(url: str, path: Path) -> None:
    import pooch

    try:
        pooch.retrieve(url, known_hash=None, fname=path.name, path=path.parent)
    except Exception as error:  # Every kind of network failure means the same here.
        raise PretrainingError(
            f"{url} cannot be downloaded ({type(error).__name__}): put the file at {path}, or train from random "
            "weights with --pretraining.source ''."
        ) from error
