"""Saving and loading models, through Orbax.

A model directory is complete in itself: ``model.json`` has the architecture, the frontend's settings and statistics
and the vocabulary, ``weights/`` the parameters and batch statistics. Nothing of it is ever a flag at inference.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Sharding

from psla_jax import cache, calibration, kept_weights, processes
from psla_jax.calibration import CALIBRATION, CalibrationError
from psla_jax.config import FrontendConfig, ModelConfig
from psla_jax.frontend import Frontend
from psla_jax.models import tagger
from psla_jax.models.layers import NoDraws
from psla_jax.ontology import Vocabulary

FORMAT = 1
DESCRIPTION, WEIGHTS, REPORT = "model.json", "weights", "report.json"
AVERAGE, PLAIN_AVERAGE, BEST = "average", "plain_average", "best"


class CheckpointError(ValueError):
    """A model or run directory that cannot be used; the message names it."""


@dataclass(frozen=True)
class ModelCard:
    """Everything about a model but its weights.

    Attributes:
        model: its architecture.
        frontend: what its spectrograms are.
        vocabulary: its classes, in the order of its scores.
        notes: where it comes from: run, epochs, data, metrics; or file and SHA-256.
        licence: of the weights, where it is known.
        golden: what it scored on the test sound when it was saved (``verification``); empty if it was not asked.
    """

    model: ModelConfig
    frontend: FrontendConfig
    vocabulary: Vocabulary
    notes: Mapping[str, Any]
    licence: str = ""
    golden: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The text of ``model.json``."""
        sections = {
            "format": FORMAT,
            "model": dataclasses.asdict(self.model),
            "frontend": dataclasses.asdict(self.frontend),
            "vocabulary": self.vocabulary.to_json(),
            "notes": dict(self.notes),
            "licence": self.licence,
            "golden": dict(self.golden),
        }
        return json.dumps(sections, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ModelCard:
        """Reads the text back. Raises ValueError, KeyError or TypeError where it is not that."""
        values = json.loads(text)
        if values["format"] != FORMAT:
            raise ValueError(f"its format is {values['format']}, this version reads {FORMAT}")
        vocabulary = Vocabulary.from_json(values["vocabulary"])
        model, frontend = ModelConfig(**values["model"]), FrontendConfig(**values["frontend"])
        return cls(model, frontend, vocabulary, values["notes"], values["licence"], values["golden"])


@dataclass(frozen=True)
class Model:
    """A model ready for use: its card, and the evaluation view of its network."""

    card: ModelCard
    network: nnx.Module

    @property
    def frontend(self) -> Frontend:
        """Waveforms to this model's spectrograms."""
        return Frontend.from_config(self.card.frontend)


def save_model(
    directory: Path, card: ModelCard, params: Any, rest: Any, *, report: Mapping[str, Any] | None = None
) -> None:
    """Writes a model directory; it appears whole or not at all, and replaces a model of the same name.

    `report` says what became of the entries of a converted file; it goes into ``report.json``. A calibration of the
    model that was there is kept, and goes on to hold if the new model is the same. Of several processes the first one
    writes, and all of them come back when it is done.

    Raises:
        CheckpointError: something else than a model has that name.
    """
    require_place(directory, overwrite=True)
    writer = processes.largest(os.getpid() if processes.first() else 0)
    aside = directory.with_name(f".{directory.name}.{writer}")
    if processes.first():
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    processes.barrier(f"place of {directory}")
    try:
        from orbax.checkpoint import v1 as ocp

        # Orbax wants all processes to come; of arrays that each of them has, one writes.
        weights = jax.tree.map(np.asarray, {"params": named(params), "rest": named(rest)})
        ocp.save(aside.absolute() / WEIGHTS, weights)
        if processes.first():
            _complete(aside, directory, card, (params, rest), report)
        processes.barrier(f"model {directory}")
    finally:
        if processes.first():
            shutil.rmtree(aside, ignore_errors=True)


def _complete(
    aside: Path, directory: Path, card: ModelCard, weights: tuple[Any, Any], report: Mapping[str, Any] | None
) -> None:
    """Puts beside the weights what else a model has, and the whole in its place."""
    before = directory.with_name(f".{directory.name}.before.{os.getpid()}")
    (aside / DESCRIPTION).write_text(card.to_json(), encoding="utf-8")
    if report is not None:
        (aside / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if (directory / CALIBRATION).is_file():
        _keep_calibration(directory, aside, card, weights)
    if directory.exists():
        os.replace(directory, before)
    os.replace(aside, directory)
    shutil.rmtree(before, ignore_errors=True)


def _keep_calibration(directory: Path, aside: Path, card: ModelCard, weights: tuple[Any, Any]) -> None:
    """Takes the calibration of a model along to the one that replaces it; of another model it will be refused."""
    shutil.copyfile(directory / CALIBRATION, aside / CALIBRATION)
    with contextlib.suppress(CalibrationError, CheckpointError):
        replaced = read_card(directory)
        found = calibration.read(directory, replaced.vocabulary, lambda: fingerprint(directory, replaced))
        pairs = jax.tree.map(np.array_equal, load_weights(directory, *weights), weights)
        if found is not None and _settings(card) == _settings(replaced) and jax.tree.all(pairs):
            dataclasses.replace(found, model=fingerprint(aside, card)).write(aside)


def require_place(directory: Path, *, overwrite: bool) -> None:
    """Raises CheckpointError if a model cannot be written there without losing something, or at all."""
    folder = next((parent for parent in directory.absolute().parents if parent.exists()), None)
    if folder is not None and not folder.is_dir():
        raise CheckpointError(f"{directory} lies in {folder}, which is a file: name another place.")
    if not directory.exists():
        return
    if not directory.is_dir() or (any(directory.iterdir()) and not (directory / DESCRIPTION).is_file()):
        raise CheckpointError(
            f"{directory} is there already and is no model, so it is not replaced: name another place."
        )
    if not overwrite:
        raise CheckpointError(f"{directory} is there already: name another place, or replace it with --overwrite True.")


def load_model(path: str | os.PathLike, *, trust: bool = False) -> Model:
    """A model from a model directory, or from a run directory: its weight average, else its best epoch.

    Args:
        path: of the directory.
        trust: import the code that a custom model (``module:callable``) names. Off, no directory can run code.

    Raises:
        CheckpointError: naming the path and what is wrong with it.
    """
    directory = find_model(Path(path))
    card = read_card(directory)
    if ":" in card.model.name and not trust:
        raise CheckpointError(
            f"{directory} is a model of somebody's own code, {card.model.name}: load it with trust (--trust True) if "
            "you know that code."
        )
    abstract = _abstract(card.model, len(card.vocabulary))
    params, rest = nnx.state(abstract, nnx.Param, ...)
    weights = _used_lately(directory, card, (nnx.to_pure_dict(params), nnx.to_pure_dict(rest)))
    return Model(card, nnx.merge(nnx.graphdef(abstract), *weights))


def _used_lately(directory: Path, card: ModelCard, like: tuple[Any, Any]) -> tuple[Any, Any]:
    """The weights of a model directory, from an earlier start of the command if they have not changed since."""
    if processes.count() > 1 or cache.kept(kept_weights.KIND) is None:  # Orbax wants all processes to read, or none.
        return load_weights(directory, *like)
    known = fingerprint(directory, card)
    weights = kept_weights.read(known, like)
    if weights is not None:
        return jax.device_put(weights, jax.local_devices()[0])
    weights = load_weights(directory, *like)
    kept_weights.write(known, weights)
    return weights


def _abstract(config: ModelConfig, num_classes: int) -> nnx.Module:
    """A model in float32 without values of its own in its variables."""
    if ":" in config.name:
        return nnx.eval_shape(lambda: tagger.from_config(config, num_classes, jnp.float32, nnx.Rngs(0)))
    # The package's own models draw nothing if they are told so: a second less than tracing their random numbers.
    return tagger.from_config(config, num_classes, jnp.float32, NoDraws())


@functools.lru_cache
def exact_graphdef(config: ModelConfig, num_classes: int) -> nnx.GraphDef:
    """The structure of a model that computes in float32, whatever it was trained in."""
    return nnx.graphdef(_abstract(config, num_classes))


def load_weights(directory: Path, params: Any, rest: Any, sharding: Sharding | None = None) -> tuple[Any, Any]:
    """The weights of a model directory, in the structure of the given (abstract or real) trees.

    Raises:
        CheckpointError: if they cannot be read, or are of another architecture.
    """
    from orbax.checkpoint import v1 as ocp

    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = {"params": named(params), "rest": named(rest)}
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), wanted)
    try:
        found = ocp.load(directory.absolute() / WEIGHTS, abstract)
    except Exception as error:  # Orbax and its storage raise many kinds; all of them mean the same to the user.
        raise CheckpointError(
            f"the weights of {directory} cannot be read, or are of another architecture than its {DESCRIPTION} says: "
            "make the model again."
        ) from error
    return unnamed(found["params"], params), unnamed(found["rest"], rest)


def find_model(path: Path) -> Path:
    """The model directory meant by a path: itself, or a run's weight average, or a run's best epoch."""
    for candidate in (path, path / "models" / AVERAGE, path / "models" / BEST):
        if (candidate / DESCRIPTION).is_file():
            return candidate
    if not path.exists():
        raise CheckpointError(f"there is no model at {path}: name a model directory or a run directory.")
    if (path / "models").is_dir():
        raise CheckpointError(
            f"the run {path} has not ended: start it again with psla train, or name one of {path / 'models'}."
        )
    raise CheckpointError(f"{path} is neither a model directory ({DESCRIPTION} is missing) nor a run directory.")


def read_card(directory: Path) -> ModelCard:
    """The card of a model directory. Raises CheckpointError naming it."""
    try:
        return ModelCard.from_json((directory / DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else first_line(error)
        raise CheckpointError(f"{directory / DESCRIPTION} cannot be read ({what}): make the model again.") from error


def fingerprint(directory: Path, card: ModelCard) -> str:
    """A hash of all that a model's scores depend on: its settings, its classes, the files of its weights.

    Raises:
        CheckpointError: the weights are missing.
    """
    digest = hashlib.sha256(json.dumps(_settings(card), sort_keys=True).encode())
    files = sorted(file for file in (directory / WEIGHTS).rglob("*") if file.is_file())
    if not files:
        raise CheckpointError(f"{directory} has no weights: make the model again.")
    for file in files:
        digest.update(file.relative_to(directory).as_posix().encode())
        with open(file, "rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def _settings(card: ModelCard) -> list[Any]:
    """What scores depend on besides the weights."""
    return [dataclasses.asdict(card.model), dataclasses.asdict(card.frontend), card.vocabulary.mids]


def first_line(error: Exception) -> str:
    """What an error of a library says first, to go on with in a sentence of ours."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")


def named(tree: Any) -> Any:
    """Dictionary keys as strings: storage has no integer keys, module lists do."""
    return {str(k): named(v) for k, v in tree.items()} if isinstance(tree, Mapping) else tree


def unnamed(tree: Any, like: Any) -> Any:
    """The keys of `like` again."""
    return {k: unnamed(tree[str(k)], v) for k, v in like.items()} if isinstance(like, Mapping) else tree
