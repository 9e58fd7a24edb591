"""Implements ``psla calibrate``: scores clips, fits a calibration and writes it into the model directory."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from psla_jax.config import Channel
from psla_jax.data.datafile import Datafile
from psla_jax.data.datasets import data_notes, locate
from psla_jax.evaluation import score_cache
from psla_jax.evaluation.scores import Scores
from psla_jax.models.model_dir import find_model, fingerprint, load_model, read_card
from psla_jax.runtime.files import atomic_text, exists, same_file
from psla_jax.runtime.logging import Logger
from psla_jax.runtime.streams import STANDARD, is_standard_output
from psla_jax.tagging.calibration.fit import FitOptions, Method, crossfit, fit
from psla_jax.tagging.calibration.metrics import calibration_metrics, decision_metrics
from psla_jax.tagging.calibration.model import CALIBRATION, CalibratedClass, Calibration, CalibrationError
from psla_jax.tagging.calibration.report import print_report
from psla_jax.tagging.defaults import DEFAULTS, Policy
from psla_jax.tagging.tagger import Failure, Options, Tagger
from psla_jax.vocabulary.vocabulary import Vocabulary

FIXED_THRESHOLDS = (0.5, DEFAULTS.threshold)
"""Common thresholds that the fitted ones are compared with."""


@dataclass(frozen=True)
class Request:
    """Model, data and options of a calibration. The fields are the options of ``psla calibrate``."""

    model: str
    data: str
    method: Method = "sigmoid"
    precision: float | None = None
    min_positives: int = 10
    folds: int = 5
    policy: Policy | Literal[""] = ""
    channel: Channel | None = None
    batch_size: int = 0
    trust: bool = False
    keep_scores: bool = True
    json: str = ""
    overwrite: bool = False


def calibrate(request: Request) -> Calibration:
    """Scores the clips as ``psla tag`` does, fits a calibration and writes it into the model directory.

    Raises:
        ValueError: an error class of this package; the message names the model or file and the remedy.
    """
    if is_standard_output(request.json):
        request = dataclasses.replace(request, json=STANDARD)
    options = FitOptions(request.method, request.precision, request.min_positives, request.folds)
    directory = find_model(Path(request.model))
    card = read_card(directory)
    _require_writable(directory, request)
    logger = Logger()
    log = functools.partial(print, file=sys.stderr) if request.json == STANDARD else logger.info
    data = Datafile.read(locate(request.data, log), card.vocabulary)
    for note in data_notes(data, held_out=True):
        log(note)
    scores = _score(directory, card.vocabulary, data, request, logger, log)
    source = {"data": Path(data.source).name, "sha256": data.sha256}
    scoring = {
        "policy": request.policy or DEFAULTS.policy,
        "overlap": DEFAULTS.overlap,
        "channel": request.channel or card.channel,
    }
    counts = {"clips": len(scores.labels), "unreadable": len(scores.skipped)}
    fitted = {**source, **scoring, **counts, **dataclasses.asdict(options)}
    calibration = _fit(fingerprint(directory, card), card.vocabulary, scores, options, fitted)
    try:
        path = calibration.write(directory)
    finally:  # The result is printed even if the model directory cannot be written.
        _publish(calibration, card.vocabulary, request, logger)
    log(f"{path}: written; psla tag uses these thresholds and probabilities from now on")
    return calibration


def _publish(calibration: Calibration, vocabulary: Vocabulary, request: Request, logger: Logger) -> None:
    """Prints the calibration, as a report or as JSON, and writes the JSON file."""
    if request.json == STANDARD:
        sys.stdout.write(calibration.to_json())
        return
    print_report(logger.console, calibration, vocabulary)
    if request.json:
        with atomic_text(request.json) as file:
            file.write(calibration.to_json())


def _require_writable(directory: Path, request: Request) -> None:
    """Raises CalibrationError if an output exists and may not be overwritten, or has no directory."""
    for path in (str(directory / CALIBRATION), request.json):
        if path not in ("", STANDARD) and exists(path) and not request.overwrite:
            raise CalibrationError(f"{path} exists already: replace it with --overwrite.")
    if same_file(request.json, request.data):
        raise CalibrationError(f"--json {request.json} would replace the datafile: name another file.")
    folder = os.path.dirname(request.json) or "."
    if not os.path.isdir(folder):
        raise CalibrationError(f"the directory {folder} of {request.json} does not exist: create it, or change --json.")


def _score(
    directory: Path, vocabulary: Vocabulary, data: Datafile, request: Request, logger: Logger, log: Callable[..., None]
) -> Scores:
    """Returns the scores of the clips, from the cache if neither model nor data have changed since an earlier call."""
    options = Options(
        policy=request.policy or DEFAULTS.policy,
        channel=request.channel or read_card(directory).channel,
        batch_size=request.batch_size,
    )
    compute = functools.partial(_tag_clips, directory, data, options, request.trust, logger)
    if request.keep_scores:
        settings = ("tag", options.policy, f"{options.overlap}", f"{options.channel}")
        note = f"{request.model}: cached scores of an earlier call are used (--no-keep-scores computes them again)"
        scores = score_cache.cached(directory, vocabulary, data, settings, compute, lambda: log(note), log)
    else:
        scores = compute()
    for note in scores.notes():
        log(note)
    _require_finite(scores, vocabulary)
    return scores


def _tag_clips(directory: Path, data: Datafile, options: Options, trust: bool, logger: Logger) -> Scores:
    """Scores every readable clip with a Tagger, so that the calibration is fitted to the scores of ``psla tag``."""
    tagger = Tagger([(str(directory), load_model(directory, trust=trust))], options)
    with logger.progress(f"scoring {data.source}", len(data)) as bar:
        tagger.on_compile = bar.describe
        results = enumerate(bar.track(tagger.tag_all(data.audio(i) for i in range(len(data)))))
        rows = {clip: result.scores for clip, result in results if not isinstance(result, Failure)}
    if not rows:
        raise CalibrationError(f"none of the {len(data)} clips of {data.source} can be read: check it with psla check.")
    labels = np.stack([data.multi_hot(clip) for clip in rows])
    clip_ids = np.array([data.clip_id(clip) for clip in rows], dtype=str)
    skipped = tuple(data.clip_id(clip) for clip in range(len(data)) if clip not in rows)
    return Scores(clip_ids, np.stack(list(rows.values())), labels, skipped)


def _require_finite(scores: Scores, vocabulary: Vocabulary) -> None:
    invalid = np.argwhere(~np.isfinite(scores.scores))
    if len(invalid):
        clip, column = invalid[0]
        raise CalibrationError(
            f"the score of {scores.clips[clip]} for {vocabulary.mids[column]} is {scores.scores[clip, column]}: "
            "check the model with psla check-model."
        )


# ---- fit and metrics


def _fit(
    model: str, vocabulary: Vocabulary, scores: Scores, options: FitOptions, fitted: dict[str, Any]
) -> Calibration:
    """Fits to all clips, and evaluates raw scores, held-out clips, and the clips of the fit."""
    values, labels = scores.scores, scores.labels
    calibrators = fit(values, labels, options)
    held_out, held_out_present = crossfit(values, labels, options)
    views = {
        "raw": (values, None),
        "held_out": (held_out, decision_metrics(held_out_present, labels)),
        "fitted": (calibrators.probabilities(values), decision_metrics(calibrators.present(values), labels)),
    }
    positives = (labels > 0.5).sum(axis=0)
    has_positive = positives > 0
    metrics: dict[str, Any] = {
        name: _overall_metrics(calibration_metrics(probabilities[:, has_positive], labels[:, has_positive]), decisions)
        for name, (probabilities, decisions) in views.items()
    }
    for threshold in FIXED_THRESHOLDS:
        metrics[f"score >= {threshold:g}"] = _overall_metrics(decision_metrics(values >= threshold, labels))
    classes = tuple(
        CalibratedClass(mid, int(positives[i]), calibrator, _class_metrics(views, labels, i) if has_positive[i] else {})
        for i, (mid, calibrator) in enumerate(zip(vocabulary.mids, calibrators.own))
    )
    return Calibration(model, fitted, metrics, calibrators.shared, classes)


def _overall_metrics(*parts: object) -> dict[str, float | None]:
    """Returns the metrics over all clips and classes, by name, of metrics dataclasses or None."""
    items = [item for part in parts if part is not None for item in vars(part).items()]
    return {name: _rounded(value) for name, value in items if name != "per_class"}


def _class_metrics(views: dict[str, Any], labels: np.ndarray, i: int) -> dict[str, Any]:
    """Returns the metrics of class `i` in each view."""
    metrics: dict[str, Any] = {}
    for name, (probabilities, decisions) in views.items():
        measured = calibration_metrics(probabilities[:, i : i + 1], labels[:, i : i + 1])
        metrics[name] = {"brier": _rounded(measured.brier), "ece": _rounded(measured.ece)}
        if decisions is not None:
            metrics[name] |= {metric: _rounded(column[i]) for metric, column in decisions.per_class.items()}
    return metrics


def _rounded(value: float) -> float | None:
    """Rounds to six significant digits, which no processor's rounding errors reach; None for NaN, which JSON lacks."""
    return None if math.isnan(value) else float(f"{value:.6g}")
