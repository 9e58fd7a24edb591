"""Files of weights by official name: PyTorch's, and safetensors with the description of a model in their metadata.

Reading needs no PyTorch and executes no code from a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from safetensors import safe_open

from psla_jax.models.model_dir import ModelCard, first_line
from psla_jax.pretraining import torch_pickle
from psla_jax.pretraining.state_dict import PretrainingError
from psla_jax.runtime.download import sha256_of
from psla_jax.runtime.files import atomic_path

PICKLE = b"\x80"
"""First byte of a pickle, and of files written by PyTorch before 1.6; later files are zip archives."""
SAFETENSORS = ".safetensors"
"""Suffix of files in that format; all others are PyTorch's."""
CARD = "psla_jax"
"""Key of the description of a model in the metadata of a safetensors file."""
WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys of the weights in training checkpoints that contain other objects too."""


@dataclass(frozen=True)
class WeightFile:
    """A weight file.

    Attributes:
        path: its path.
        arrays: arrays by their name in the file.
        sha256: its SHA-256.
        card: description of the model that it was exported from, if it has one.
    """

    path: Path
    arrays: Mapping[str, np.ndarray]
    sha256: str
    card: ModelCard | None = None


def read(path: Path) -> WeightFile:
    """Reads a ``.pth`` or ``.safetensors`` file.

    Raises:
        PretrainingError: the file is missing, damaged or not a weight file.
    """
    if not path.is_file():
        raise PretrainingError(f"there is no file {path}: name a file of weights (.pth or .safetensors).")
    return _read_safetensors(path) if path.suffix == SAFETENSORS else _read_torch(path)


def _read_safetensors(path: Path) -> WeightFile:
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: _float32(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118 - no mapping
        card = ModelCard.from_json(metadata[CARD]) if CARD in metadata else None
    except Exception as error:  # Headers of other files raise various exceptions.
        raise PretrainingError(
            f"{path} cannot be read as safetensors ({first_line(error)}): download or export it again."
        ) from error
    if not arrays:
        raise PretrainingError(f"{path} holds no arrays: name a file of weights.")
    return WeightFile(path, arrays, sha256_of(path), card)


def _read_torch(path: Path) -> WeightFile:
    content = _load(path)
    if not isinstance(content, Mapping):
        kind = "a tensor" if isinstance(content, np.ndarray | torch_pickle.NotDense) else _type_of(content)
        raise PretrainingError(f"{path} holds {kind}, not weights by name: save model.state_dict() instead.")
    if {"state", "param_groups"} <= set(content):
        raise PretrainingError(
            f"{path} holds the state of an optimizer, not weights: name the file of the model (the reference writes "
            "best_audio_model.pth beside best_optim_state.pth)."
        )
    weights = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), content)
    return WeightFile(path, _arrays(path, weights), sha256_of(path))


def _load(path: Path) -> Any:
    try:
        return torch_pickle.read(path)
    except torch_pickle.ForeignObjectError as error:
        raise PretrainingError(
            f"{path} holds Python objects besides weights, such as {error}, and opening them could run any code, so it "
            "was not opened: if you trust the file, save model.state_dict() alone."
        ) from error
    except (torch_pickle.DamagedError, OSError) as error:
        raise PretrainingError(_unreadable_message(path)) from error


def _unreadable_message(path: Path) -> str:
    """Describes a file that is not read, by its first bytes."""
    with open(path, "rb") as file:
        start = file.read(512)
    if not start:
        return f"{path} is empty: download it again."
    if start.lstrip()[:1] == b"<":
        return f"{path} is a web page, not weights: open the link in a browser, and save the file itself."
    if start[:2] == b"PK" or start[:1] == PICKLE:
        return f"{path} is truncated or damaged: download it again."
    return f"{path} is not a file of PyTorch weights: name a .pth file, as torch.save(model.state_dict()) writes it."


def version() -> str:
    """Returns the version of PyTorch; an empty string if it is not installed."""
    try:
        return import_torch("comparing scores").__version__
    except PretrainingError:
        return ""


def import_torch(purpose: str) -> Any:
    """Returns the module ``torch``. Raises PretrainingError, naming the purpose, if it is not installed."""
    try:
        import torch
    except ImportError as error:
        raise PretrainingError(f"{purpose} needs PyTorch: pip install torch.") from error
    return torch


def _arrays(path: Path, weights: Mapping[Any, Any]) -> dict[str, np.ndarray]:
    others = {str(name): value for name, value in weights.items() if not isinstance(value, np.ndarray)}
    for name, value in others.items():
        if isinstance(value, torch_pickle.NotDense):
            raise PretrainingError(
                f"{path} holds {value.kind} under {name!r} that is not a dense array: save weights as dense tensors."
            )
    if others or not weights:
        content = next((f"{_type_of(value)} under {name!r}" for name, value in others.items()), "nothing")
        raise PretrainingError(
            f"{path} holds {content} instead of weights: name a file that torch.save(model.state_dict()) wrote."
        )
    return {str(name): _float32(value) for name, value in weights.items()}


def _float32(array: np.ndarray) -> np.ndarray:
    """Returns floating-point values as float32, and others as they are."""
    return array.astype(np.float32) if jnp.issubdtype(array.dtype, jnp.floating) else array


def _type_of(value: Any) -> str:
    return f"a {type(value).__name__}"


def write(path: Path, arrays: Mapping[str, np.ndarray], card: ModelCard) -> None:
    """Writes arrays to a file, atomically: for ``.safetensors`` with the card, otherwise as a PyTorch state dict.

    Raises:
        PretrainingError: PyTorch is needed and not installed, or the file cannot be written.
    """
    if path.suffix == SAFETENSORS:
        ordered = {name: np.array(value, order="C") for name, value in arrays.items()}
        content = safetensors.numpy.save(ordered, {"format": "pt", CARD: card.to_json()})
        try:
            with atomic_path(path) as temporary:
                Path(temporary).write_bytes(content)
        except OSError as error:
            raise PretrainingError(f"{path} cannot be written ({error.strerror}): choose another path.") from error
        return
    torch = import_torch(f"writing {path}")
    state_dict = {name: torch.from_numpy(np.array(value, order="C")) for name, value in arrays.items()}
    try:
        with atomic_path(path) as temporary:
            torch.save(state_dict, temporary)
    except (RuntimeError, OSError) as error:  # PyTorch reports failed writes as RuntimeError.
        reason = error.strerror or str(error) if isinstance(error, OSError) else "no space, or no permission"
        raise PretrainingError(f"{path} cannot be written ({reason}): choose another path.") from error
