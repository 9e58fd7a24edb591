"""Models and scores of a run, by name, in the subdirectories ``models/`` and ``scores/`` of its run directory."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from psla_jax.aggregation.average import reestimate
from psla_jax.audio.windows import Grid
from psla_jax.config import RunConfig, flatten, is_exclusive
from psla_jax.data.datasets import DataSets
from psla_jax.data.loader import Batch, HeldOutSource, batches, evaluation_source
from psla_jax.data.taught import TaughtScores
from psla_jax.data.teacher import TeacherScores
from psla_jax.data.train_source import TrainSource, plain_source, train_source
from psla_jax.evaluation.evaluators import Evaluators
from psla_jax.evaluation.predict import score
from psla_jax.evaluation.scores import Scores
from psla_jax.models.model_dir import DESCRIPTION, ModelCard, float32_graphdef, load_weights, read_card, save_model
from psla_jax.models.self_test import self_test_record, self_test_scores
from psla_jax.models.state import split_model
from psla_jax.runtime import distributed
from psla_jax.runtime.logging import Logger
from psla_jax.runtime.preemption import StopHandler
from psla_jax.training.trainer import Trainer

Weights = tuple[Any, Any]
"""Parameters and batch statistics."""


@dataclass(frozen=True, eq=False)
class RunArtifacts:
    """Saves, loads and computes the models and scores of a run.

    Attributes:
        trainer: model structure, frontend and devices.
        model: model of the run's structure, with its initial weights.
        stop: ends a pass over the data when a signal was received.
        teacher: scores of a teacher for the training set.
        taught: scores of a teacher for the augmented rows of the training.
    """

    directory: Path
    config: RunConfig
    data: DataSets
    trainer: Trainer
    model: nnx.Module
    logger: Logger
    stop: StopHandler
    teacher: TeacherScores | None = None
    taught: TaughtScores | None = None
    _noted: set[tuple[str, str]] = field(default_factory=set)

    @functools.cached_property
    def _sources(self) -> dict[str, HeldOutSource]:
        """The held-out sets as sources of the loader; with ``data.windows``, durations are looked up only once."""
        settings: dict[str, Any] = {"num_samples": self.trainer.frontend.num_samples}
        settings["grid"] = Grid.of(self.trainer.frontend)
        held_out = self.data.held_out.items()
        return {kind: evaluation_source(data, self.config.data, **settings) for kind, data in held_out}

    @functools.cached_property
    def evaluators(self) -> Evaluators:
        """Further metrics of the setting ``metrics``, for scores of any held-out set."""
        return Evaluators.find(self.config.metrics, self.data.vocabulary, self.exclusive)

    @property
    def graphdef(self) -> nnx.GraphDef:
        """Structure of the model that is scored: in float32 whatever ``optimizer.precision`` is, as in all commands."""
        return float32_graphdef(self.config.model, len(self.data.vocabulary))

    @property
    def exclusive(self) -> bool:
        """Whether every clip has exactly one class, so that scores are normalised over the classes."""
        return is_exclusive(self.config.optimizer.loss)

    @property
    def reestimates(self) -> bool:
        """Whether averaged weights get new batch statistics; a frozen backbone has the same ones in every epoch."""
        return self.config.aggregation.reestimate and not self.config.pretraining.freeze

    def save_model(self, name: str, weights: Weights, notes: dict[str, Any], *, finished: bool = False) -> None:
        """Writes a model directory. A finished model also has safetensors weights and its scores of the test signal."""
        model, frontend, vocabulary = self.config.model, self.config.frontend, self.data.vocabulary
        origin = {"seed": self.config.seed, "data": self.data.identity(), "config": flatten(self.config)}
        checked = {}
        if finished:
            network = nnx.merge(self.graphdef, *jax.device_get(weights))
            checked = self_test_record(self_test_scores(network, frontend), vocabulary)
        card = ModelCard(model, frontend, vocabulary, {**notes, **origin}, golden=checked, exclusive=self.exclusive)
        save_model(self.directory / "models" / name, card, *weights, safetensors=finished)

    def has_model(self, name: str) -> bool:
        """Returns whether that model was saved."""
        return (self.directory / "models" / name / DESCRIPTION).is_file()

    def notes(self, name: str) -> Mapping[str, Any]:
        """Returns the notes of a saved model; empty if it was not saved."""
        return read_card(self.directory / "models" / name).notes if self.has_model(name) else {}

    def weights(self, name: str) -> Weights:
        """Loads the weights of a saved model onto all devices."""
        like = split_model(self.model)
        return load_weights(self.directory / "models" / name, *like, sharding=self.trainer.placement.replicated)

    def scores_path(self, kind: str, name: str) -> Path:
        """Returns the file of a model's scores on a data set."""
        return self.directory / "scores" / f"{kind}_{name}.npz"

    def scores(self, kind: str, name: str) -> Scores:
        """Returns the scores of a saved model on a data set; computes and saves them if they are missing."""
        # On a network disk one process may see a file later than another, so all do what one of them has to.
        if distributed.any_process(not self.scores_path(kind, name).is_file()):
            scores = self.score(kind, self.weights(name), f"{name} on the {kind} set")
            self.save_scores(kind, name, scores)
            return scores
        return Scores.load(self.scores_path(kind, name))

    def save_scores(self, kind: str, name: str, scores: Scores) -> None:
        """Writes the scores of a model on a data set."""
        if distributed.is_primary():
            scores.save(self.scores_path(kind, name))

    def delete_scores(self, *names: str) -> None:
        """Deletes the scores of models that are about to be trained again: on GPUs, results differ in the last bits."""
        if distributed.is_primary():
            for kind in self.data.held_out:
                for name in names:
                    self.scores_path(kind, name).unlink(missing_ok=True)
        distributed.barrier("scores deleted")

    def score(self, kind: str, weights: Weights, description: str) -> Scores:
        """Computes the scores of given weights on a data set."""
        data, source = self.data.held_out[kind], self._sources[kind]
        placement = self.trainer.placement
        model = (self.graphdef, *placement.replicate(weights))
        with self._stream(source, description) as stream:
            shard, exclusive = placement.shard_rows, self.exclusive
            scores = score(
                model, self.trainer.frontend, stream, shard, data.clip_id,
                exclusive=exclusive, clip_of_row=source.clip_of_row,
            )  # fmt: skip
        for note in scores.notes():
            if (kind, note) not in self._noted:
                self._noted.add((kind, note))
                self.logger.info(f"{kind} set: {note}")
        return dataclasses.replace(scores, mids=self.data.vocabulary.mids)

    def train_source(self) -> TrainSource:
        """Returns the rows of the training, with those of its teacher."""
        config, samples = self.config, self.trainer.frontend.num_samples
        return train_source(
            self.data.train, config.data, config.sampling, num_samples=samples, epochs=config.optimizer.epochs,
            seed=config.seed, grid=Grid.of(self.trainer.frontend), teacher=self.teacher, taught=self.taught,
        )  # fmt: skip

    def reestimate_batch_stats(self, weights: Weights) -> Weights:
        """Returns the same parameters with batch statistics that one pass over the training set gives."""
        frontend, placement, config = self.trainer.frontend, self.trainer.placement, self.config
        samples, grid = frontend.num_samples, Grid.of(frontend)
        source = plain_source(self.data.train, config.data, num_samples=samples, seed=config.seed, grid=grid)
        params, batch_stats = placement.replicate(weights)
        model = (self.graphdef, params, batch_stats)
        with self._stream(source, "re-estimating batch statistics") as stream:
            return params, reestimate(model, frontend, stream, placement.shard_rows)

    @contextlib.contextmanager
    def _stream(self, source: HeldOutSource | TrainSource, description: str) -> Iterator[Iterator[Batch]]:
        """Yields this process's part of the batches with a progress bar; ends between batches when asked to stop."""
        rows = self.trainer.placement.rows(source.batch_size)
        stream = batches(source, threads=max(self.config.data.threads, self.config.data.workers), rows=rows)
        with self.logger.progress(description, source.num_batches) as bar:
            yield self._until_stopped(bar.track(stream))

    def _until_stopped(self, stream: Iterator[Batch]) -> Iterator[Batch]:
        for batch in stream:
            self.stop.check_all_processes()
            yield batch
