"""Vocabularies, ontologies and their files."""

from __future__ import annotations

import csv
import json

import pytest

from psla_jax.data.demo import dataset
from psla_jax.vocabulary.ontology import Ontology, OntologyError
from psla_jax.vocabulary.vocabulary import BUNDLED, Vocabulary, VocabularyError

PLAIN = (
    'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/05zppz,"Male speech, man speaking"\n2,/t/x,"A ""quoted"" name"\n'
)
NAMES = ("Speech", "Male speech, man speaking", 'A "quoted" name')


@pytest.mark.parametrize(
    "data",
    [
        PLAIN.encode(),
        PLAIN.replace("\n", "\r\n").encode(),
        b"\xef\xbb\xbf" + PLAIN.encode(),
        PLAIN.rstrip("\n").encode(),
        (PLAIN + "\n\n").encode(),
    ],
    ids=["plain", "crlf", "bom", "no last line end", "blank lines"],
)
def test_a_label_file_is_read_however_it_was_saved(tmp_path, data):
    (tmp_path / "labels.csv").write_bytes(data)
    vocabulary = Vocabulary.read(tmp_path / "labels.csv")
    assert vocabulary == Vocabulary(("/m/09x0r", "/m/05zppz", "/t/x"), NAMES)
    assert len(vocabulary) == 3
    assert vocabulary.index("/m/05zppz") == 1
    assert "/t/x" in vocabulary
    assert "/t/y" not in vocabulary


def test_an_unknown_class_is_named():
    with pytest.raises(VocabularyError, match=r"'/t/y'.*2 classes"):
        Vocabulary(("a", "b"), ("A", "B")).index("/t/y")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("0,/m/a,A\n", "needs the header index,mid,display_name"),
        ("index,name,mid\n0,A,/m/a\n", "needs the header"),
        ("index,mid,display_name\n", "has no class"),
        ("index,mid,display_name\n1,/m/a,A\n", "line 2 .* index '1' where 0 belongs"),
        ("index,mid,display_name\n0,/m/a,A\n\n2,/m/b,B\n", "line 4 .* index '2' where 1 belongs"),
        ("index,mid,display_name\n0,/m/a,A\n0,/m/b,B\n", "line 3 .* where 1 belongs"),
        ("index,mid,display_name\nx,/m/a,A\n", "index 'x'"),
        ("index,mid,display_name\n0,/m/a,A\n1,/m/a,B\n", "class 1 has the mid '/m/a' of an earlier class"),
        ("index,mid,display_name\n0,,A\n", "class 0 has the mid ''"),
        ('index,mid,display_name\n0,"/m/a,/m/b",A\n', "no comma"),
        ("index,mid,display_name\n0,/m/a,Male speech, man speaking\n", "line 2 .* 4 fields"),
        ("index,mid,display_name\n0,/m/a\n", "line 2 .* 2 fields"),
    ],
)
def test_a_label_file_of_another_format_is_refused(tmp_path, text, message):
    path = tmp_path / "labels.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(VocabularyError, match=message) as caught:
        Vocabulary.read(path)
    assert str(path) in str(caught.value)


def test_a_label_file_that_is_not_text_is_refused(tmp_path):
    with pytest.raises(VocabularyError, match=r"nowhere.csv cannot be read"):
        Vocabulary.read(tmp_path / "nowhere.csv")
    with pytest.raises(VocabularyError, match="cannot be read"):
        Vocabulary.read(tmp_path)
    (tmp_path / "latin.csv").write_bytes("index,mid,display_name\n0,a,Geräusch\n".encode("latin-1"))
    with pytest.raises(VocabularyError, match=r"latin.csv is not a CSV file"):
        Vocabulary.read(tmp_path / "latin.csv")


def test_every_mid_needs_a_name():
    with pytest.raises(VocabularyError, match="2 mids and 1 names"):
        Vocabulary(("a", "b"), ("A",))


def test_what_is_written_is_read_back(tmp_path):
    vocabulary = Vocabulary(("/m/a", "/m/b", "/t/c"), ("Ä, B", 'the "C"', ""))
    path = tmp_path / "labels.csv"
    path.write_text("an older file", encoding="utf-8")
    vocabulary.write(path)
    assert Vocabulary.read(path) == vocabulary
    with open(path, encoding="utf-8", newline="") as file:
        assert [row["mid"] for row in csv.DictReader(file)] == ["/m/a", "/m/b", "/t/c"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["labels.csv"]
    assert Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json()))) == vocabulary


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("an older file", encoding="utf-8")
    with pytest.raises(UnicodeEncodeError):
        Vocabulary(("a",), ("\ud800",)).write(path)
    assert path.read_text(encoding="utf-8") == "an older file"
    assert [entry.name for entry in tmp_path.iterdir()] == ["labels.csv"]


@pytest.mark.parametrize(
    "value", [None, {"a": "A"}, ["a"], [["a"]], [["a", 1]], [["a", "A", "x"]], [], [["a", "A"]] * 2]
)
def test_json_of_another_format_is_refused(value):
    with pytest.raises(VocabularyError):
        Vocabulary.from_json(value)


ENTRIES = {
    "animal": (["pet", "wild"], ["abstract"]),
    "pet": (["dog"], []),
    "wild": (["wolf", "dog"], ["abstract", "blacklist"]),
    "dog": (["bark"], []),
    "wolf": ([], ["blacklist"]),
    "bark": ([], []),
}


def ontology_file(folder, entries):
    path = folder / "ontology.json"
    listed = [
        {"id": mid, "name": mid.title(), "description": "", "child_ids": children, "restrictions": restrictions}
        for mid, (children, restrictions) in entries.items()
    ]
    path.write_text(json.dumps(listed), encoding="utf-8")
    return path


def test_children_ancestors_and_restrictions(tmp_path):
    ontology = Ontology.read(ontology_file(tmp_path, ENTRIES))
    assert len(ontology) == 6
    assert "dog" in ontology
    assert "cat" not in ontology
    assert ontology.children("animal") == ("pet", "wild")
    assert ontology.children("bark") == ()
    assert ontology.ancestors("bark") == ("dog", "pet", "wild", "animal")
    assert ontology.ancestors("animal") == ()
    assert ontology.restrictions("animal") == ("abstract",)
    assert ontology.restrictions("wild") == ("abstract", "blacklist")
    assert ontology.classes["wolf"].name == "Wolf"
    for query in (ontology.children, ontology.ancestors, ontology.restrictions):
        with pytest.raises(OntologyError, match="'cat' is not among the 6"):
            query("cat")


def test_an_ontology_with_an_unknown_child_or_a_cycle_is_refused(tmp_path):
    with pytest.raises(OntologyError, match="'pet' has the child 'cat'"):
        Ontology.read(ontology_file(tmp_path, {"pet": (["cat"], [])}))
    with pytest.raises(OntologyError, match="own ancestor"):
        Ontology.read(ontology_file(tmp_path, {"a": (["b"], []), "b": (["c"], []), "c": (["b"], [])}))


@pytest.mark.parametrize("text", ["", "not JSON", "{}x", '{"id": "a"}', "[1]", '[{"id": "a"}]', "3"])
def test_an_ontology_of_another_format_is_refused(tmp_path, text):
    (tmp_path / "ontology.json").write_text(text, encoding="utf-8")
    with pytest.raises(OntologyError, match=r"ontology.json"):
        Ontology.read(tmp_path / "ontology.json")
    with pytest.raises(OntologyError, match=r"nowhere.json cannot be read"):
        Ontology.read(tmp_path / "nowhere.json")


def test_the_bundled_classes_of_the_demo_set_are_its_classes_also_beside_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in BUNDLED:
        (tmp_path / name).mkdir()
    assert Vocabulary.read("demo") == dataset.vocabulary()
    assert [len(Vocabulary.read(name)) for name in BUNDLED] == [527, 200, 17]
