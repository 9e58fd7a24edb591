"""The rules of label enhancement, against an example worked out by hand and against a plain reading of the rule."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest

from psla_jax.config import KINDS, Threshold
from psla_jax.data import datafile
from psla_jax.data.datafile import Datafile
from psla_jax.labeling import LEFT_OUT, ClipScores, Labels, Relations, enhance, thresholds
from psla_jax.ontology import Ontology, SoundClass, Vocabulary

THRESHOLDS: tuple[Threshold, ...] = get_args(Threshold)


def make_ontology(entries: dict[str, tuple[list[str], list[str]]]) -> Ontology:
    """From ``{mid: (children, restrictions)}``."""
    return Ontology({mid: SoundClass(mid, mid, tuple(c), tuple(r)) for mid, (c, r) in entries.items()})


def make_labels(clips: list[list[str]], vocabulary: Vocabulary) -> Labels:
    keys = [clip * len(vocabulary) + vocabulary.index(mid) for clip, mids in enumerate(clips) for mid in mids]
    return Labels(np.array(sorted(keys), np.int64), len(clips), len(vocabulary))


def label_sets(labels: Labels, vocabulary: Vocabulary) -> list[set[str]]:
    found: list[set[str]] = [set() for _ in range(labels.num_clips)]
    for clip, index in zip(labels.clips().tolist(), labels.classes().tolist()):
        found[clip].add(vocabulary.mids[index])
    return found


# ---- worked out by hand: six classes, five clips

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
    relations = Relations.of(vocabulary, make_ontology(ENTRIES))
    labels = make_labels(CLIPS, vocabulary)
    scores = ClipScores(np.array(SCORES, np.float32), np.arange(5))
    found = enhance(labels, scores, relations, THRESHOLDS)
    return SimpleNamespace(vocabulary=vocabulary, relations=relations, labels=labels, scores=scores, found=found)


def added(example: SimpleNamespace, kind: str, name: str) -> list[set[str]]:
    found = example.found
    return label_sets(Labels(found.added[kind, name], 5, 6), example.vocabulary)


def test_thresholds_by_hand(example):
    # animal: clips 0 and 1, 0.875 and 0.625; dog: 0 and 3, the same; bark: 2 and 3, 0.75 and 0.25; cat: clip 4 alone.
    np.testing.assert_array_equal(example.found.thresholds["mean"], [0.5, 0.75, 0.75, 0.625, 0.5, 0.5])
    np.testing.assert_array_equal(example.found.thresholds["median"], [0.5, 0.75, 0.75, 0.625, 0.5, 0.5])
    np.testing.assert_array_equal(example.found.thresholds["25"], [0.5, 0.6875, 0.6875, 0.625, 0.375, 0.5])
    np.testing.assert_allclose(example.found.thresholds["10"], [0.5, 0.65, 0.65, 0.625, 0.3, 0.5], rtol=1e-12)
    np.testing.assert_allclose(example.found.thresholds["5"], [0.5, 0.6375, 0.6375, 0.625, 0.275, 0.5], rtol=1e-12)


def test_type_1_by_hand(example):
    # Clip 0: bark is at its threshold, not above. Clip 1: so is dog; cat is above. Clip 4: sound is abstract.
    assert added(example, "type1", "mean") == [set(), {"cat"}, set(), set(), set()]
    # Clip 1: dog is above now; bark, its child, is not looked at, although it scores high.
    assert added(example, "type1", "25") == [{"bark"}, {"cat", "dog"}, set(), set(), set()]


def test_type_2_by_hand(example):
    # Clip 2: both ancestors of bark; sound, abstract, is no ancestor. Clip 3: animal is at its threshold.
    assert added(example, "type2", "mean") == [set(), set(), {"dog", "animal"}, set(), {"animal"}]
    assert added(example, "type2", "25") == [set(), set(), {"dog", "animal"}, {"animal"}, {"animal"}]


def test_merged_by_hand(example):
    after = label_sets(example.found.after("type1_2", "mean"), example.vocabulary)
    assert after == [
        {"animal", "dog"}, {"animal", "cat"}, {"bark", "dog", "animal"}, {"dog", "bark"},
        {"sound", "cat", "alien", "animal"},
    ]  # fmt: skip
    assert example.found.counts("type1_2", "mean").tolist() == [0, 2, 1, 1, 0, 0]
    assert example.found.clips_changed("type1_2", "mean") == 3


def test_parents_and_children_missing_by_hand(example):
    # Before: bark without dog (clip 2), dog without animal (3), cat without animal (4); dog without bark (0), animal
    # without dog or cat (1).
    assert example.labels.without_parent(example.relations) == 3
    assert example.labels.without_child(example.relations) == 2
    after = example.found.after("type1_2", "mean")
    assert (after.without_parent(example.relations), after.without_child(example.relations)) == (1, 1)


# Of "dog", five clips score 0, 0.25, 0.5, 0.5 and 1: mean 0.45, median 0.5, and between the ranks 0, 1, 2, 3 and 4 the
# percentiles 25 (rank 1) 0.25, 10 (rank 0.4) 0.1 and 5 (rank 0.2) 0.05. These are scored by clips without it:
OTHER_ALONE = (0.25, 0.5, 0.0, 0.0625, 0.125, 0.375, 0.46875, 0.75)
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
    # The same numbers, once with the child missing and once with the parent missing.
    has, lacks = ("animal", "dog") if kind == "type1" else ("dog", "animal")
    vocabulary = Vocabulary((has, lacks), (has, lacks))
    relations = Relations.of(vocabulary, make_ontology({"animal": (["dog"], []), "dog": ([], [])}))
    labels = make_labels([[lacks, has]] * 5 + [[has]] * len(OTHER_ALONE), vocabulary)
    values = [0.5, 0.0, 1.0, 0.25, 0.5, *OTHER_ALONE]
    scores = ClipScores(np.array([[0.5, value] for value in values], np.float32), np.arange(len(values)))
    found = enhance(labels, scores, relations, THRESHOLDS)
    after = label_sets(found.after(kind, name), vocabulary)
    assert all(mids == {has, lacks} for mids in after[:5])
    assert {score for score, mids in zip(OTHER_ALONE, after[5:]) if lacks in mids} == EXCEEDED_BY[name]
    assert label_sets(found.after("type1_2", name), vocabulary) == after


def test_classes_that_add_nothing_are_known(example):
    assert example.relations.abstract == ("sound",)
    assert example.relations.unknown == ("alien",)
    mid = sorted(LEFT_OUT)[0]
    vocabulary = Vocabulary((mid, "child"), (mid, "child"))
    relations = Relations.of(vocabulary, make_ontology({mid: (["child"], []), "child": ([], [])}))
    assert relations.abstract == (mid,)
    assert relations.children.counts().tolist() == [0, 0]
    assert relations.ancestors.counts().tolist() == [0, 1]


def test_a_clip_without_scores_sets_no_threshold_and_gains_nothing(example):
    scores = ClipScores(np.array(SCORES)[[1, 2, 4]], np.array([-1, 0, 1, -1, 2]))
    found = enhance(example.labels, scores, example.relations, ("mean",))
    assert found.scored.tolist() == [1, 1, 0, 1, 1, 1]
    assert np.isnan(found.thresholds["mean"][2])  # dog: clips 0 and 3
    assert found.thresholds["mean"][1] == 0.625
    gained = label_sets(Labels(found.added["type1_2", "mean"], 5, 6), example.vocabulary)
    assert gained == [set(), {"cat"}, {"animal"}, set(), {"animal"}]


# ---- the rule, read off the paper and the reference clip by clip


def plain_rule(clips, scores, vocabulary, ontology, statistic):
    """Label sets by kind, with loops over clips, labels and relatives."""
    limit = {}
    for column, mid in enumerate(vocabulary):
        positive = [scores[i][column] for i, mids in enumerate(clips) if scores[i] is not None and mid in mids]
        if positive:
            limit[mid] = statistic(np.array(positive, np.float64))
    # Exactly abstract classes have no entry: neither children of theirs are known, nor that they are parents.
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
        for kind, found in result.items():
            sets[kind].append(found)
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
    """Linear interpolation between the two nearest ranks."""
    ranked = sorted(values)
    place = (len(ranked) - 1) * q / 100
    low = int(place)
    return ranked[low] + (place - low) * (ranked[min(low + 1, len(ranked) - 1)] - ranked[low])


def random_case(seed: int):
    """An ontology of 16 classes with several parents, some abstract; 12 of the classes and a stranger as vocabulary."""
    rng = np.random.default_rng(seed)
    mids = [f"c{i:02d}" for i in rng.permutation(16)]
    ontology = {}
    for place, mid in enumerate(mids):
        below = mids[place + 1 :]
        children = [str(c) for c in rng.choice(below, min(len(below), rng.integers(0, 4)), replace=False)]
        restrictions = [[], [], ["abstract"], ["abstract", "blacklist"], ["blacklist"]][rng.integers(5)]
        ontology[mid] = (children, restrictions)
    vocabulary = [*(str(mid) for mid in rng.permutation(mids)[:12]), "stranger", "never"]
    clips = [[m for m in vocabulary[:-1] if rng.random() < 0.2] for _ in range(60)]
    # Sixteenths: many scores are exactly at a threshold, and sums are exact.
    scores = rng.integers(0, 17, (60, 14)).astype(np.float32) / 16
    return clips, scores, vocabulary, ontology


@pytest.mark.parametrize("seed", range(8))
def test_label_sets_are_those_of_the_plain_rule(seed):
    clips, scores, mids, ontology = random_case(seed)
    vocabulary = Vocabulary(tuple(mids), tuple(mids))
    order = np.random.default_rng(seed).permutation(60)
    rows = np.argsort(order)
    rows[:5] = -1
    relations = Relations.of(vocabulary, make_ontology(ontology))
    labels = make_labels(clips, vocabulary)
    found = enhance(labels, ClipScores(scores[order], rows), relations, THRESHOLDS)
    known = [None if i < 5 else row for i, row in enumerate(scores)]
    something = 0
    for name in THRESHOLDS:
        wanted = plain_rule(clips, known, mids, ontology, STATISTICS[name])
        for kind in KINDS:
            after = found.after(kind, name)
            assert label_sets(after, vocabulary) == wanted[kind], (name, kind)
            assert after.has(labels.keys).all()
            assert np.all(np.diff(after.keys) > 0)
            assert len(after) == len(labels) + len(found.added[kind, name])
            something += len(found.added[kind, name])
    assert something > 100


@pytest.mark.parametrize("seed", range(3))
def test_errors_are_those_counted_one_by_one(seed):
    clips, _, mids, ontology = random_case(seed)
    vocabulary = Vocabulary(tuple(mids), tuple(mids))
    relations = Relations.of(vocabulary, make_ontology(ontology))
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


def test_thresholds_are_numpys_over_a_plain_loop_to_the_last_bit():
    rng = np.random.default_rng(0)
    scores = rng.random((500, 3))
    hot = rng.random((500, 3)) < 0.5
    hot[:, 2] = False
    labels = Labels(np.flatnonzero(hot), 500, 3)
    found = thresholds(labels, ClipScores(scores, np.arange(500)), THRESHOLDS)
    for column in range(2):
        positive = scores[np.where(hot[:, column])[0], column]
        wanted = [positive.mean(), np.median(positive), *np.percentile(positive, [25, 10, 5])]
        assert [found[name][column] for name in THRESHOLDS] == wanted
    assert np.isnan([found[name][2] for name in THRESHOLDS]).all()


def test_labels_are_those_of_the_datafile(tmp_path: Path):
    vocabulary = Vocabulary(MIDS, MIDS)
    datafile.write(tmp_path / "d.json", [(f"{i}.wav", mids) for i, mids in enumerate([*CLIPS, []])])
    labels = Labels.of(Datafile.read(tmp_path / "d.json", vocabulary))
    assert label_sets(labels, vocabulary) == [*map(set, CLIPS), set()]
    assert labels.counts().tolist() == [1, 2, 2, 1, 2, 1]


def test_without_any_label_nothing_is_added():
    vocabulary = Vocabulary(MIDS, MIDS)
    relations = Relations.of(vocabulary, make_ontology(ENTRIES))
    found = enhance(make_labels([[], []], vocabulary), ClipScores(np.ones((2, 6)), np.arange(2)), relations, ("mean",))
    assert [len(keys) for keys in found.added.values()] == [0, 0, 0]
    assert len(found.after("type1_2", "mean")) == 0
    assert found.labels.without_parent(relations) == found.labels.without_child(relations) == 0
