"""Scores from an .npz, a table or a run, laid beside the clips of a datafile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from psla_jax import score_files
from psla_jax.data import datafile
from psla_jax.data.clips import ClipIdError
from psla_jax.data.datafile import Datafile
from psla_jax.ontology import Vocabulary
from psla_jax.scores import Scores, ScoresError

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


def aligned(found: score_files.Found) -> np.ndarray:
    """The scores in the order of the datafile, NaN for a clip that has none."""
    values, rows = found.scores.values, found.scores.rows
    return np.where(rows[:, None] >= 0, values[rows], np.nan)


def test_rows_are_matched_by_clip_id(tmp_path, data):
    found = score_files.read(save(tmp_path / "s.npz", data), data, VOCABULARY)
    np.testing.assert_array_equal(aligned(found), VALUES)
    assert found.notes == (f"{tmp_path / 's.npz'}: scores of 5 of 5 clips, matched 5 by path",)


def test_moved_and_converted_recordings_are_matched_by_name(tmp_path, data):
    clips = np.array([f"/elsewhere/{i}.flac" for i in (2, 1, 0)])
    np.savez(tmp_path / "s.npz", clips=clips, scores=VALUES[[2, 1, 0]])
    found = score_files.read(str(tmp_path / "s.npz"), data, VOCABULARY)
    np.testing.assert_array_equal(aligned(found)[:3], VALUES[:3])
    assert np.isnan(aligned(found)[3:]).all()
    assert found.notes[0].endswith("scores of 3 of 5 clips, matched 3 by file name")
    assert found.notes[1] == f"without scores, so that labels stay as they are: 2 clips, such as {data.wav(3)}"


def test_an_ambiguous_name_has_no_scores(tmp_path, data):
    np.savez(tmp_path / "s.npz", clips=np.array(["/x/0.wav", "/y/0.wav", "/x/1.wav"]), scores=VALUES[:3])
    found = score_files.read(str(tmp_path / "s.npz"), data, VOCABULARY)
    assert found.scores.rows.tolist() == [-1, 2, -1, -1, -1]
    assert any(note.startswith("ambiguous, as other clips have their name") for note in found.notes)


def test_columns_are_matched_by_mid(tmp_path, data):
    columns, mids = (2, 0, 1), ("c", "a", "b")
    found = score_files.read(save(tmp_path / "s.npz", data, mids=mids, columns=columns), data, VOCABULARY)
    np.testing.assert_array_equal(aligned(found), VALUES)
    fewer = Vocabulary(("c", "a"), ("C", "A"))
    two = Datafile.read(_only(tmp_path, "c", "a"), fewer)
    found = score_files.read(str(tmp_path / "s.npz"), two, fewer)
    np.testing.assert_array_equal(aligned(found), VALUES[:, [2, 0]])


def _only(folder: Path, *mids: str) -> Path:
    kept = [(f"audio/{i}.wav", [mid for mid in labels if mid in mids]) for i, labels in enumerate(LABELS)]
    datafile.write(folder / "only.json", kept)
    return folder / "only.json"


def test_a_runs_own_label_file_says_which_classes_its_scores_are_of(tmp_path, data):
    (tmp_path / "run" / "scores").mkdir(parents=True)
    Vocabulary(("c", "a", "b"), ("C", "A", "B")).write(tmp_path / "run" / "labels.csv")
    file = save(tmp_path / "run" / "scores" / "train_average.npz", data, columns=(2, 0, 1))
    np.testing.assert_array_equal(aligned(score_files.read(file, data, VOCABULARY)), VALUES)


def test_of_a_run_the_best_scores_of_these_clips_are_taken(tmp_path, data):
    scores = tmp_path / "run" / "scores"
    others = Scores(np.array(["/z/1.wav", "/z/7.wav"]), VALUES[:2], HOT[:2])
    others.save(scores / "evaluation_ensemble.npz")
    for name in ("epoch_001", "epoch_002", "average", "ensemble", "plain_average"):
        save(scores / f"train_{name}.npz", data)
        found = score_files.read(str(tmp_path / "run"), data, VOCABULARY)
        best = {"plain_average": "ensemble"}.get(name, name)
        assert found.notes[0] == f"{scores / f'train_{best}.npz'}: scores of 5 of 5 clips, matched 5 by path"


def test_a_run_without_scores_of_these_clips_says_how_to_make_them(tmp_path, data):
    Scores(np.array(["/z/8.wav"]), VALUES[:1], HOT[:1]).save(tmp_path / "run" / "scores" / "evaluation_ensemble.npz")
    with pytest.raises(ScoresError, match=r"make them with psla evaluate .*run --data .*d\.json --save S\.npz"):
        score_files.read(str(tmp_path / "run"), data, VOCABULARY)


def test_the_references_table_is_taken_in_order_and_that_is_said(tmp_path, data):
    np.savetxt(tmp_path / "predictions.csv", VALUES, delimiter=",")
    found = score_files.read(str(tmp_path / "predictions.csv"), data, VOCABULARY)
    np.testing.assert_array_equal(aligned(found), VALUES)
    assert "order is trusted" in found.notes[0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (VALUES[:4], r"4 rows and 3 columns, and there are 5 clips .* and 3 classes: without clip ids"),
        (VALUES[:, :2], r"5 rows and 2 columns"),
        (np.where(VALUES == 7 / 16, np.nan, VALUES), r"the score nan for b of row 2"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path, data, rows, message):
    np.savetxt(tmp_path / "predictions.csv", rows, delimiter=",")
    with pytest.raises(ScoresError, match=message):
        score_files.read(str(tmp_path / "predictions.csv"), data, VOCABULARY)


@pytest.mark.parametrize(
    ("text", "message"), [("", "is empty"), ("a,b,c\n", "nor a CSV of numbers"), ("1,2\n3\n", "nor")]
)
def test_files_of_another_kind_are_refused(tmp_path, data, text, message):
    (tmp_path / "predictions.csv").write_text(text)
    with pytest.raises(ScoresError, match=message):
        score_files.read(str(tmp_path / "predictions.csv"), data, VOCABULARY)
    with pytest.raises(ScoresError, match="there are no scores at"):
        score_files.read(str(tmp_path / "nowhere.npz"), data, VOCABULARY)


def test_an_npz_that_is_damaged_or_of_another_form_is_refused(tmp_path, data):
    whole = Path(save(tmp_path / "s.npz", data)).read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    np.savez(tmp_path / "other.npz", predictions=VALUES)
    np.savez(tmp_path / "flat.npz", clips=np.array(["a"]), scores=VALUES[0])
    for name in ("half", "other", "flat"):
        with pytest.raises(ScoresError, match=rf"{name}\.npz"):
            score_files.read(str(tmp_path / f"{name}.npz"), data, VOCABULARY)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_no_numbers_are_refused_with_clip_and_class(tmp_path, data, bad):
    values = VALUES.copy()
    values[3, 2] = bad
    np.savez(tmp_path / "s.npz", clips=np.array([data.wav(i) for i in range(5)]), scores=values)
    with pytest.raises(ScoresError, match=rf"the score {bad} for c of .*3\.wav"):
        score_files.read(str(tmp_path / "s.npz"), data, VOCABULARY)


def test_scores_of_other_classes_are_refused(tmp_path, data):
    file = save(tmp_path / "s.npz", data, mids=("a", "b", "x"))
    with pytest.raises(ScoresError, match=r"another set of classes, without 1 of the 3, such as 'c'"):
        score_files.read(file, data, VOCABULARY)
    file = save(tmp_path / "two.npz", data, columns=(0, 1))
    with pytest.raises(ScoresError, match=r"scores of 2 classes, and the label file has 3"):
        score_files.read(file, data, VOCABULARY)
    file = save(tmp_path / "named.npz", data, mids=("a", "b"))
    with pytest.raises(ScoresError, match=r"scores of 3 classes, and it names 2"):
        score_files.read(file, data, VOCABULARY)


def test_scores_in_another_order_of_classes_are_noticed_by_the_labels_kept_with_them(tmp_path, data):
    file = save(tmp_path / "s.npz", data, columns=(1, 2, 0))
    with pytest.raises(ScoresError, match=r"of the 6 labels kept in .*, 2 are in the datafile"):
        score_files.read(file, data, VOCABULARY)


def test_two_clips_with_one_id_are_refused(tmp_path, data):
    clips = np.array([data.wav(i) for i in (0, 1, 0)])
    np.savez(tmp_path / "s.npz", clips=clips, scores=VALUES[:3])
    with pytest.raises(ClipIdError, match=r"clips 0 and 2 of .*s\.npz are both .*0\.wav"):
        score_files.read(str(tmp_path / "s.npz"), data, VOCABULARY)
    datafile.write(tmp_path / "twice.json", [("audio/0.wav", ["a"]), ("audio/0.wav", ["b"])])
    twice = Datafile.read(tmp_path / "twice.json", VOCABULARY)
    with pytest.raises(ClipIdError, match=r"clips 0 and 1 of .*twice\.json"):
        score_files.read(save(tmp_path / "good.npz", data), twice, VOCABULARY)


def test_scores_of_other_recordings_are_refused(tmp_path, data):
    np.savez(tmp_path / "s.npz", clips=np.array(["/z/x.wav"]), scores=VALUES[:1])
    with pytest.raises(
        ScoresError, match=r"none of the 5 clips .*0\.wav, is among the 1 of .*s\.npz, such as /z/x\.wav"
    ):
        score_files.read(str(tmp_path / "s.npz"), data, VOCABULARY)
