"""Files of PyTorch weights, read without running any code in them, and written."""

from __future__ import annotations

import contextlib
import os
import pickle
import uuid
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from psla_jax.download import sha256_of
from psla_jax.pretraining.names import PretrainingError

PICKLE = b"\x80"
"""How a pickle starts, and with it files of PyTorch before 1.6; later ones are zip archives."""
WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Under what name training scripts keep the weights beside other things."""


@dataclass(frozen=True)
class WeightFile:
    """The arrays of a file by name, as they are there, and what identifies the file."""

    path: Path
    arrays: Mapping[str, np.ndarray]
    sha256: str


def read(path: Path) -> WeightFile:
    """Reads a ``.pth`` file. No code in the file is run.

    Raises:
        PretrainingError: the file is missing, damaged or holds something else, or PyTorch is not installed.
    """
    if not path.is_file():
        raise PretrainingError(f"there is no file {path}: name a file of PyTorch weights (.pth).")
    loaded = _load(path)
    if not isinstance(loaded, Mapping):
        raise PretrainingError(f"{path} holds {_kind(loaded)}, not weights by name: save model.state_dict() instead.")
    if {"state", "param_groups"} <= set(loaded):
        raise PretrainingError(
            f"{path} holds the state of an optimizer, not weights: name the file of the model (beside "
            "best_optim_state.pth the reference writes best_audio_model.pth)."
        )
    wrapped = next((loaded[key] for key in WRAPPERS if isinstance(loaded.get(key), Mapping)), loaded)
    return WeightFile(path, _arrays(path, wrapped), sha256_of(path))


def _load(path: Path) -> Any:
    torch = _torch(f"reading {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for files that are cut short or not its own.
        unsafe = isinstance(error, pickle.UnpicklingError) and "nsupported" in str(error)
        unsafe = unsafe and _start(path)[:1] in (b"P", PICKLE)
        raise PretrainingError(_holds_objects(path) if unsafe else _not_weights(path)) from error


def _start(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(512)


def _holds_objects(path: Path) -> str:
    return (
        f"{path} holds Python objects beside weights, and opening them could run any code, so it was not opened: save "
        "model.state_dict() alone, where you trust the file."
    )


def _not_weights(path: Path) -> str:
    """Says what a file that PyTorch cannot read looks like."""
    start = _start(path)
    if not start:
        return f"{path} is empty: download it again."
    if start.lstrip()[:1] == b"<":
        return f"{path} is a web page, not weights: open the link in a browser, and save the file itself."
    if start[:2] == b"PK" or start[:1] == PICKLE:
        return f"{path} is cut short or damaged: download it again."
    return f"{path} is not a file of PyTorch weights: name a .pth file, as torch.save(model.state_dict()) writes it."


def _torch(purpose: str) -> Any:
    try:
        import torch
    except ImportError as error:
        raise PretrainingError(f"{purpose} needs PyTorch: pip install torch.") from error
    return torch


def _arrays(path: Path, loaded: Mapping[Any, Any]) -> dict[str, np.ndarray]:
    strangers = [str(name) for name, value in loaded.items() if not hasattr(value, "detach")]
    if strangers or not loaded:
        found = f"{_kind(loaded[strangers[0]])} under {strangers[0]!r}" if strangers and strangers[0] in loaded else ""
        raise PretrainingError(
            f"{path} holds {found or 'nothing'} instead of weights: name a file that torch.save(model.state_dict()) "
            "wrote."
        )
    return {str(name): _array(path, str(name), value) for name, value in loaded.items()}


def _array(path: Path, name: str, tensor: Any) -> np.ndarray:
    """A tensor as an array; NumPy has no bfloat16, and weights are float32 here."""
    try:
        tensor = tensor.detach().cpu()
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    except Exception as error:  # sparse, quantised or without values
        raise PretrainingError(
            f"{path} holds {_kind(tensor)} under {name!r} that is no plain array: save weights as dense tensors."
        ) from error


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "no room, or no permission"


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays as a PyTorch state dict; the file appears whole or not at all.

    Raises:
        PretrainingError: PyTorch is not installed, or the file cannot be written.
    """
    torch = _torch(f"writing {path}")
    state_dict = {name: torch.from_numpy(np.array(value, order="C")) for name, value in arrays.items()}
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        torch.save(state_dict, aside)
        os.replace(aside, path)
    except (RuntimeError, OSError) as error:  # torch's own writer knows no OSError
        raise PretrainingError(f"{path} cannot be written ({_reason(error)}): name another place.") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            aside.unlink()
