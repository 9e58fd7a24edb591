"""Checks of labels against vocabulary and ontology, on small data sets with known defects."""

from __future__ import annotations

import pytest
from recordings import MIDS, clean, measure, only

from psla_jax.data.validate.findings import MeasuredDataset
from psla_jax.data.validate.labels import (
    check_absent_classes,
    check_hierarchy,
    check_label_counts,
    check_unknown_labels,
)
from psla_jax.vocabulary.ontology import Ontology, SoundClass
from psla_jax.vocabulary.vocabulary import Vocabulary

VOCABULARY = Vocabulary(MIDS, ("Animal", "Dog", "Car"))
ONTOLOGY = Ontology(
    {
        "/t/all": SoundClass("/t/all", "All", ("/t/animal", "/t/car"), ()),
        "/t/animal": SoundClass("/t/animal", "Animal", ("/t/pet",), ()),
        "/t/pet": SoundClass("/t/pet", "Pet", ("/t/dog", "/t/cat"), ()),
        "/t/dog": SoundClass("/t/dog", "Dog", (), ()),
        "/t/cat": SoundClass("/t/cat", "Cat", (), ()),
        "/t/car": SoundClass("/t/car", "Car", (), ()),
    }
)
CHECKS = (check_label_counts, check_unknown_labels, check_absent_classes, check_hierarchy)


def labelled(folder, *labels: list[str], vocabulary: Vocabulary = VOCABULARY, **fields) -> MeasuredDataset:
    records = [(f"{i}.wav", mids) for i, mids in enumerate(labels)]
    return measure(folder, records, vocabulary.mids, vocabulary=vocabulary, **fields)


def test_a_data_set_without_defects_has_no_findings(tmp_path):
    dataset = measure(tmp_path, clean(tmp_path), vocabulary=VOCABULARY, ontology=ONTOLOGY)
    assert [finding for check in CHECKS for finding in check(dataset)] == []


def test_no_label_at_all_is_an_error_and_some_without_a_warning(tmp_path):
    (finding,) = [f for check in CHECKS for f in check(labelled(tmp_path, [], []))]
    assert (finding.kind, finding.severity) == ("no-labels", "error")
    finding = only(check_label_counts, labelled(tmp_path, ["/t/dog"], [], ["/t/car"], []))
    assert (finding.kind, finding.severity, finding.count) == ("unlabelled", "warning", 2)
    assert list(finding.items) == [str(tmp_path / "1.wav"), str(tmp_path / "3.wav")]


def test_cross_entropy_requires_one_label(tmp_path):
    labels = (["/t/dog"], ["/t/dog", "/t/car"], ["/t/car"])
    assert list(check_label_counts(labelled(tmp_path, *labels))) == []
    finding = only(check_label_counts, labelled(tmp_path, *labels, loss="ce"))
    assert (finding.kind, finding.severity) == ("not-single", "error")
    assert list(finding.items) == [str(tmp_path / "1.wav")]


def test_labels_that_the_vocabulary_lacks_are_listed_by_how_often_they_occur(tmp_path):
    dataset = labelled(tmp_path, ["/t/cow"], ["/t/dog", "/t/bee"], ["/t/bee"], ["/t/animal", "/t/car"])
    finding = only(check_unknown_labels, dataset)
    assert (finding.severity, finding.count) == ("error", 2)
    assert list(finding.items) == [
        f"/t/bee  in 2 clips, such as {tmp_path / '1.wav'}",
        f"/t/cow  in 1 clip, such as {tmp_path / '0.wav'}",
    ]
    assert list(check_absent_classes(dataset)) == []


def test_classes_without_a_clip(tmp_path):
    finding = only(check_absent_classes, labelled(tmp_path, ["/t/dog"], ["/t/cow"]))
    assert finding.title == "Without a single clip: 2 of 3 classes"
    assert list(finding.items) == ["Animal  /t/animal", "Car  /t/car"]


def test_missing_ancestors_and_missing_children(tmp_path):
    mids = ("/t/animal", "/t/pet", "/t/dog", "/t/car", "/t/cat")
    vocabulary = Vocabulary(mids, ("Animal", "Pet", "Dog", "Car", "Cat"))
    dataset = labelled(
        tmp_path,
        ["/t/dog"],  # lacks Pet and Animal
        ["/t/dog", "/t/pet", "/t/animal"],
        ["/t/dog", "/t/animal"],  # lacks Pet
        ["/t/pet", "/t/animal"],  # has neither Dog nor Cat
        ["/t/car"],
        ["/t/cat"],  # lacks Pet and Animal
        vocabulary=vocabulary,
        ontology=ONTOLOGY,
    )
    parents, children = check_hierarchy(dataset)
    assert (parents.kind, parents.severity, parents.count) == ("missing-parents", "warning", 3)
    assert parents.meaning.endswith("although a child is labelled: 5 labels.")
    assert list(parents.items) == [
        f"Dog without Pet  in 2 clips, such as {tmp_path / '0.wav'}",
        f"Dog without Animal  in 1 clip, such as {tmp_path / '0.wav'}",
        f"Cat without Animal  in 1 clip, such as {tmp_path / '5.wav'}",
        f"Cat without Pet  in 1 clip, such as {tmp_path / '5.wav'}",
    ]
    assert (children.kind, children.severity, children.count) == ("missing-children", "note", 2)
    assert list(children.items) == ["Animal  in 1 clip", "Pet  in 1 clip"]


def test_classes_that_the_ontology_lacks_are_named_and_the_others_checked(tmp_path):
    vocabulary = Vocabulary(("/t/mine", "/t/pet", "/t/dog"), ("Mine", "Pet", "Dog"))
    dataset = labelled(tmp_path, ["/t/mine", "/t/dog"], vocabulary=vocabulary, ontology=ONTOLOGY)
    outside, parents = check_hierarchy(dataset)
    assert (outside.kind, outside.severity) == ("not-in-ontology", "warning")
    assert list(outside.items) == ["Mine  /t/mine"]
    assert parents.count == 1


@pytest.mark.parametrize("ontology", [None, ONTOLOGY])
def test_without_a_vocabulary_classes_are_those_of_the_set(tmp_path, ontology):
    dataset = measure(tmp_path, [("0.wav", ["/t/dog"]), ("1.wav", ["/t/pet", "/t/dog"])], (), ontology=ontology)
    assert dataset.mids == ("/t/dog", "/t/pet")
    assert [*check_unknown_labels(dataset), *check_absent_classes(dataset)] == []
    assert [f.kind for f in check_hierarchy(dataset)] == (["missing-parents"] if ontology else [])
