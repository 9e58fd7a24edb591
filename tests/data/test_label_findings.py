"""Labels against vocabulary and ontology, on small sets worked out by hand."""

from __future__ import annotations

import pytest
from recordings import MIDS, clean, examine, only

from psla_jax.data.findings import Examined
from psla_jax.data.label_findings import absent_classes, missing_relatives, nothing_to_learn, unknown_classes
from psla_jax.ontology import Ontology, SoundClass, Vocabulary

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
ALL = (nothing_to_learn, unknown_classes, absent_classes, missing_relatives)


def labelled(folder, *labels: list[str], vocabulary: Vocabulary = VOCABULARY, **fields) -> Examined:
    records = [(f"{i}.wav", mids) for i, mids in enumerate(labels)]
    return examine(folder, records, vocabulary.mids, vocabulary=vocabulary, **fields)


def test_a_sound_set_gives_no_finding(tmp_path):
    examined = examine(tmp_path, clean(tmp_path), vocabulary=VOCABULARY, ontology=ONTOLOGY)
    assert [finding for check in ALL for finding in check(examined)] == []


def test_no_label_at_all_is_an_error_and_some_without_a_warning(tmp_path):
    (finding,) = [f for check in ALL for f in check(labelled(tmp_path, [], []))]
    assert (finding.kind, finding.severity) == ("no-labels", "error")
    finding = only(nothing_to_learn, labelled(tmp_path, ["/t/dog"], [], ["/t/car"], []))
    assert (finding.kind, finding.severity, finding.count) == ("unlabelled", "warning", 2)
    assert list(finding.places) == [str(tmp_path / "1.wav"), str(tmp_path / "3.wav")]


def test_cross_entropy_wants_one_label(tmp_path):
    labels = (["/t/dog"], ["/t/dog", "/t/car"], ["/t/car"])
    assert list(nothing_to_learn(labelled(tmp_path, *labels))) == []
    finding = only(nothing_to_learn, labelled(tmp_path, *labels, loss="ce"))
    assert (finding.kind, finding.severity) == ("not-single", "error")
    assert list(finding.places) == [str(tmp_path / "1.wav")]


def test_labels_that_the_vocabulary_lacks_are_listed_by_how_often_they_occur(tmp_path):
    examined = labelled(tmp_path, ["/t/cow"], ["/t/dog", "/t/bee"], ["/t/bee"], ["/t/animal", "/t/car"])
    finding = only(unknown_classes, examined)
    assert (finding.severity, finding.count) == ("error", 2)
    assert list(finding.places) == [
        f"/t/bee  in 2 clips, such as {tmp_path / '1.wav'}",
        f"/t/cow  in 1 clip, such as {tmp_path / '0.wav'}",
    ]
    assert list(absent_classes(examined)) == []


def test_classes_without_a_clip(tmp_path):
    finding = only(absent_classes, labelled(tmp_path, ["/t/dog"], ["/t/cow"]))
    assert finding.title == "Without a single clip: 2 of 3 classes"
    assert list(finding.places) == ["Animal  /t/animal", "Car  /t/car"]


def test_parents_that_are_missing_however_far_up_and_what_has_no_child(tmp_path):
    mids = ("/t/animal", "/t/pet", "/t/dog", "/t/car", "/t/cat")
    vocabulary = Vocabulary(mids, ("Animal", "Pet", "Dog", "Car", "Cat"))
    examined = labelled(
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
    parents, children = missing_relatives(examined)
    assert (parents.kind, parents.severity, parents.count) == ("missing-parents", "warning", 3)
    assert parents.means.startswith("5 parents not given")
    assert list(parents.places) == [
        f"Dog without Pet  in 2 clips, such as {tmp_path / '0.wav'}",
        f"Dog without Animal  in 1 clip, such as {tmp_path / '0.wav'}",
        f"Cat without Animal  in 1 clip, such as {tmp_path / '5.wav'}",
        f"Cat without Pet  in 1 clip, such as {tmp_path / '5.wav'}",
    ]
    assert (children.kind, children.severity, children.count) == ("missing-children", "note", 2)
    assert list(children.places) == ["Animal  in 1 clip", "Pet  in 1 clip"]


def test_classes_that_the_ontology_lacks_are_named_and_the_others_checked(tmp_path):
    vocabulary = Vocabulary(("/t/mine", "/t/pet", "/t/dog"), ("Mine", "Pet", "Dog"))
    examined = labelled(tmp_path, ["/t/mine", "/t/dog"], vocabulary=vocabulary, ontology=ONTOLOGY)
    outside, parents = missing_relatives(examined)
    assert (outside.kind, outside.severity) == ("not-in-ontology", "warning")
    assert list(outside.places) == ["Mine  /t/mine"]
    assert parents.count == 1


@pytest.mark.parametrize("ontology", [None, ONTOLOGY])
def test_without_a_vocabulary_classes_are_those_of_the_set(tmp_path, ontology):
    examined = examine(tmp_path, [("0.wav", ["/t/dog"]), ("1.wav", ["/t/pet", "/t/dog"])], (), ontology=ontology)
    assert examined.mids == ("/t/dog", "/t/pet")
    assert [*unknown_classes(examined), *absent_classes(examined)] == []
    assert [f.kind for f in missing_relatives(examined)] == (["missing-parents"] if ontology else [])
