"""Experiment trackers: the curves of a run in TensorBoard, Weights & Biases, MLflow or one's own, the setting ``log``.

A tracker is made by a callable that takes, by name, any of ``directory`` (of the run), ``config`` (all values by their
command-line name), and ``step`` and ``epoch`` (how many are complete, 0 for a new run). It returns a :class:`Tracker`.
"""

from __future__ import annotations

import abc
import contextlib
import importlib.util
import json
import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from psla_jax import ingredients
from psla_jax.ingredients import Ingredient
from psla_jax.runtime import distributed
from psla_jax.runtime.files import atomic_text
from psla_jax.runtime.logging import TensorBoardWriter

FIELD = "log"
_MAX_PARAMS = 100
"""Number of parameters that MLflow accepts in one call."""


class TrackerError(ValueError):
    """A tracker that cannot be used; the message names the field and the remedy."""


class Tracker(Protocol):
    """Receives the curves of a run, in the primary process. An exception disables the tracker and not the run.

    A run that was interrupted is continued from its last checkpoint, so steps after it are received again.
    """

    def steps(self, values: Mapping[str, float], step: int) -> None:
        """Receives means over the training steps up to `step`, counted from 1: ``loss``, ``gradient_norm`` etc."""

    def epoch(self, values: Mapping[str, float], histograms: Mapping[str, np.ndarray], epoch: int) -> None:
        """Receives the metrics of an epoch, counted from 1, such as ``validation/mAP``, and values per class."""

    def results(self, values: Mapping[str, float]) -> None:
        """Receives the final metrics of every model, such as ``evaluation/weight_average_mAP``."""

    def close(self, complete: bool) -> None:
        """Ends tracking; `complete` is false if an exception or a signal ended the run."""


class TensorBoard:
    """Events over the epochs in the run directory, and over the steps in its folder ``steps``."""

    def __init__(self, directory: Path, step: int, epoch: int, log: Callable[[str], None]) -> None:
        self._epochs = TensorBoardWriter(directory, epoch, log)
        self._steps = TensorBoardWriter(directory / "steps", step + 1, log)

    def steps(self, values: Mapping[str, float], step: int) -> None:
        """Writes a point of each curve."""
        self._steps.scalars({f"train/{name}": value for name, value in values.items()}, step)

    def epoch(self, values: Mapping[str, float], histograms: Mapping[str, np.ndarray], epoch: int) -> None:
        """Writes a point of each curve, and the histograms."""
        for name, array in histograms.items():
            self._epochs.histogram(name, array, epoch)
        self._epochs.scalars(values, epoch)

    def results(self, values: Mapping[str, float]) -> None:
        """Does nothing: TensorBoard shows curves."""

    def close(self, complete: bool) -> None:
        """Closes the files."""
        with self._epochs, self._steps:
            pass


class _Remote(abc.ABC):
    """A tracker whose run has an id, and which would show a point twice that it receives twice.

    A file of the run directory holds the id and the last step and epoch, so that a resumed run continues there.
    """

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        self._sent: dict[str, Any] = {"run": "", "step": 0, "epoch": 0}
        if step:
            with contextlib.suppress(FileNotFoundError):
                self._sent = json.loads(path.read_text(encoding="utf-8"))

    def steps(self, values: Mapping[str, float], step: int) -> None:
        """Sends a point of each curve over the steps."""
        self._send_once("step", {f"step/{name}": value for name, value in values.items()}, {}, step)

    def epoch(self, values: Mapping[str, float], histograms: Mapping[str, np.ndarray], epoch: int) -> None:
        """Sends a point of each curve over the epochs, and the histograms."""
        self._send_once("epoch", values, histograms, epoch)

    def _send_once(self, axis: str, values: Mapping[str, float], histograms: Mapping[str, Any], number: int) -> None:
        if number > self._sent[axis]:
            self._send(axis, values, histograms, number)
            self._record(**{axis: number})

    def _record(self, **values: str | int) -> None:
        self._sent |= values
        with atomic_text(self._path) as file:
            file.write(json.dumps(self._sent) + "\n")

    @abc.abstractmethod
    def _send(self, axis: str, values: Mapping[str, float], histograms: Mapping[str, Any], number: int) -> None:
        """Sends values for a point of the axis ``step`` or ``epoch``."""


class WeightsAndBiases(_Remote):
    """A run of Weights & Biases; `options` are those of ``wandb.init``, such as ``project`` and ``group``."""

    def __init__(self, directory: Path, config: Mapping[str, Any], step: int, **options: Any) -> None:
        import wandb

        super().__init__(directory / "wandb.json", step)
        self._record(run=self._sent["run"] or uuid.uuid4().hex[:8])
        settings = {"project": "psla", "name": directory.name, "dir": str(directory), **options}
        run_id, values = self._sent["run"], dict(config)
        self._run = wandb.init(id=run_id, resume="allow", config=values, allow_val_change=True, **settings)
        self._histogram = wandb.Histogram
        for prefix, axis in (("step", "step"), ("train", "epoch"), ("validation", "epoch"), ("evaluation", "epoch")):
            self._run.define_metric(f"{prefix}/*", step_metric=axis)

    def _send(self, axis: str, values: Mapping[str, float], histograms: Mapping[str, Any], number: int) -> None:
        shown = {name: self._histogram(array[np.isfinite(array)]) for name, array in histograms.items()}
        self._run.log({**values, **shown, axis: number})

    def results(self, values: Mapping[str, float]) -> None:
        """Adds the results to the summary of the run."""
        self._run.summary.update(dict(values))

    def close(self, complete: bool) -> None:
        """Waits until everything is sent."""
        self._run.finish(exit_code=0 if complete else 1)


class MLflow(_Remote):
    """A run of MLflow, at its tracking URI (``MLFLOW_TRACKING_URI``).

    `experiment` is the name of the experiment; other `options` are those of ``mlflow.start_run``.
    """

    def __init__(
        self, directory: Path, config: Mapping[str, Any], step: int, experiment: str = "", **options: Any
    ) -> None:
        import mlflow

        super().__init__(directory / "mlflow.json", step)
        if experiment:
            mlflow.set_experiment(experiment)
        resumed, settings = self._sent["run"], {"run_name": directory.name, **options}
        # A run of the caller that is active is not ended, but becomes the parent of this one.
        run = mlflow.start_run(run_id=resumed or None, nested=True, **settings)
        self._mlflow = mlflow
        self._record(run=run.info.run_id)
        parameters = [] if resumed else list(config.items())  # MLflow refuses other values of the same parameter.
        for start in range(0, len(parameters), _MAX_PARAMS):
            mlflow.log_params(dict(parameters[start : start + _MAX_PARAMS]))

    def _send(self, axis: str, values: Mapping[str, float], histograms: Mapping[str, Any], number: int) -> None:
        self._mlflow.log_metrics(dict(values), step=number)

    def results(self, values: Mapping[str, float]) -> None:
        """Logs the results as metrics."""
        self._mlflow.log_metrics(dict(values))

    def close(self, complete: bool) -> None:
        """Ends the run of MLflow."""
        self._mlflow.end_run("FINISHED" if complete else "KILLED")


TRACKERS: dict[str, Callable[..., Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}
_OPTIONAL = ("wandb", "mlflow")
"""Trackers that need a package, and an extra of this one, of their name."""
_METHODS = ("steps", "epoch", "results", "close")


def require_available(trackers: Sequence[Ingredient]) -> None:
    """Raises IngredientError if a tracker cannot be found, and TrackerError if its package is not installed."""
    for text in map(ingredients.specification, trackers):
        ingredients.find(text, TRACKERS, FIELD)
        name = ingredients.parse(text)[0]
        if name in _OPTIONAL:
            spec = importlib.util.find_spec(name)
            if spec is None or spec.origin is None:  # A folder wandb/ of results is no package.
                raise TrackerError(
                    f"{FIELD} is {text!r}, and the package {name} is not installed: pip install 'psla_jax[{name}]'."
                )


class Trackers:
    """The trackers of a run. One that raises an exception is reported and disabled, since curves must not end a run."""

    def __init__(
        self,
        trackers: Sequence[Ingredient],
        directory: Path,
        config: Mapping[str, Any],
        log: Callable[[str], None],
    ) -> None:
        """Creates closed trackers, which receive nothing; `log` receives a line for one that is disabled."""
        self._texts = tuple(map(ingredients.specification, trackers))
        self._directory, self._config, self._log = directory, config, log
        self._open: dict[str, Tracker] = {}
        self._opened = False

    def open(self, step: int, epoch: int) -> None:
        """Starts the trackers after this many complete steps and epochs, unless they are; all processes must call it.

        Raises:
            IngredientError, TrackerError: a tracker of a new run cannot be started, or has no method of Tracker. If
                a resumed run cannot start it, because the network is down for example, it is only disabled.
        """
        if self._opened:
            return
        self._opened = True
        with distributed.agree():
            for text in self._texts:
                try:
                    self._open[text] = self._start(text, step, epoch)
                except TrackerError as error:
                    if not step:
                        raise
                    self._log(str(error))

    def _start(self, text: str, step: int, epoch: int) -> Tracker:
        available = {"directory": self._directory, "config": self._config, "step": step, "epoch": epoch}
        factory = ingredients.find(text, TRACKERS, FIELD)
        try:
            tracker = ingredients.call(factory, field=FIELD, log=self._log, **available)
        except ingredients.IngredientError:
            raise
        except Exception as error:
            reason = ingredients.reason(error)
            raise TrackerError(f"{FIELD}: {text} cannot be started ({reason}): correct or omit it.") from error
        missing = [name for name in _METHODS if not callable(getattr(tracker, name, None))]
        if missing:
            raise TrackerError(
                f"{FIELD}: {text} returns {type(tracker).__name__}, which has no method {missing[0]}: return a tracker "
                f"with {', '.join(_METHODS)}."
            )
        return tracker

    def steps(self, values: Mapping[str, float], step: int) -> None:
        """Passes on the values that are finite."""
        self._each(lambda tracker: tracker.steps(_finite(values), step))

    def epoch(self, values: Mapping[str, float], histograms: Mapping[str, np.ndarray], epoch: int) -> None:
        """Passes on the values that are finite, and the histograms."""
        self._each(lambda tracker: tracker.epoch(_finite(values), histograms, epoch))

    def results(self, values: Mapping[str, float]) -> None:
        """Passes on the values that are finite."""
        self._each(lambda tracker: tracker.results(_finite(values)))

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for text, tracker in list(self._open.items()):
            try:
                call(tracker)
            except Exception as error:
                self._log(f"{FIELD}: {text} failed and is disabled ({ingredients.reason(error)})")
                del self._open[text]

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._each(lambda tracker: tracker.close(kind is None))
        self._open.clear()


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if math.isfinite(value)}
