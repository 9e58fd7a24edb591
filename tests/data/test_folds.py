"""Folds of similar size and class counts, which keep groups together."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.model_selection import StratifiedGroupKFold

from psla_jax.data import datafile
from psla_jax.data.datafile import Datafile, Record
from psla_jax.data.folds import FoldError, assign_folds, write_folds
from psla_jax.vocabulary.vocabulary import Vocabulary

CLASSES = 12


@pytest.fixture(scope="module")
def long_tail() -> list[list[int]]:
    """Returns the labels of 300 clips with a long-tailed class distribution; some clips have no label."""
    rng = np.random.default_rng(0)
    rates = 0.5 / np.arange(1, CLASSES + 1)
    return [np.flatnonzero(rng.random(CLASSES) < rates).tolist() for _ in range(300)]


def assign(labels: list[list[int]], folds: int, seed: int = 0, groups: list[str] | None = None) -> np.ndarray:
    return assign_folds(labels, folds, num_classes=CLASSES, seed=seed, groups=groups)


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_folds_are_even_in_size_and_in_every_class(long_tail, folds):
    fold_of = assign(long_tail, folds)
    sizes = np.bincount(fold_of, minlength=folds)
    assert sizes.sum() == 300
    assert sizes.max() - sizes.min() <= 10
    for index in range(CLASSES):
        column = np.array([index in clip for clip in long_tail])
        counts = np.bincount(fold_of, weights=column, minlength=folds)
        assert counts.max() - counts.min() <= max(2, 0.15 * column.sum())
        assert counts.min() >= 1
    np.testing.assert_array_equal(fold_of, assign(long_tail, folds))
    np.testing.assert_array_equal(fold_of, assign(long_tail, folds, groups=[""] * 300))
    assert np.any(fold_of != assign(long_tail, folds, seed=1))


def test_the_folds_of_earlier_crossfits_do_not_change():
    labels = [[clip % 3] if clip % 5 else [] for clip in range(20)]
    assert assign(labels, 3, seed=4).tolist() == [0, 1, 0, 0, 0, 2, 2, 2, 1, 0, 1, 0, 1, 2, 2, 1, 1, 2, 1, 0]


def test_a_group_is_in_one_fold_and_classes_are_as_even_as_scikit_learns():
    ours, theirs = [], []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        group_of = rng.choice(60, 400, p=rng.dirichlet(np.ones(60)))
        class_of = (group_of + (rng.random(400) < 0.3) * rng.integers(0, 4, 400)) % 4
        fold_of = assign([[index] for index in class_of], 5, seed, [f"recording {group}" for group in group_of])
        assert all(len(set(fold_of[group_of == group])) == 1 for group in set(group_of))
        ours.append(unevenness(fold_of, class_of))
        splits = StratifiedGroupKFold(5, shuffle=True, random_state=seed).split(group_of, class_of, group_of)
        for fold, (_, held_out) in enumerate(splits):
            fold_of[held_out] = fold
        theirs.append(unevenness(fold_of, class_of))
    assert np.mean(ours) <= 1.1 * np.mean(theirs)


def unevenness(fold_of: np.ndarray, class_of: np.ndarray) -> float:
    """Returns the standard deviation over five folds of the number of clips of a class, summed over four classes."""
    return float(np.std([np.bincount(class_of[fold_of == fold], minlength=4) for fold in range(5)], axis=0).sum())


def test_an_impossible_number_of_folds_is_rejected(long_tail):
    for folds in (-1, 0, 1, 301):
        with pytest.raises(FoldError, match=f"folds is {folds}: use 2 or more, up to the 300 clips"):
            assign(long_tail, folds)
    with pytest.raises(FoldError, match=r"folds is 4: use 2 or more, up to the 3 groups of clips\."):
        assign(long_tail, 4, groups=["a", "b", "c"] * 100)
    assert sorted(assign(long_tail, 300)) == list(range(300))


def test_written_folds_have_every_clip_once_with_its_labels_and_times(tmp_path):
    vocabulary = Vocabulary(("a", "b"), ("A", "B"))
    clips = [Record(f"{i // 2}.wav", ["ab"[i % 2]], i % 2, i % 2 + 0.5) for i in range(10)]
    datafile.write(tmp_path / "all.json", clips, exclusive=True)
    data = Datafile.read(tmp_path / "all.json", vocabulary)
    recordings = [clip.wav for clip in clips]
    paths = write_folds(data, vocabulary, tmp_path / "folds", 3, seed=1, groups=recordings)
    assert paths == [str(tmp_path / "folds" / f"fold_{number}.json") for number in (1, 2, 3)]
    folds = [Datafile.read(path, vocabulary) for path in paths]
    assert all(fold.exclusive for fold in folds)
    written = sorted(record for path in paths for record in datafile.records(path))
    assert written == sorted(clip._replace(wav=str(tmp_path / clip.wav), mids=tuple(clip.mids)) for clip in clips)
    expected = assign_folds([[i % 2] for i in range(10)], 3, num_classes=2, seed=1, groups=recordings)
    assert [len(fold) for fold in folds] == np.bincount(expected).tolist()
