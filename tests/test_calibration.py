"""What a model directory keeps of a calibration, and what is refused."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
from sounds import VOCABULARY

from psla_jax.calibration import (
    CALIBRATION,
    CalibratedClass,
    Calibration,
    CalibrationError,
    Decider,
    Isotonic,
    Sigmoid,
    read,
)
from psla_jax.ontology import Vocabulary

SHARED = Decider(0.25, Sigmoid(1.0, 0.0))
CLASSES = (
    CalibratedClass("/t/low", 30, Decider(0.5, Sigmoid(2.0, -1.0)), {"raw": {"brier": 0.1}}),
    CalibratedClass("/t/high", 12, Decider(math.inf, Isotonic((0.2, 0.8), (0.0, 0.5))), {}),
    CalibratedClass("/t/noise", 2, None, {}),
    CalibratedClass("/t/never", 0, None, {}),
)
MADE = Calibration("the model", {"data": "val.json", "clips": 44}, {"raw": {"brier": None}}, SHARED, CLASSES)


def test_scores_become_probabilities_and_decisions():
    scores = np.array([[0.5, 0.5, 0.5, 0.125], [0.25, 0.9, 1.25, -0.5]], np.float32)
    found = MADE.deciders.probabilities(scores)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0], [1 / (1 + math.e), 0.25, 0.5, 0.125], rtol=1e-6)
    np.testing.assert_allclose(found[1], [1 / (1 + 9 * math.e), 0.5, 1 - 1e-6, 1e-6], rtol=1e-3)
    np.testing.assert_array_equal(MADE.deciders.probabilities(scores[1]), found[1])
    assert MADE.deciders.present(scores).tolist() == [[True, False, True, False], [False, False, True, False]]
    assert MADE.event_thresholds.tolist() == [0.5, math.inf, 0.25, 0.25]


def test_it_is_read_back_as_it_was(tmp_path):
    assert read(tmp_path, VOCABULARY, lambda: pytest.fail("there is nothing to compare with")) is None
    assert MADE.write(tmp_path) == tmp_path / CALIBRATION
    assert read(tmp_path, VOCABULARY, lambda: "the model") == MADE
    assert [p.name for p in tmp_path.iterdir()] == [CALIBRATION]
    text = (tmp_path / CALIBRATION).read_text()
    assert text == MADE.to_json()
    assert json.loads(text)["classes"][1]["threshold"] is None
    assert copy.deepcopy(MADE) is MADE


def changed(**fields) -> str:
    return json.dumps(json.loads(MADE.to_json()) | fields)


ONE = json.loads(MADE.to_json())["classes"]
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
    "a threshold of NaN": (changed(shared={"threshold": math.nan, "curve": SHARED.curve.to_json()}), "NaN"),
    "fewer classes": (changed(classes=ONE[:3]), "was fitted to other classes"),
    "another order": (changed(classes=ONE[::-1]), "was fitted to other classes"),
    "another model": (changed(model="some other"), "was fitted to another model than the one it lies in"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_does_not_belong_there_is_refused(tmp_path, what):
    text, message = BROKEN[what]
    (tmp_path / CALIBRATION).write_text(text)
    with pytest.raises(CalibrationError, match=message) as refused:
        read(tmp_path, VOCABULARY, lambda: "the model")
    assert str(refused.value).startswith(str(tmp_path / CALIBRATION))
    assert str(refused.value).endswith("fit it again with psla calibrate --overwrite True, or delete it.")


def test_other_classes_are_refused(tmp_path):
    MADE.write(tmp_path)
    others = Vocabulary(("/t/low", "/t/high", "/t/noise", "/t/other"), VOCABULARY.names)
    with pytest.raises(CalibrationError, match="other classes"):
        read(tmp_path, others, lambda: "the model")
