"""Reading and writing of PyTorch weight files; reading executes no code from the file."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from psla_jax.pretraining.state_dict import PretrainingError
from psla_jax.runtime.download import sha256_of
from psla_jax.runtime.files import atomic_path

PICKLE = b"\x80"
"""First byte of a pickle, and of files written by PyTorch before 1.6; later files are zip archives."""
WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys of the weights in training checkpoints that contain other objects too."""


@dataclass(frozen=True)
class WeightFile:
    """Path, contents (arrays by their name in the file) and SHA-256 of a weight file."""

    path: Path
    arrays: Mapping[str, np.ndarray]
    sha256: str


def read(path: Path) -> WeightFile:
    """Reads a ``.pth`` file without executing code from it.

    Raises:
        PretrainingError: the file is missing, damaged or not a weight file, or PyTorch is not installed.
    """
    if not path.is_file():
        raise PretrainingError(f"there is no file {path}: name a file of PyTorch weights (.pth).")
    content = _load(path)
    if not isinstance(content, Mapping):
        kind = _type_of(content)
        raise PretrainingError(f"{path} holds {kind}, not weights by name: save model.state_dict() instead.")
    if {"state", "param_groups"} <= set(content):
        raise PretrainingError(
            f"{path} holds the state of an optimizer, not weights: name the file of the model (the reference writes "
            "best_audio_model.pth beside best_optim_state.pth)."
        )
    weights = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), content)
    return WeightFile(path, _arrays(path, weights), sha256_of(path))


def _load(path: Path) -> Any:
    torch = import_torch(f"reading {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch raises various exceptions for damaged files and for other formats.
        has_objects = isinstance(error, pickle.UnpicklingError) and "nsupported" in str(error)
        raise PretrainingError(_unreadable_message(path, has_objects)) from error


def _unreadable_message(path: Path, has_objects: bool) -> str:
    """Describes a file that PyTorch cannot load, by its first bytes."""
    with open(path, "rb") as file:
        start = file.read(512)
    if has_objects and start[:1] in (b"P", PICKLE):
        return (
            f"{path} holds Python objects besides weights, and opening them could run any code, so it was not opened: "
            "if you trust the file, save model.state_dict() alone."
        )
    if not start:
        return f"{path} is empty: download it again."
    if start.lstrip()[:1] == b"<":
        return f"{path} is a web page, not weights: open the link in a browser, and save the file itself."
    if start[:2] == b"PK" or start[:1] == PICKLE:
        return f"{path} is truncated or damaged: download it again."
    return f"{path} is not a file of PyTorch weights: name a .pth file, as torch.save(model.state_dict()) writes it."


def import_torch(purpose: str) -> Any:
    """Returns the module ``torch``. Raises PretrainingError, naming the purpose, if it is not installed."""
    try:
        import torch
    except ImportError as error:
        raise PretrainingError(f"{purpose} needs PyTorch: pip install torch.") from error
    return torch


def _arrays(path: Path, weights: Mapping[Any, Any]) -> dict[str, np.ndarray]:
    others = {str(name): value for name, value in weights.items() if not hasattr(value, "detach")}
    if others or not weights:
        content = next((f"{_type_of(value)} under {name!r}" for name, value in others.items()), "nothing")
        raise PretrainingError(
            f"{path} holds {content} instead of weights: name a file that torch.save(model.state_dict()) wrote."
        )
    return {str(name): _array(path, str(name), value) for name, value in weights.items()}


def _array(path: Path, name: str, tensor: Any) -> np.ndarray:
    """Returns a tensor as an array; floating-point tensors become float32, because NumPy has no bfloat16."""
    try:
        tensor = tensor.detach().cpu()
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    except Exception as error:  # sparse or quantised tensors, or tensors without data
        raise PretrainingError(
            f"{path} holds {_type_of(tensor)} under {name!r} that is not a dense array: save weights as dense tensors."
        ) from error


def _type_of(value: Any) -> str:
    return f"a {type(value).__name__}"


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays as a PyTorch state dict, atomically.

    Raises:
        PretrainingError: PyTorch is not installed, or the file cannot be written.
    """
    torch = import_torch(f"writing {path}")
    state_dict = {name: torch.from_numpy(np.array(value, order="C")) for name, value in arrays.items()}
    try:
        with atomic_path(path) as temporary:
            torch.save(state_dict, temporary)
    except (RuntimeError, OSError) as error:  # PyTorch reports failed writes as RuntimeError.
        reason = error.strerror or str(error) if isinstance(error, OSError) else "no space, or no permission"
        raise PretrainingError(f"{path} cannot be written ({reason}): choose another path.") from error
