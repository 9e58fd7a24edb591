"""Rules of label enhancement, compared with an example computed by hand and with a plain implementation."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest

from psla_jax.config import KINDS, Threshold
from psla_jax.data import datafile
from psla_jax.data.datafile import Datafile
from psla_jax.labeling.rules import EXCLUDED, ClipScores, Labels, Relations, enhance, thresholds
from psla_jax.vocabulary.ontology import Ontology, SoundClass
from psla_jax.vocabulary.vocabulary import Vocabulary

THRESHOLDS: tuple[Threshold, ...] = get_args(Threshold)


def make_ontology(entries: dict[str, tuple[list[str], list[str]]]) -> Ontology:
    """Returns the ontology given as ``{mid: (children, restrictions)}``."""
    return Ontology({mid: SoundClass(mid, mid, tuple(c), tuple(r)) for mid, (c, r) in entries.items()})


def make_labels(clips: list[list[str]], vocabulary: Vocabulary) -> Labels:
    keys = [clip * len(vocabulary) + vocabulary.index(mid) for clip, mids in enumerate(clips) for mid in mids]
    return Labels(np.array(sorted(keys), np.int64), len(clips), len(vocabulary))


def label_sets(labels: Labels, vocabulary: Vocabulary) -> list[set[str]]:
    sets: list[set[str]] = [set() for _ in range(labels.num_clips)]
    for clip, index in zip(labels.clips().tolist(), labels.classes().tolist()):
        sets[clip].add(vocabulary.mids[index])
    return sets


# ---- example computed by hand: six classes, five clips

MIDS = ("sound", "animal", "dog", "cat", "bark", "alien")
ENTRIES = {
    "sound": (["animal"], ["abstract"]),
    "animal": (["dog", "cat"], []),
    "dog": (["bark"], []),
    "cat": ([], []),
    "bark": ([], []),
}
CLIPS = [["animal", "dog"], ["animal"], ["bark"], ["dog", "bark"], ["sound", "cat", "alien"]]
SCORES = [  # sound, animal, dog, cat, bark, alien
    [0.125, 0.875, 0.875, 0.125, 0.500, 0.125],
    [0.125, 0.625, 0.750, 0.750, 0.875, 0.125],
    [0.875, 0.875, 0.875, 0.125, 0.750, 0.875],
    [0.125, 0.750, 0.625, 0.125, 0.250, 0.125],
    [0.500, 1.000, 0.875, 0.625, 0.875, 0.500],
]


@pytest.fixture
def example() -> SimpleNamespace:
    vocabulary = Vocabulary(MIDS, MIDS)
    relations = Relations.from_ontology(vocabulary, make_ontology(ENTRIES))
    labels = make_labels(CLIPS, vocabulary)
    scores = ClipScores(np.array(SCORES, np.float32), np.arange(5))
    enhancement = enhance(labels, scores, relations, THRESHOLDS)
    return SimpleNamespace(
        vocabulary=vocabulary, relations=relations, labels=labels, scores=scores, enhancement=enhancement
    )


def added(example: SimpleNamespace, kind: str, name: str) -> list[set[str]]:
    return label_sets(Labels(example.enhancement.added[kind, name], 5, 6), example.vocabulary)


def test_thresholds_by_hand(example):
    # animal: clips 0 and 1 with 0.875 and 0.625; dog: clips 0 and 3 with the same scores; bark: clips 2 and 3 with
    # 0.75 and 0.25; cat: only clip 4.
    np.testing.assert_array_equal(example.enhancement.thresholds["mean"], [0.5, 0.75, 0.75, 0.625, 0.5, 0.5])
    np.testing.assert_array_equal(example.enhancement.thresholds["median"], [0.5, 0.75, 0.75, 0.625, 0.5, 0.5])
    np.testing.assert_array_equal(example.enhancement.thresholds["25"], [0.5, 0.6875, 0.6875, 0.625, 0.375, 0.5])
    np.testing.assert_allclose(example.enhancement.thresholds["10"], [0.5, 0.65, 0.65, 0.625, 0.3, 0.5], rtol=1e-12)
    np.testing.assert_allclose(
        example.enhancement.thresholds["5"], [0.5, 0.6375, 0.6375, 0.625, 0.275, 0.5], rtol=1e-12
    )


def test_type_1_by_hand(example):
    # Clip 0: bark is at its threshold, not above it. Clip 1: so is dog; cat is above. Clip 4: sound is abstract.
    assert added(example, "type1", "mean") == [set(), {"cat"}, set(), set(), set()]
    # Clip 1: dog is above this threshold; its child bark is not considered, although its score is high.
    assert added(example, "type1", "25") == [{"bark"}, {"cat", "dog"}, set(), set(), set()]


def test_type_2_by_hand(example):
    # Clip 2: both ancestors of bark; sound, being abstract, is not an ancestor. Clip 3: animal is at its threshold.
    assert added(example, "type2", "mean") == [set(), set(), {"dog", "animal"}, set(), {"animal"}]
    assert added(example, "type2", "25") == [set(), set(), {"dog", "animal"}, {"animal"}, {"animal"}]


def test_merged_by_hand(example):
    after = label_sets(example.enhancement.after("type1_2", "mean"), example.vocabulary)
    assert after == [
        {"animal", "dog"}, {"animal", "cat"}, {"bark", "dog", "animal"}, {"dog", "bark"},
        {"sound", "cat", "alien", "animal"},
    ]  # fmt: skip
    assert example.enhancement.counts("type1_2", "mean").tolist() == [0, 2, 1, 1, 0, 0]
    assert example.enhancement.clips_changed("type1_2", "mean") == 3


def test_parents_and_children_missing_by_hand(example):
    # Before: bark without dog (clip 2), dog without animal (3), cat without animal (4); dog without bark (0), animal
    # without dog or cat (1).
    assert example.labels.without_parent(example.relations) == 3
    assert example.labels.without_child(example.relations) == 2
    after = example.enhancement.after("type1_2", "mean")
    assert (after.without_parent(example.relations), after.without_child(example.relations)) == (1, 1)


# Five clips with the label "dog" score 0, 0.25, 0.5, 0.5 and 1: the mean is 0.45, the median 0.5, and the percentiles,
# interpolated between the ranks 0 to 4, are 0.25 (25, rank 1), 0.1 (10, rank 0.4) and 0.05 (5, rank 0.2). The clips
# without the label have these scores:
UNLABELLED_SCORES = (0.25, 0.5, 0.0, 0.0625, 0.125, 0.375, 0.46875, 0.75)
EXCEEDED_BY: dict[Threshold, set[float]] = {
    "mean": {0.5, 0.46875, 0.75},
    "median": {0.75},
    "25": {0.5, 0.375, 0.46875, 0.75},
    "10": {0.25, 0.5, 0.125, 0.375, 0.46875, 0.75},
    "5": {0.25, 0.5, 0.0625, 0.125, 0.375, 0.46875, 0.75},
}


@pytest.mark.parametrize("name", THRESHOLDS)
@pytest.mark.parametrize("kind", ["type1", "type2"])
def test_every_threshold_by_hand(name, kind):
    # The same scores are used with the child missing and with the parent missing.
    has, lacks = ("animal", "dog") if kind == "type1" else ("dog", "animal")
    vocabulary = Vocabulary((has, lacks), (has, lacks))
    relations = Relations.from_ontology(vocabulary, make_ontology({"animal": (["dog"], []), "dog": ([], [])}))
    labels = make_labels([[lacks, has]] * 5 + [[has]] * len(UNLABELLED_SCORES), vocabulary)
    values = [0.5, 0.0, 1.0, 0.25, 0.5, *UNLABELLED_SCORES]
    scores = ClipScores(np.array([[0.5, value] for value in values], np.float32), np.arange(len(values)))
    enhancement = enhance(labels, scores, relations, THRESHOLDS)
    after = label_sets(enhancement.after(kind, name), vocabulary)
    assert all(mids == {has, lacks} for mids in after[:5])
    assert {score for score, mids in zip(UNLABELLED_SCORES, after[5:]) if lacks in mids} == EXCEEDED_BY[name]
    assert label_sets(enhancement.after("type1_2", name), vocabulary) == after


def test_classes_that_add_nothing_are_listed(example):
    assert example.relations.abstract == ("sound",)
    assert example.relations.unknown == ("alien",)
    mid = sorted(EXCLUDED)[0]
    vocabulary = Vocabulary((mid, "child"), (mid, "child"))
    relations = Relations.from_ontology(vocabulary, make_ontology({mid: (["child"], []), "child": ([], [])}))
    assert relations.abstract == (mid,)
    assert relations.children.counts().tolist() == [0, 0]
    assert relations.ancestors.counts().tolist() == [0, 1]


def test_clips_without_scores_do_not_contribute_to_thresholds_and_gain_nothing(example):
    scores = ClipScores(np.array(SCORES)[[1, 2, 4]], np.array([-1, 0, 1, -1, 2]))
    enhancement = enhance(example.labels, scores, example.relations, ("mean",))
    assert enhancement.scored.tolist() == [1, 1, 0, 1, 1, 1]
    assert np.isnan(enhancement.thresholds["mean"][2])  # dog: clips 0 and 3
    assert enhancement.thresholds["mean"][1] == 0.625
    gained = label_sets(Labels(enhancement.added["type1_2", "mean"], 5, 6), example.vocabulary)
    assert gained == [set(), {"cat"}, {"animal"}, set(), {"animal"}]


# ---- plain implementation of the rule in the paper and the reference, clip by clip


def plain_rule(clips, scores, vocabulary, ontology, statistic):
    """Returns label sets by kind, with loops over clips, labels and related classes."""
    limit = {}
    for column, mid in enumerate(vocabulary):
        positive = [scores[i][column] for i, mids in enumerate(clips) if scores[i] is not None and mid in mids]
        if positive:
            limit[mid] = statistic(np.array(positive, np.float64))
    # Classes with exactly the restriction "abstract" have no entry: they have no children and are not parents.
    entries = {mid: children for mid, (children, restrictions) in ontology.items() if restrictions != ["abstract"]}

    def ancestors(mid):
        above = {parent for parent, children in entries.items() if mid in children}
        return above.union(*(ancestors(parent) for parent in above))

    sets = {"type1": [], "type2": [], "type1_2": []}
    for i, mids in enumerate(clips):
        result = {"type1": set(mids), "type2": set(mids)}
        for mid in mids if scores[i] is not None else ():
            relatives = {"type1": entries.get(mid, ()), "type2": ancestors(mid) if mid in entries else ()}
            for kind, others in relatives.items():
                for other in others:
                    if other in limit and scores[i][vocabulary.index(other)] > limit[other]:
                        result[kind].add(other)
        for kind, mids_after in result.items():
            sets[kind].append(mids_after)
        sets["type1_2"].append(result["type1"] | result["type2"])
    return sets


STATISTICS = {
    "mean": lambda x: sum(x) / len(x),
    "median": lambda x: percentile(x, 50),
    "25": lambda x: percentile(x, 25),
    "10": lambda x: percentile(x, 10),
    "5": lambda x: percentile(x, 5),
}


def percentile(values, q):
    """Returns a percentile, linearly interpolated between the two nearest ranks."""
    ranked = sorted(values)
    rank = (len(ranked) - 1) * q / 100
    low = int(rank)
    return ranked[low] + (rank - low) * (ranked[min(low + 1, len(ranked) - 1)] - ranked[low])


def random_case(seed: int):
    """Returns a random case.

    The ontology has 16 classes with several parents, some of them abstract. The vocabulary has 12 of these classes, a
    class that is not in the ontology, and a class that no clip has.
    """
    rng = np.random.default_rng(seed)
    mids = [f"c{i:02d}" for i in rng.permutation(16)]
    ontology = {}
    for position, mid in enumerate(mids):
        below = mids[position + 1 :]
        children = [str(c) for c in rng.choice(below, min(len(below), rng.integers(0, 4)), replace=False)]
        restrictions = [[], [], ["abstract"], ["abstract", "blacklist"], ["blacklist"]][rng.integers(5)]
        ontology[mid] = (children, restrictions)
    vocabulary = [*(str(mid) for mid in rng.permutation(mids)[:12]), "unknown", "unused"]
    clips = [[m for m in vocabulary[:-1] if rng.random() < 0.2] for _ in range(60)]
    # Multiples of 1/16: many scores are exactly at a threshold, and sums are exact.
    scores = rng.integers(0, 17, (60, 14)).astype(np.float32) / 16
    return clips, scores, vocabulary, ontology


@pytest.mark.parametrize("seed", range(8))
def test_label_sets_are_those_of_the_plain_rule(seed):
    clips, scores, mids, ontology = random_case(seed)
    vocabulary = Vocabulary(tuple(mids), tuple(mids))
    order = np.random.default_rng(seed).permutation(60)
    rows = np.argsort(order)
    rows[:5] = -1
    relations = Relations.from_ontology(vocabulary, make_ontology(ontology))
    labels = make_labels(clips, vocabulary)
    enhancement = enhance(labels, ClipScores(scores[order], rows), relations, THRESHOLDS)
    clip_scores = [None if i < 5 else row for i, row in enumerate(scores)]
    total = 0
    for name in THRESHOLDS:
        expected = plain_rule(clips, clip_scores, mids, ontology, STATISTICS[name])
        for kind in KINDS:
            after = enhancement.after(kind, name)
            assert label_sets(after, vocabulary) == expected[kind], (name, kind)
            assert after.has(labels.keys).all()
            assert np.all(np.diff(after.keys) > 0)
            assert len(after) == len(labels) + len(enhancement.added[kind, name])
            total += len(enhancement.added[kind, name])
    assert total > 100


@pytest.mark.parametrize("seed", range(3))
def test_errors_equal_a_plain_count(seed):
    clips, _, mids, ontology = random_case(seed)
    vocabulary = Vocabulary(tuple(mids), tuple(mids))
    relations = Relations.from_ontology(vocabulary, make_ontology(ontology))
    entries = {m: [c for c in children if c in mids] for m, (children, r) in ontology.items() if r != ["abstract"]}
    orphans = childless = 0
    for labels in clips:
        for mid in labels:
            parents = [p for p, children in entries.items() if mid in children and p in mids]
            orphans += mid in entries and any(p not in labels for p in parents)
            childless += bool(entries.get(mid)) and not any(c in labels for c in entries[mid])
    labels = make_labels(clips, vocabulary)
    assert (labels.without_parent(relations), labels.without_child(relations)) == (orphans, childless)
    assert orphans
    assert childless


def test_thresholds_equal_numpy_statistics_per_class_exactly():
    rng = np.random.default_rng(0)
    scores = rng.random((500, 3))
    hot = rng.random((500, 3)) < 0.5
    hot[:, 2] = False
    labels = Labels(np.flatnonzero(hot), 500, 3)
    limits = thresholds(labels, ClipScores(scores, np.arange(500)), THRESHOLDS)
    for column in range(2):
        positive = scores[np.where(hot[:, column])[0], column]
        expected = [positive.mean(), np.median(positive), *np.percentile(positive, [25, 10, 5])]
        assert [limits[name][column] for name in THRESHOLDS] == expected
    assert np.isnan([limits[name][2] for name in THRESHOLDS]).all()


def test_labels_are_those_of_the_datafile(tmp_path: Path):
    vocabulary = Vocabulary(MIDS, MIDS)
    datafile.write(tmp_path / "d.json", [(f"{i}.wav", mids) for i, mids in enumerate([*CLIPS, []])])
    labels = Labels.from_datafile(Datafile.read(tmp_path / "d.json", vocabulary))
    assert label_sets(labels, vocabulary) == [*map(set, CLIPS), set()]
    assert labels.counts().tolist() == [1, 2, 2, 1, 2, 1]


def test_without_any_label_nothing_is_added():
    vocabulary = Vocabulary(MIDS, MIDS)
    relations = Relations.from_ontology(vocabulary, make_ontology(ENTRIES))
    labels = make_labels([[], []], vocabulary)
    enhancement = enhance(labels, ClipScores(np.ones((2, 6)), np.arange(2)), relations, ("mean",))
    assert [len(keys) for keys in enhancement.added.values()] == [0, 0, 0]
    assert len(enhancement.after("type1_2", "mean")) == 0
    assert labels.without_parent(relations) == labels.without_child(relations) == 0
