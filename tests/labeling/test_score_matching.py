"""Scores from an .npz, a CSV or a run directory, matched to the clips of a datafile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from psla_jax.data import datafile
from psla_jax.data.clip_ids import ClipIdError
from psla_jax.data.datafile import Datafile
from psla_jax.evaluation.scores import Scores, ScoresError
from psla_jax.labeling import score_matching
from psla_jax.vocabulary.vocabulary import Vocabulary

VOCABULARY = Vocabulary(("a", "b", "c"), ("A", "B", "C"))
LABELS = [["a"], ["b", "c"], [], ["c"], ["a", "b"]]
HOT = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 0], [0, 0, 1], [1, 1, 0]], np.float32)
VALUES = np.arange(15, dtype=np.float32).reshape(5, 3) / 16


@pytest.fixture
def data(tmp_path: Path) -> Datafile:
    datafile.write(tmp_path / "d.json", [(f"audio/{i}.wav", mids) for i, mids in enumerate(LABELS)])
    return Datafile.read(tmp_path / "d.json", VOCABULARY)


def save(path: Path, data: Datafile, order=(3, 0, 4, 1, 2), mids: tuple[str, ...] = (), columns=(0, 1, 2)) -> str:
    rows = list(order)
    clips = np.array([data.wav(i) for i in rows])
    Scores(clips, VALUES[rows][:, list(columns)], HOT[rows][:, list(columns)], mids=mids).save(path)
    return str(path)


def aligned(matched: score_matching.MatchedScores) -> np.ndarray:
    """Returns the scores in the order of the datafile, NaN for a clip without scores."""
    values, rows = matched.scores.values, matched.scores.rows
    return np.where(rows[:, None] >= 0, values[rows], np.nan)


def test_rows_are_matched_by_clip_id(tmp_path, data):
    matched = score_matching.read(save(tmp_path / "s.npz", data), data, VOCABULARY)
    np.testing.assert_array_equal(aligned(matched), VALUES)
    assert matched.notes == (f"{tmp_path / 's.npz'}: scores of 5 of 5 clips, matched 5 by path",)


def test_moved_and_converted_recordings_are_matched_by_name(tmp_path, data):
    clips = np.array([f"/elsewhere/{i}.flac" for i in (2, 1, 0)])
    np.savez(tmp_path / "s.npz", clips=clips, scores=VALUES[[2, 1, 0]])
    matched = score_matching.read(str(tmp_path / "s.npz"), data, VOCABULARY)
    np.testing.assert_array_equal(aligned(matched)[:3], VALUES[:3])
    assert np.isnan(aligned(matched)[3:]).all()
    assert matched.notes[0].endswith("scores of 3 of 5 clips, matched 3 by file name")
    assert matched.notes[1] == f"no scores, labels unchanged: 2 clips, such as {data.wav(3)}"


def test_an_ambiguous_name_has_no_scores(tmp_path, data):
    np.savez(tmp_path / "s.npz", clips=np.array(["/x/0.wav", "/y/0.wav", "/x/1.wav"]), scores=VALUES[:3])
    matched = score_matching.read(str(tmp_path / "s.npz"), data, VOCABULARY)
    assert matched.scores.rows.tolist() == [-1, 2, -1, -1, -1]
    assert any(note.startswith("ambiguous because other clips share their name") for note in matched.notes)


def test_columns_are_matched_by_mid(tmp_path, data):
    columns, mids = (2, 0, 1), ("c", "a", "b")
    matched = score_matching.read(save(tmp_path / "s.npz", data, mids=mids, columns=columns), data, VOCABULARY)
    np.testing.assert_array_equal(aligned(matched), VALUES)
    fewer = Vocabulary(("c", "a"), ("C", "A"))
    two = Datafile.read(_only(tmp_path, "c", "a"), fewer)
    matched = score_matching.read(str(tmp_path / "s.npz"), two, fewer)
    np.testing.assert_array_equal(aligned(matched), VALUES[:, [2, 0]])


def _only(folder: Path, *mids: str) -> Path:
    records = [(f"audio/{i}.wav", [mid for mid in labels if mid in mids]) for i, labels in enumerate(LABELS)]
    datafile.write(folder / "only.json", records)
    return folder / "only.json"


def test_the_classes_of_a_runs_scores_are_those_of_its_label_file(tmp_path, data):
    (tmp_path / "run" / "scores").mkdir(parents=True)
    Vocabulary(("c", "a", "b"), ("C", "A", "B")).write(tmp_path / "run" / "labels.csv")
    file = save(tmp_path / "run" / "scores" / "train_average.npz", data, columns=(2, 0, 1))
    np.testing.assert_array_equal(aligned(score_matching.read(file, data, VOCABULARY)), VALUES)


def test_the_preferred_scores_of_a_run_are_used(tmp_path, data):
    scores = tmp_path / "run" / "scores"
    others = Scores(np.array(["/z/1.wav", "/z/7.wav"]), VALUES[:2], HOT[:2])
    others.save(scores / "evaluation_ensemble.npz")
    for name in ("epoch_001", "epoch_002", "average", "ensemble", "plain_average"):
        save(scores / f"train_{name}.npz", data)
        matched = score_matching.read(str(tmp_path / "run"), data, VOCABULARY)
        best = {"plain_average": "ensemble"}.get(name, name)
        assert matched.notes[0] == f"{scores / f'train_{best}.npz'}: scores of 5 of 5 clips, matched 5 by path"


def test_a_run_without_scores_of_the_clips_is_an_error_with_the_remedy(tmp_path, data):
    Scores(np.array(["/z/8.wav"]), VALUES[:1], HOT[:1]).save(tmp_path / "run" / "scores" / "evaluation_ensemble.npz")
    with pytest.raises(ScoresError, match=r"compute them with psla evaluate .*run --data .*d\.json --save S\.npz"):
        score_matching.read(str(tmp_path / "run"), data, VOCABULARY)


def test_the_references_csv_is_used_in_order_with_a_note(tmp_path, data):
    np.savetxt(tmp_path / "predictions.csv", VALUES, delimiter=",")
    matched = score_matching.read(str(tmp_path / "predictions.csv"), data, VOCABULARY)
    np.testing.assert_array_equal(aligned(matched), VALUES)
    assert "row i is assumed to belong to clip i" in matched.notes[0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (VALUES[:4], r"4 rows and 3 columns, but .* has 5 clips and 3 classes: a file without clip ids"),
        (VALUES[:, :2], r"5 rows and 2 columns"),
        (np.where(VALUES == 7 / 16, np.nan, VALUES), r"the score nan for b of row 2"),
    ],
)
def test_a_csv_that_does_not_match_is_rejected(tmp_path, data, rows, message):
    np.savetxt(tmp_path / "predictions.csv", rows, delimiter=",")
    with pytest.raises(ScoresError, match=message):
        score_matching.read(str(tmp_path / "predictions.csv"), data, VOCABULARY)


@pytest.mark.parametrize(
    ("text", "message"), [("", "is empty"), ("a,b,c\n", "nor a CSV of numbers"), ("1,2\n3\n", "nor")]
)
def test_files_of_other_formats_are_rejected(tmp_path, data, text, message):
    (tmp_path / "predictions.csv").write_text(text)
    with pytest.raises(ScoresError, match=message):
        score_matching.read(str(tmp_path / "predictions.csv"), data, VOCABULARY)
    with pytest.raises(ScoresError, match="there are no scores at"):
        score_matching.read(str(tmp_path / "nowhere.npz"), data, VOCABULARY)


def test_a_damaged_or_malformed_npz_is_rejected(tmp_path, data):
    content = Path(save(tmp_path / "s.npz", data)).read_bytes()
    (tmp_path / "half.npz").write_bytes(content[: len(content) // 2])
    np.savez(tmp_path / "other.npz", predictions=VALUES)
    np.savez(tmp_path / "flat.npz", clips=np.array(["a"]), scores=VALUES[0])
    for name in ("half", "other", "flat"):
        with pytest.raises(ScoresError, match=rf"{name}\.npz"):
            score_matching.read(str(tmp_path / f"{name}.npz"), data, VOCABULARY)


@pytest.mark.parametrize("invalid", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_rejected_with_clip_and_class(tmp_path, data, invalid):
    values = VALUES.copy()
    values[3, 2] = invalid
    np.savez(tmp_path / "s.npz", clips=np.array([data.wav(i) for i in range(5)]), scores=values)
    with pytest.raises(ScoresError, match=rf"the score {invalid} for c of .*3\.wav"):
        score_matching.read(str(tmp_path / "s.npz"), data, VOCABULARY)


def test_scores_of_other_classes_are_rejected(tmp_path, data):
    file = save(tmp_path / "s.npz", data, mids=("a", "b", "x"))
    with pytest.raises(ScoresError, match=r"a different set of classes, without 1 of the 3, such as 'c'"):
        score_matching.read(file, data, VOCABULARY)
    file = save(tmp_path / "two.npz", data, columns=(0, 1))
    with pytest.raises(ScoresError, match=r"scores of 2 classes, and the label file has 3"):
        score_matching.read(file, data, VOCABULARY)
    file = save(tmp_path / "named.npz", data, mids=("a", "b"))
    with pytest.raises(ScoresError, match=r"scores of 3 classes, and it names 2"):
        score_matching.read(file, data, VOCABULARY)


def test_another_class_order_is_detected_by_the_labels_in_the_score_file(tmp_path, data):
    file = save(tmp_path / "s.npz", data, columns=(1, 2, 0))
    with pytest.raises(ScoresError, match=r"of the 6 labels in .*, only 2 are in the datafile"):
        score_matching.read(file, data, VOCABULARY)


def test_two_clips_with_one_id_are_rejected(tmp_path, data):
    clips = np.array([data.wav(i) for i in (0, 1, 0)])
    np.savez(tmp_path / "s.npz", clips=clips, scores=VALUES[:3])
    with pytest.raises(ClipIdError, match=r"clips 0 and 2 of .*s\.npz are both .*0\.wav"):
        score_matching.read(str(tmp_path / "s.npz"), data, VOCABULARY)
    datafile.write(tmp_path / "twice.json", [("audio/0.wav", ["a"]), ("audio/0.wav", ["b"])])
    twice = Datafile.read(tmp_path / "twice.json", VOCABULARY)
    with pytest.raises(ClipIdError, match=r"clips 0 and 1 of .*twice\.json"):
        score_matching.read(save(tmp_path / "good.npz", data), twice, VOCABULARY)


def test_scores_of_other_recordings_are_rejected(tmp_path, data):
    np.savez(tmp_path / "s.npz", clips=np.array(["/z/x.wav"]), scores=VALUES[:1])
    with pytest.raises(
        ScoresError, match=r"none of the 5 clips .*0\.wav, is among the 1 of .*s\.npz, such as /z/x\.wav"
    ):
        score_matching.read(str(tmp_path / "s.npz"), data, VOCABULARY)
