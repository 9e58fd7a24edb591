"""Conversion of official checkpoints to model directories, and export of models to PyTorch files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from psla_jax.config import FrontendConfig, ModelConfig, Padding, frontend_settings
from psla_jax.models.factory import BACKBONES, from_config
from psla_jax.models.model_dir import (
    ModelCard,
    find_model,
    load_model,
    read_card,
    require_replaceable,
    save_model,
)
from psla_jax.models.pooling import POOLINGS
from psla_jax.models.self_test import TOLERANCE, self_test_record, self_test_scores, self_test_spectrogram
from psla_jax.models.state import split_model
from psla_jax.pretraining import weight_file
from psla_jax.pretraining.infer import infer_architecture
from psla_jax.pretraining.state_dict import PREFIX, LoadReport, PretrainingError, load_state_dict, to_state_dict
from psla_jax.pretraining.torch_reference import reference_scores
from psla_jax.runtime.files import removed_on_failure
from psla_jax.vocabulary.vocabulary import Vocabulary

FRAMES = {527: 1056, 200: 3000}
"""Frames per clip in the reference's recipes, by the number of classes of AudioSet and FSD50K."""
DEFAULT_FRAMES = 1056


@dataclass(frozen=True)
class Request:
    """Input and output of a conversion; the fields are the options of ``psla convert``."""

    source: str
    model: str
    labels: str = ""
    padding: Padding = "symmetric"
    target_length: int = 0
    mean: float = -4.6476
    std: float = 4.5699
    sample_rate: int = FrontendConfig.sample_rate
    num_mels: int = FrontendConfig.num_mels
    hop: float = FrontendConfig.hop
    window: float = FrontendConfig.window
    low_hz: float = FrontendConfig.low_hz
    high_hz: float = FrontendConfig.high_hz
    licence: str = ""
    exclusive: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class Conversion:
    """Result of a conversion."""

    source: Path
    directory: Path
    card: ModelCard
    parameters: int
    report: LoadReport
    difference: float | None
    """Largest difference between the scores of the converted model and the expected ones on the test sound."""
    compared_with: str
    """The origin of those scores: PyTorch and its version, or the file; empty if there are none."""

    def lines(self) -> list[str]:
        """Returns the result as lines for the screen."""
        model, frontend = self.card.model, self.card.frontend
        heads = f"{model.heads} head{'s' * (model.heads > 1)}"
        head = heads if model.pooling == "attention" else f"{model.pooling} pooling"
        padding = f", {model.padding} padding" if model.name.startswith("efficientnet") else ""
        size = f"{len(self.card.vocabulary)} classes, {self.parameters:,} parameters"
        compared = "every weight is used once; pip install torch to compare scores with PyTorch's"
        if self.difference is not None:
            compared = f"scores of the test sound differ from {self.compared_with} by at most {self.difference:.1e}"
        return [
            f"{self.source} -> {self.directory}",
            f"model     {model.name}, {head}{padding}, {size}",
            f"frontend  {frontend.target_length} frames, mean {frontend.mean}, std {frontend.std}"
            + "".join(f", {name} {value}" for name, value in _further_settings(frontend).items()),
            *self.report.lines(),
            f"verified  {compared}",
        ]


def convert(request: Request) -> Conversion:
    """Converts a file of weights under official names to a model directory, which is written atomically.

    The scores of the converted model are compared before: with those that the file was exported with, if it states
    them, otherwise with those of PyTorch, where that is installed.

    Raises:
        PretrainingError, VocabularyError, CheckpointError: an input cannot be used, the converted model differs from
            PyTorch, or the directory exists; the message names the file and the remedy.
    """
    directory, source = Path(request.model), Path(request.source)
    require_replaceable(directory, overwrite=request.overwrite)
    file = weight_file.read(source)
    request, vocabulary = _with_card(request, file)
    try:
        inferred = infer_architecture(file.arrays, request.padding)
        if inferred.num_classes != len(vocabulary):
            raise PretrainingError(
                f"the weights have {inferred.num_classes} classes and "
                f"{request.labels or 'its metadata'} has {len(vocabulary)}: name the "
                "label CSV that they were trained with, with --labels."
            )
        model = from_config(inferred.model, inferred.num_classes, jnp.float32, nnx.Rngs(0))
        report = load_state_dict(model, file.arrays)
    except PretrainingError as error:
        raise PretrainingError(f"{source}: {error}") from error
    frames = request.target_length or FRAMES.get(inferred.num_classes, DEFAULT_FRAMES)
    names = {f.name for f in dataclasses.fields(FrontendConfig)} - {"target_length"}
    frontend = FrontendConfig(frames, **{name: getattr(request, name) for name in names})
    scores = self_test_scores(model, frontend)
    difference, compared_with, compared = None, "", {}
    if file.card is not None:
        expected = _stated_scores(file.card, source)
        difference, compared_with = _difference(scores, expected, "the exported model"), "the exported model"
    elif version := weight_file.version():
        difference = _compare_with_torch(file.arrays, inferred.model, frontend, scores)
        compared_with, compared = f"PyTorch {version}", {"pytorch": version, "largest_difference": difference}
    # The notes of an exported model have the channel that it was trained on.
    exported = {} if file.card is None else file.card.notes
    notes = {**exported, "source": {"file": source.name, "sha256": file.sha256}}
    verification = self_test_record(scores, vocabulary, **compared)
    card = ModelCard(
        inferred.model, frontend, vocabulary, notes, request.licence, verification, exclusive=request.exclusive
    )
    save_model(directory, card, *split_model(model), report=dataclasses.asdict(report))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    return Conversion(source, directory, card, parameters, report, difference, compared_with)


def _stated_scores(card: ModelCard, source: Path) -> np.ndarray:
    """Returns the scores of the test sound that a file states; raises PretrainingError if it states none."""
    try:
        return np.array([card.golden["scores"][mid] for mid in card.vocabulary.mids], np.float32)
    except (KeyError, TypeError, ValueError) as error:
        raise PretrainingError(f"{source} does not state the scores of the test sound: export it again.") from error


def _with_card(request: Request, file: weight_file.WeightFile) -> tuple[Request, Vocabulary]:
    """Returns the request with the settings that a file states, and the classes.

    Raises PretrainingError if the request has other ones, or if neither has the classes.
    """
    if file.card is None:
        if not request.labels:
            raise PretrainingError(f"{request.source} does not state its classes: name their CSV with --labels.")
        return request, Vocabulary.read(request.labels)
    card = file.card
    stated = dataclasses.asdict(card.frontend) | {
        "padding": card.model.padding, "licence": card.licence, "exclusive": card.exclusive
    }  # fmt: skip
    defaults = {field.name: field.default for field in dataclasses.fields(Request)}
    for name, value in stated.items():
        if getattr(request, name) not in (defaults[name], value):
            raise PretrainingError(
                f"{request.source} states {name} {value!r}, and --{name.replace('_', '-')} is "
                f"{getattr(request, name)!r}: leave the option out."
            )
    if request.labels and Vocabulary.read(request.labels).mids != card.vocabulary.mids:
        raise PretrainingError(f"{request.source} states other classes than {request.labels}: leave --labels out.")
    return dataclasses.replace(request, **stated), card.vocabulary


def _compare_with_torch(
    arrays: Mapping[str, np.ndarray], model: ModelConfig, frontend: FrontendConfig, scores: np.ndarray
) -> float:
    """Returns the largest difference between the scores and those of PyTorch; raises PretrainingError if too large."""
    expected = reference_scores(arrays, model, self_test_spectrogram(frontend))[0]
    return _difference(scores, expected, "PyTorch")


def _difference(scores: np.ndarray, expected: np.ndarray, origin: str) -> float:
    """Returns the largest difference between scores of the test sound; raises PretrainingError if it is too large."""
    difference = float(np.abs(expected - scores).max())
    if not difference <= TOLERANCE:
        raise PretrainingError(
            f"the scores of the test sound differ from {origin} by {difference:.1e}, so nothing was written: please "
            "report this with the name of the checkpoint."
        )
    return difference


def export(model: str, destination: str, *, data_parallel: bool = False, overwrite: bool = False) -> list[str]:
    """Writes the weights of a model under their official names; returns a report as lines for the screen.

    Args:
        model: a model directory or run directory.
        destination: the file to write: ``.safetensors`` with the description of the model, or a PyTorch state dict
            with any other suffix and the label CSV beside it as ``DEST.labels.csv``.
        data_parallel: whether to add the prefix ``module.`` to every name, as in the released checkpoints.
        overwrite: whether to replace existing files.

    Raises:
        PretrainingError, CheckpointError: the model cannot be exported, or a file cannot be written; the message names
            the remedy.
    """
    path = Path(destination)
    files = [path]
    if path.suffix != weight_file.SAFETENSORS:
        files.append(path.parent / f"{path.stem}.labels.csv")
    for file in files:
        require_writable(file, overwrite=overwrite)
    config = read_card(find_model(Path(model))).model
    require_official(model, config)
    loaded = load_model(model)
    card, frontend, arrays = loaded.card, loaded.card.frontend, to_state_dict(loaded.network)
    scores, verified = self_test_scores(loaded.network, frontend), "not compared: pip install torch to compare scores"
    if weight_file.version():
        difference = _compare_with_torch(arrays, config, frontend, scores)
        verified = f"verified: scores of the test sound differ from PyTorch by at most {difference:.1e}"
    card = dataclasses.replace(card, golden=self_test_record(scores, card.vocabulary))
    prefix = PREFIX if data_parallel else ""
    require_replaceable(path.parent / f".{path.name}", overwrite=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with removed_on_failure(files):
        weight_file.write(path, {prefix + name: value for name, value in arrays.items()}, card)
        for labels in files[1:]:
            card.vocabulary.write(labels)
    written = f"{model} -> {path}: {len(arrays)} arrays of {config.name}, {config.padding} padding"
    where = f"{files[1]}" if files[1:] else "its metadata, with all settings"
    return [f"{written}; classes in {where}", verified, _how_to_convert_back(card, *files)]


def _how_to_convert_back(card: ModelCard, path: Path, labels: Path | None = None) -> str:
    """Returns a line with the command that converts an exported file to a model again."""
    if labels is None:
        return f"to convert it back: psla convert {path} MODEL"
    frontend = card.frontend
    settings = f"--target-length {frontend.target_length} --mean {frontend.mean} --std {frontend.std}"
    options = {name.replace("_", "-"): value for name, value in _further_settings(frontend).items()}
    settings += "".join(f" --{name} {value}" for name, value in options.items())
    settings += " --exclusive" if card.exclusive else ""
    return (
        "The PyTorch file does not contain the frontend settings; to convert it back: psla convert "
        f"{path} MODEL --labels {labels} --padding {card.model.padding} {settings}"
    )


def _further_settings(frontend: FrontendConfig) -> dict[str, Any]:
    """Returns the settings of a frontend that are not those of the recipe, except those of every model."""
    given = frontend_settings(frontend)
    return {name: value for name, value in given.items() if name not in ("target_length", "mean", "std")}


def require_official(model: str, config: ModelConfig) -> None:
    """Raises PretrainingError unless backbone and head of a model are built in."""
    for name, official in ((config.name, BACKBONES), (config.pooling, POOLINGS)):
        if name not in official:
            raise PretrainingError(f"{model} has {name}, which has no official names: export built-in models.")


def require_writable(path: Path, *, overwrite: bool) -> None:
    """Raises PretrainingError if `path` is a folder, or an existing file that may not be replaced."""
    if not path.name or path.is_dir():
        raise PretrainingError(f"{str(path)!r} is a folder: name the file to write, such as model.pth.")
    if path.exists() and not overwrite:
        raise PretrainingError(f"{path} already exists: choose another path, or replace it with --overwrite.")
