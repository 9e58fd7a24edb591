"""Model directories.

A model directory is self-contained: ``model.json`` has the architecture, the settings and statistics of the frontend,
and the vocabulary; ``weights/`` has the parameters and batch statistics as an Orbax checkpoint. A finished model also
has them in ``weights.safetensors``, which loads without Orbax and which other tools can read. Other files in the
directory, such as a calibration, are preserved when the model is replaced.
"""

from __future__ import annotations

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
from jax.typing import DTypeLike
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from psla_jax.audio.frontend import Frontend
from psla_jax.config import Channel, FrontendConfig, ModelConfig, Precision, frontend_settings, network_settings
from psla_jax.models import factory
from psla_jax.models.initializers import AbstractRngs
from psla_jax.models.precision import activations
from psla_jax.models.state import split_model
from psla_jax.runtime import distributed
from psla_jax.runtime.files import shortened
from psla_jax.runtime.fork import require_own_devices
from psla_jax.vocabulary.vocabulary import Vocabulary

FORMAT = 1
DESCRIPTION, WEIGHTS, SAFETENSORS, REPORT = "model.json", "weights", "weights.safetensors", "report.json"
OWN_ENTRIES = (DESCRIPTION, WEIGHTS, SAFETENSORS, REPORT)
AVERAGE, PLAIN_AVERAGE, EMA, BEST = "average", "plain_average", "ema", "best"
MAX_MESSAGE = 200
"""Number of characters of another library's error message that an error message of this package includes."""
BATCH_STATS = "rest"
"""Key of the batch statistics in Orbax checkpoints of format 1."""


class CheckpointError(ValueError):
    """A model or run directory cannot be used; the message names it and the remedy."""


@dataclass(frozen=True)
class ModelCard:
    """Everything about a model except its weights.

    Attributes:
        vocabulary: classes, in the order of its scores.
        notes: origin: run, epochs, data and metrics; or file and SHA-256.
        licence: licence of the weights, where it is known.
        golden: its scores of the test signal when it was saved (:mod:`psla_jax.models.self_test`); may be empty.
        exclusive: whether every clip has exactly one class; its scores are then normalised over the classes
            (:mod:`psla_jax.models.exclusive`).
    """

    model: ModelConfig
    frontend: FrontendConfig
    vocabulary: Vocabulary
    notes: Mapping[str, Any] = field(default_factory=dict)
    licence: str = ""
    golden: Mapping[str, Any] = field(default_factory=dict)
    exclusive: bool = False

    @property
    def channel(self) -> Channel:
        """Channel of multi-channel clips that the model was trained on; the mean of all if that is unknown."""
        return self.notes.get("config", {}).get("data.channel", "mean")

    def to_json(self) -> str:
        """Returns the content of ``model.json``."""
        sections = {
            "format": FORMAT,
            "model": dataclasses.asdict(self.model),
            "frontend": dataclasses.asdict(self.frontend),
            "vocabulary": self.vocabulary.to_json(),
            "notes": dict(self.notes),
            "licence": self.licence,
            "golden": dict(self.golden),
            "exclusive": self.exclusive,
        }
        return json.dumps(sections, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ModelCard:
        """Parses ``model.json``. Raises ValueError, KeyError or TypeError if it is malformed."""
        values = json.loads(text)
        if values["format"] != FORMAT:
            raise ValueError(f"its format is {values['format']}, this version reads {FORMAT}")
        vocabulary = Vocabulary.from_json(values["vocabulary"])
        model, frontend = ModelConfig(**values["model"]), FrontendConfig(**values["frontend"])
        notes = values["notes"]
        # Models of earlier versions lack the field, but have the config of their run.
        by_loss = notes.get("config", {}).get("optimizer.loss") == "ce"
        exclusive = values.get("exclusive", by_loss)
        return cls(model, frontend, vocabulary, notes, values["licence"], values["golden"], exclusive)


@dataclass(frozen=True)
class Model:
    """A loaded model: its card, and its network in evaluation view."""

    card: ModelCard
    network: nnx.Module
    precision: Precision = "highest"
    """Precision of the products; the backbone is built for it."""

    @property
    def frontend(self) -> Frontend:
        """Transform from waveforms to this model's spectrograms."""
        return Frontend.from_config(self.card.frontend)


def save_model(
    directory: str | os.PathLike[str],
    card: ModelCard,
    params: Any,
    batch_stats: Any,
    *,
    report: Mapping[str, Any] | None = None,
    safetensors: bool = True,
) -> None:
    """Writes a model directory, which appears complete or not at all, and replaces a model of the same name.

    With several processes, all of them call it; the primary one writes, and all return when it is done.

    Args:
        directory: the model directory.
        card: its ``model.json``.
        params: tree of parameters, see :func:`psla_jax.models.state.split_model`.
        batch_stats: tree of batch statistics.
        report: what became of the entries of a converted file, for ``report.json``.
        safetensors: write ``weights.safetensors`` too; a training does so for finished models, not for every epoch.

    Raises:
        CheckpointError: the directory holds something other than a model.
    """
    directory = Path(directory)
    require_replaceable(directory, overwrite=True)
    writer = distributed.max_over_processes(os.getpid() if distributed.is_primary() else 0)
    temporary = directory.with_name(f".{shortened(directory.name)}.{writer}")
    if distributed.is_primary():
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    distributed.barrier(f"created {temporary}")
    try:
        from orbax.checkpoint import v1 as ocp

        # Orbax requires a call in every process; only one of them writes arrays that all processes have.
        weights = jax.tree.map(np.asarray, {"params": string_keys(params), BATCH_STATS: string_keys(batch_stats)})
        ocp.save(temporary.absolute() / WEIGHTS, weights)
        if distributed.is_primary():
            if safetensors:
                content = save(_flatten(params, batch_stats), {"format": "psla_jax"})
                (temporary / SAFETENSORS).write_bytes(content)
            _publish(temporary, directory, card, report)
        distributed.barrier(f"saved {directory}")
    finally:
        if distributed.is_primary():
            shutil.rmtree(temporary, ignore_errors=True)


def _publish(temporary: Path, directory: Path, card: ModelCard, report: Mapping[str, Any] | None) -> None:
    """Completes a model directory that has its weights, and renames it to its final name."""
    replaced = directory.with_name(f".{shortened(directory.name)}.before.{os.getpid()}")
    (temporary / DESCRIPTION).write_text(card.to_json(), encoding="utf-8")
    if report is not None:
        (temporary / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if directory.exists():
        for entry in directory.iterdir():
            if entry.is_file() and entry.name not in OWN_ENTRIES:
                shutil.copy2(entry, temporary / entry.name)
        os.replace(directory, replaced)
    os.replace(temporary, directory)
    shutil.rmtree(replaced, ignore_errors=True)


def require_replaceable(directory: Path, *, overwrite: bool) -> None:
    """Raises CheckpointError if a model cannot be written to `directory`, or would replace something it must not."""
    parent = next((parent for parent in directory.absolute().parents if parent.exists()), None)
    if parent is not None and not parent.is_dir():
        raise CheckpointError(f"{directory} cannot be created because {parent} is a file: choose another path.")
    if not directory.exists():
        return
    if not directory.is_dir() or (any(directory.iterdir()) and not (directory / DESCRIPTION).is_file()):
        raise CheckpointError(f"{directory} exists and is not a model, so it is not replaced: choose another path.")
    if not overwrite:
        raise CheckpointError(f"{directory} exists: choose another path, or replace it with --overwrite.")


def load_model(path: str | os.PathLike, *, trust: bool = False, precision: Precision = "highest") -> Model:
    """Loads a model from a model directory or from a run directory (its weight average, else its best epoch).

    Args:
        path: the directory.
        trust: import the code of a custom model or head (``module:callable``). Without it, no directory can run code.
        precision: precision with which taggers and evaluations apply it, see :mod:`psla_jax.models.precision`.

    Raises:
        CheckpointError: naming the path and the problem.
        ConfigError: there is no such precision.
        ForkError: the process was forked from one that had loaded a model.
    """
    require_own_devices()
    directory = find_model(Path(path))
    card = read_card(directory)
    if card.model.custom_code and not trust:
        raise CheckpointError(
            f"{directory} is a model of custom code, {', '.join(card.model.custom_code)}: load it with trust=True "
            "(--trust) if you trust that code."
        )
    network = abstract_model(card.model, len(card.vocabulary), activations(precision))
    weights = load_weights(directory, *split_model(network))
    return Model(card, nnx.merge(nnx.graphdef(network), *weights), precision)


def abstract_model(config: ModelConfig, num_classes: int, dtype: DTypeLike = jnp.float32) -> nnx.Module:
    """Builds a model without drawing weights; `dtype` is that of the activations of its backbone."""
    if config.custom_code:
        return nnx.eval_shape(lambda: factory.from_config(config, num_classes, dtype, nnx.Rngs(0)))
    return factory.from_config(config, num_classes, dtype, AbstractRngs())


@functools.lru_cache
def float32_graphdef(config: ModelConfig, num_classes: int) -> nnx.GraphDef:
    """Returns the graph definition of a model that computes in float32, whatever it was trained in."""
    return nnx.graphdef(abstract_model(config, num_classes))


def load_weights(directory: Path, params: Any, batch_stats: Any, sharding: Sharding | None = None) -> tuple[Any, Any]:
    """Loads the weights of a model directory into the structure of the given (abstract or concrete) trees.

    Args:
        directory: the model directory.
        params: tree with the shapes and types of the parameters.
        batch_stats: the same for the batch statistics.
        sharding: of the loaded arrays; by default the first local device.

    Raises:
        CheckpointError: they cannot be read, or belong to another architecture.
    """
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    try:
        if (directory / SAFETENSORS).is_file():
            return jax.device_put(_read_safetensors(directory / SAFETENSORS, params, batch_stats), sharding)
        return _read_orbax(directory / WEIGHTS, params, batch_stats, sharding)
    except Exception as error:  # Orbax and its storage layers raise many types.
        raise CheckpointError(
            f"the weights of {directory} cannot be read, or do not fit the architecture in its {DESCRIPTION}: create "
            "the model again."
        ) from error


def _read_orbax(path: Path, params: Any, batch_stats: Any, sharding: Sharding) -> tuple[Any, Any]:
    from orbax.checkpoint import v1 as ocp

    trees = {"params": string_keys(params), BATCH_STATS: string_keys(batch_stats)}
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), trees)
    loaded = ocp.load(path.absolute(), abstract)
    return restore_keys(loaded["params"], params), restore_keys(loaded[BATCH_STATS], batch_stats)


def _read_safetensors(path: Path, params: Any, batch_stats: Any) -> tuple[Any, Any]:
    arrays = load_file(path)
    trees = (arrays, _flatten(params, batch_stats))
    actual, expected = ({(name, x.shape, x.dtype) for name, x in tree.items()} for tree in trees)
    if mismatches := sorted({name for name, *_ in actual ^ expected}):
        raise SafetensorError(f"{path} has missing, unexpected or differently shaped arrays: {mismatches[:5]}")
    return jax.tree.map_with_path(lambda key, _: arrays[_dotted(key)], (params, batch_stats))


def _flatten(params: Any, batch_stats: Any) -> dict[str, Any]:
    """Returns the arrays by their dotted path in the model, as ``effnet._blocks.0._bn1.mean``."""
    return {
        _dotted(key): leaf if isinstance(leaf, jax.ShapeDtypeStruct) else np.asarray(leaf, order="C")
        for key, leaf in jax.tree.leaves_with_path((params, batch_stats))
    }


def _dotted(key: tuple[Any, ...]) -> str:
    return ".".join(str(entry.key) for entry in key[1:])  # The first entry tells parameters from statistics.


def find_model(path: Path) -> Path:
    """Returns the model directory at a path: itself, or a run's weight average or best epoch.

    Raises CheckpointError if there is none.
    """
    for candidate in (path, path / "models" / AVERAGE, path / "models" / BEST):
        if (candidate / DESCRIPTION).is_file():
            return candidate
    if not path.exists():
        raise CheckpointError(f"there is no model at {path}: name a model directory or a run directory.")
    if (path / "models").is_dir():
        raise CheckpointError(
            f"the run {path} is not finished: resume it with psla train, or name one of {path / 'models'}."
        )
    raise CheckpointError(f"{path} is neither a model directory ({DESCRIPTION} is missing) nor a run directory.")


def read_card(directory: Path) -> ModelCard:
    """Reads the card of a model directory. Raises CheckpointError if it cannot be read."""
    try:
        return ModelCard.from_json((directory / DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else first_line(error)
        raise CheckpointError(
            f"{directory / DESCRIPTION} cannot be read ({problem}): create the model again."
        ) from error


def fingerprint(directory: Path, card: ModelCard) -> str:
    """Returns a hash of everything in a model directory that its scores depend on: settings, classes and weights.

    Two finished models with the same weights have the same fingerprint, because safetensors files are deterministic.
    Raises CheckpointError if the weights are missing.
    """
    settings: list[Any] = [network_settings(card.model), frontend_settings(card.frontend), card.vocabulary.mids]
    if card.exclusive:  # Not added otherwise, so that earlier fingerprints remain valid.
        settings.append("exclusive")
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    files = [directory / SAFETENSORS]
    if not files[0].is_file():
        files = sorted(file for file in (directory / WEIGHTS).rglob("*") if file.is_file())
    if not files:
        raise CheckpointError(f"{directory} has no weights: create the model again.")
    for file in files:
        digest.update(file.relative_to(directory).as_posix().encode())
        with open(file, "rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def first_line(error: Exception) -> str:
    """Returns the first line of the message of an exception's root cause, shortened, to be embedded in a message."""
    while error.__cause__ is not None:
        error = error.__cause__  # type: ignore[assignment]
    lines = str(error).strip().splitlines()
    line = (lines[0] if lines else type(error).__name__).rstrip(".")
    return line if len(line) <= MAX_MESSAGE else f"{line[:MAX_MESSAGE]}..."


def string_keys(tree: Any) -> Any:
    """Returns nested dictionaries with keys as strings: Orbax has no integer keys, lists of modules do."""
    return {str(k): string_keys(v) for k, v in tree.items()} if isinstance(tree, Mapping) else tree


def restore_keys(tree: Any, like: Any) -> Any:
    """Returns the tree with the keys of `like`: the inverse of :func:`string_keys`."""
    return {k: restore_keys(tree[str(k)], v) for k, v in like.items()} if isinstance(like, Mapping) else tree
