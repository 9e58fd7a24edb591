"""Applying a calibration, and reading and writing its file."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from sounds import VOCABULARY

from psla_jax.tagging.calibration.model import (
    CALIBRATION,
    CalibratedClass,
    Calibration,
    CalibrationError,
    Calibrator,
    Isotonic,
    Sigmoid,
)
from psla_jax.vocabulary.vocabulary import Vocabulary

SHARED = Calibrator(0.25, Sigmoid(1.0, 0.0))
CLASSES = (
    CalibratedClass("/t/low", 30, Calibrator(0.5, Sigmoid(2.0, -1.0)), {"raw": {"brier": 0.1}}),
    CalibratedClass("/t/high", 12, Calibrator(math.inf, Isotonic((0.2, 0.8), (0.0, 0.5))), {}),
    CalibratedClass("/t/noise", 2, None, {}),
    CalibratedClass("/t/never", 0, None, {}),
)
EXAMPLE = Calibration("the model", {"data": "val.json", "clips": 44}, {"raw": {"brier": None}}, SHARED, CLASSES)


def test_scores_become_probabilities_and_decisions():
    scores = np.array([[0.5, 0.5, 0.5, 0.125], [0.25, 0.9, 1.25, -0.5]], np.float32)
    probabilities = EXAMPLE.calibrators.probabilities(scores)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities[0], [1 / (1 + math.e), 0.25, 0.5, 0.125], rtol=1e-6)
    np.testing.assert_allclose(probabilities[1], [1 / (1 + 9 * math.e), 0.5, 1 - 1e-6, 1e-6], rtol=1e-3)
    np.testing.assert_array_equal(EXAMPLE.calibrators.probabilities(scores[1]), probabilities[1])
    assert EXAMPLE.calibrators.present(scores).tolist() == [[True, False, True, False], [False, False, True, False]]
    assert EXAMPLE.event_thresholds.tolist() == [0.5, math.inf, 0.25, 0.25]


def test_a_written_calibration_is_read_back(tmp_path):
    assert Calibration.read(tmp_path, VOCABULARY, lambda: pytest.fail("the fingerprint is not needed")) is None
    assert EXAMPLE.write(tmp_path) == tmp_path / CALIBRATION
    assert Calibration.read(tmp_path, VOCABULARY, lambda: "the model") == EXAMPLE
    assert [p.name for p in tmp_path.iterdir()] == [CALIBRATION]
    text = (tmp_path / CALIBRATION).read_text()
    assert text == EXAMPLE.to_json()
    assert json.loads(text)["classes"][1]["threshold"] is None
    assert copy.deepcopy(EXAMPLE) is EXAMPLE


def changed(**fields) -> str:
    return json.dumps(json.loads(EXAMPLE.to_json()) | fields)


CLASS_ENTRIES = json.loads(EXAMPLE.to_json())["classes"]
BROKEN = {
    "no JSON": ("{", r"cannot be read \(Expecting"),
    "another format": (changed(format=2), "its format is 2, this version reads 1"),
    "a section is missing": ('{"format": 1}', "'classes' is missing"),
    "a list": ("[]", "cannot be read"),
    "a curve of two lengths": (
        changed(shared={"threshold": 1, "curve": {"scores": [1], "probabilities": []}}),
        "1 scores and 0 probabilities",
    ),
    "a curve of NaN": (changed(shared={"threshold": 1, "curve": {"slope": math.nan, "intercept": 0}}), "slope and"),
    "a threshold of NaN": (changed(shared={"threshold": math.nan, "curve": asdict(SHARED.curve)}), "NaN"),
    "fewer classes": (changed(classes=CLASS_ENTRIES[:3]), "was fitted to other classes"),
    "another order": (changed(classes=CLASS_ENTRIES[::-1]), "was fitted to other classes"),
    "another model": (changed(model="some other"), "was fitted to another model, as its fingerprint does not match"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_invalid_calibration_is_refused(tmp_path, name):
    text, message = BROKEN[name]
    (tmp_path / CALIBRATION).write_text(text)
    with pytest.raises(CalibrationError, match=message) as refused:
        Calibration.read(tmp_path, VOCABULARY, lambda: "the model")
    assert str(refused.value).startswith(str(tmp_path / CALIBRATION))
    assert str(refused.value).endswith("fit it again with psla calibrate --overwrite, or delete it.")


def test_other_classes_are_refused(tmp_path):
    EXAMPLE.write(tmp_path)
    others = Vocabulary(("/t/low", "/t/high", "/t/noise", "/t/other"), VOCABULARY.names)
    with pytest.raises(CalibrationError, match="other classes"):
        Calibration.read(tmp_path, others, lambda: "the model")
