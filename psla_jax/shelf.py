"""The models and scores of a run, each by a name under ``models/`` and ``scores/``: kept, found, or made now."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from psla_jax import processes
from psla_jax.aggregation import reestimate
from psla_jax.checkpoints import DESCRIPTION, ModelCard, exact_graphdef, load_weights, save_model
from psla_jax.config import RunConfig, flatten
from psla_jax.data.pipeline import Batch, EvaluationSource, TrainSource, batches, evaluation_source, plain_source
from psla_jax.data.sets import DataSets
from psla_jax.evaluation import score
from psla_jax.journal import Journal
from psla_jax.scores import Scores
from psla_jax.stopping import Stop
from psla_jax.training import Trainer, split_model
from psla_jax.verification import golden, golden_scores

Weights = tuple[Any, Any]
"""Parameters and batch statistics."""


@dataclass(frozen=True, eq=False)
class Shelf:
    """Where a run keeps its models and scores, with all that is needed to make them."""

    directory: Path
    config: RunConfig
    data: DataSets
    trainer: Trainer
    model: nnx.Module
    journal: Journal
    stop: Stop

    def save_model(self, name: str, weights: Weights, notes: dict[str, Any], *, finished: bool = False) -> None:
        """Writes a model directory; a finished model carries its scores of the test sound."""
        origin = {"seed": self.config.seed, "data": self.data.identity(), "config": flatten(self.config)}
        checked = {}
        if finished:
            graphdef = exact_graphdef(self.config.model, len(self.data.vocabulary))
            scores = golden_scores(nnx.merge(graphdef, *jax.device_get(weights)), self.config.frontend)
            checked = golden(scores, self.data.vocabulary)
        card = ModelCard(
            self.config.model, self.config.frontend, self.data.vocabulary, {**notes, **origin}, golden=checked
        )
        save_model(self.directory / "models" / name, card, *weights)

    def has_model(self, name: str) -> bool:
        """Whether that model was saved."""
        return (self.directory / "models" / name / DESCRIPTION).is_file()

    def weights(self, name: str) -> Weights:
        """Of a saved model, on all devices."""
        like = split_model(self.model)
        return load_weights(self.directory / "models" / name, *like, sharding=self.trainer.placement.replicated)

    def scores_path(self, kind: str, name: str) -> Path:
        """The file of a model's scores on a set."""
        return self.directory / "scores" / f"{kind}_{name}.npz"

    def scores(self, kind: str, name: str) -> Scores:
        """The scores of a saved model on a set: from its file, or made now."""
        # One process may see a file later than another: they all do what one of them has to.
        if processes.any_of(not self.scores_path(kind, name).is_file()):
            scores = self.score(kind, self.weights(name), f"{name} on the {kind} set")
            self.keep(kind, name, scores)
            return scores
        return Scores.load(self.scores_path(kind, name))

    def keep(self, kind: str, name: str, scores: Scores) -> None:
        """Writes scores down."""
        if processes.first():
            scores.save(self.scores_path(kind, name))

    def forget_scores(self, *names: str) -> None:
        """Removes scores of models that are made anew: on GPUs, a second training differs in the last bits."""
        if processes.first():
            for kind in self.data.held_out:
                for name in names:
                    self.scores_path(kind, name).unlink(missing_ok=True)
        processes.barrier("forgotten")

    def score(self, kind: str, weights: Weights, description: str) -> Scores:
        """Scores of given weights on a set."""
        data = self.data.held_out[kind]
        source = evaluation_source(data, self.config.data, num_samples=self.trainer.frontend.num_samples)
        placement = self.trainer.placement
        placed = placement.replicate(weights)
        with self._stream(source, description) as stream:
            model = (self.trainer.graphdef, *placed)
            scores = score(model, self.trainer.frontend, stream, placement.put, data.clip_id)
        if scores.skipped:
            self.journal.say(f"{kind} set: {len(scores.skipped)} clips cannot be read: {', '.join(scores.skipped[:5])}")
        return dataclasses.replace(scores, mids=self.data.vocabulary.mids)

    def reestimated(self, weights: Weights) -> Weights:
        """The same parameters with batch statistics of their own, by one pass over the training set."""
        frontend, placement = self.trainer.frontend, self.trainer.placement
        source = plain_source(
            self.data.train, self.config.data, num_samples=frontend.num_samples, seed=self.config.seed
        )
        params, rest = placement.replicate(weights)
        with self._stream(source, "re-estimating batch statistics") as stream:
            return params, reestimate((self.trainer.graphdef, params, rest), frontend, stream, placement.put)

    @contextlib.contextmanager
    def _stream(self, source: EvaluationSource | TrainSource, description: str) -> Iterator[Iterator[Batch]]:
        """This process's part of the batches, with a bar; ends between two of them when the run is to stop."""
        rows = self.trainer.placement.rows(source.batch_size)
        found = batches(source, threads=max(2, self.config.data.workers), rows=rows)
        with self.journal.progress(description, source.num_batches) as bar:
            yield self._until_stopped(bar.over(found))

    def _until_stopped(self, stream: Iterator[Batch]) -> Iterator[Batch]:
        for batch in stream:
            self.stop.check_together()
            yield batch
