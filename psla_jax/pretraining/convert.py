"""Official checkpoints into model directories, and models back into PyTorch files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from psla_jax.checkpoints import ModelCard, load_model, require_place, save_model
from psla_jax.config import FrontendConfig, ModelConfig, Padding
from psla_jax.models.tagger import AudioTagger, from_config
from psla_jax.ontology import Vocabulary
from psla_jax.pretraining import pth
from psla_jax.pretraining.architecture import infer
from psla_jax.pretraining.names import PREFIX, LoadReport, PretrainingError, load_state_dict, to_state_dict
from psla_jax.pretraining.torch_forward import official_scores
from psla_jax.training import split_model
from psla_jax.verification import TOLERANCE, golden, golden_scores, spectrogram_of_test

FRAMES = {527: 1056, 200: 3000}
"""Frames a clip in the reference's recipes, by the number of classes of AudioSet and FSD50K."""
DEFAULT_FRAMES = 1056


@dataclass(frozen=True)
class Request:
    """What to convert. Fields as in ``psla convert``."""

    source: str
    model: str
    labels: str
    padding: Padding = "symmetric"
    target_length: int = 0
    mean: float = FrontendConfig.mean
    std: float = FrontendConfig.std
    licence: str = ""
    overwrite: bool = False


@dataclass(frozen=True)
class Conversion:
    """A converted model and what was found on the way."""

    source: Path
    directory: Path
    card: ModelCard
    parameters: int
    report: LoadReport
    difference: float
    torch: str

    def lines(self) -> list[str]:
        """The report for people."""
        model, frontend = self.card.model, self.card.frontend
        heads = f"{model.heads} head{'s' * (model.heads > 1)}"
        head = heads if model.pooling == "attention" else f"{model.pooling} pooling"
        padding = f", {model.padding} padding" if model.name.startswith("efficientnet") else ""
        size = f"{len(self.card.vocabulary)} classes, {self.parameters:,} parameters"
        return [
            f"{self.source} -> {self.directory}",
            f"model     {model.name}, {head}{padding}, {size}",
            f"frontend  {frontend.target_length} frames, mean {frontend.mean}, std {frontend.std}",
            *self.report.lines(),
            f"checked   scores of the test sound within {self.difference:.1e} of PyTorch {self.torch}",
        ]


def convert(request: Request) -> Conversion:
    """Reads an official checkpoint and writes a model directory, whole or not at all.

    Raises:
        PretrainingError, VocabularyError, CheckpointError: naming the file and the remedy.
    """
    directory, source = Path(request.model), Path(request.source)
    require_place(directory, overwrite=request.overwrite)
    vocabulary = Vocabulary.read(request.labels)
    file = pth.read(source)
    try:
        found = infer(file.arrays, request.padding)
        _require_classes(found.num_classes, vocabulary, request.labels)
        network = from_config(found.model, found.num_classes, jnp.float32, nnx.Rngs(0))
        report = load_state_dict(network, file.arrays)
    except PretrainingError as error:
        raise PretrainingError(f"{source}: {error}") from error
    frames = request.target_length or FRAMES.get(found.num_classes, DEFAULT_FRAMES)
    frontend = FrontendConfig(target_length=frames, mean=request.mean, std=request.std)
    scores = golden_scores(network, frontend)
    difference = _difference_from_torch(file.arrays, found.model, frontend, scores)
    import torch

    notes = {"source": {"file": source.name, "sha256": file.sha256}}
    checked = golden(scores, vocabulary, pytorch=torch.__version__, largest_difference=difference)
    card = ModelCard(found.model, frontend, vocabulary, notes, licence=request.licence, golden=checked)
    save_model(directory, card, *split_model(network), report=dataclasses.asdict(report))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(network, nnx.Param)))
    return Conversion(source, directory, card, parameters, report, difference, torch.__version__)


def _require_free(path: Path, overwrite: bool) -> None:
    """Raises PretrainingError if a file cannot be written there, or would be overwritten."""
    if not path.name or path.is_dir():
        raise PretrainingError(f"{str(path)!r} is a folder: name the file to write, such as model.pth.")
    if path.exists() and not overwrite:
        raise PretrainingError(f"{path} is there already: name another place, or replace it with --overwrite True.")


def _require_classes(found: int, vocabulary: Vocabulary, labels: str) -> None:
    if found != len(vocabulary):
        raise PretrainingError(
            f"the weights have {found} classes and {labels} has {len(vocabulary)}: name the label CSV that they were "
            "trained with, with --labels."
        )


def _difference_from_torch(
    arrays: Mapping[str, np.ndarray], model: ModelConfig, frontend: FrontendConfig, scores: np.ndarray
) -> float:
    wanted = official_scores(arrays, model, spectrogram_of_test(frontend))[0]
    difference = float(np.abs(wanted - scores).max())
    if not difference <= TOLERANCE:
        raise PretrainingError(
            f"the converted model scores the test sound {difference:.1e} away from PyTorch, so it was not written: "
            "please report this with the name of the checkpoint."
        )
    return difference


def export(model: str, destination: str, *, data_parallel: bool = False, overwrite: bool = False) -> list[str]:
    """Writes a model as a PyTorch state dict under the official names, and its classes as a label CSV beside it.

    Args:
        model: a model directory or run directory.
        destination: of the ``.pth``; the CSV is ``DEST.labels.csv``.
        data_parallel: put ``module.`` in front of every name, as the released checkpoints have it.
        overwrite: replace what is there.

    Returns:
        What was written, for people.

    Raises:
        PretrainingError, CheckpointError: naming the model and the remedy.
    """
    path = Path(destination)
    labels = path.parent / f"{path.stem}.labels.csv"
    for file in (path, labels):
        _require_free(file, overwrite)
    loaded = load_model(model)
    if not isinstance(loaded.network, AudioTagger):
        raise PretrainingError(
            f"{model} is {loaded.card.model.name}, which has no official names: export a PSLA model."
        )
    arrays = to_state_dict(loaded.network)
    wanted = golden_scores(loaded.network, loaded.card.frontend)
    difference = _difference_from_torch(arrays, loaded.card.model, loaded.card.frontend, wanted)
    prefix = PREFIX if data_parallel else ""
    require_place(path.parent / f".{path.name}", overwrite=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    pth.write(path, {prefix + name: value for name, value in arrays.items()})
    loaded.card.vocabulary.write(labels)
    kind = f"{loaded.card.model.name}, {loaded.card.model.padding} padding"
    frontend = loaded.card.frontend
    settings = f"--target-length {frontend.target_length} --mean {frontend.mean} --std {frontend.std}"
    return [
        f"{model} -> {path}: {len(arrays)} arrays of {kind}; classes in {labels}",
        f"checked: scores of the test sound within {difference:.1e} of PyTorch",
        "PyTorch's file has no place for the frontend; back again: psla convert "
        f"{path} MODEL --labels {labels} --padding {loaded.card.model.padding} {settings}",
    ]
