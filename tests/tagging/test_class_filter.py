"""Selection of classes by name, mid and ontology."""

from __future__ import annotations

import pytest

from psla_jax.tagging.class_filter import ClassesError, select_classes
from psla_jax.vocabulary.ontology import Ontology, SoundClass
from psla_jax.vocabulary.vocabulary import Vocabulary

VOCABULARY = Vocabulary(("/m/dog", "/m/bark", "/m/cat", "/m/bass"), ("Dog", "Bark", "Cat", "Bass_drum"))
ONTOLOGY = Ontology(
    {
        mid: SoundClass(mid, name, children, ())
        for mid, name, children in [
            ("/m/animal", "Animal", ("/m/dog", "/m/cat")),
            ("/m/dog", "Dog", ("/m/bark", "/m/howl")),
            ("/m/howl", "Howl", ()),
            ("/m/bark", "Bark", ()),
            ("/m/cat", "Cat", ()),
            ("/m/bass", "Bass drum", ()),
        ]
    }
)


@pytest.mark.parametrize(
    ("allow", "deny", "ontology", "expected"),
    [
        ([], [], None, None),
        (["Dog"], [], None, [0]),
        (["/m/bark", "cat"], [], None, [1, 2]),
        (["bass drum"], [], None, [3]),
        (["Bass_drum"], [], ONTOLOGY, [3]),
        (["Dog"], [], ONTOLOGY, [0, 1]),
        (["Animal"], [], ONTOLOGY, [0, 1, 2]),
        (["/m/animal"], ["Dog"], ONTOLOGY, [2]),
        ([], ["Dog"], None, [1, 2, 3]),
        ([], ["Dog"], ONTOLOGY, [2, 3]),
    ],
)
def test_classes_are_selected(allow, deny, ontology, expected):
    assert select_classes(VOCABULARY, allow, deny, ontology) == expected


@pytest.mark.parametrize(
    ("allow", "deny", "ontology", "message"),
    [
        (["Dgo"], [], None, "there is no class 'Dgo': did you mean 'dog'"),
        (["Animal"], [], None, "there is no class 'Animal'"),
        ([], ["Helicopter"], ONTOLOGY, "there is no class 'Helicopter': use the names or mids"),
        (["Howl"], [], ONTOLOGY, "has neither 'Howl' nor a class below it"),
        (["Dog"], ["Dog"], None, "no class is left"),
    ],
)
def test_unknown_classes_are_named(allow, deny, ontology, message):
    with pytest.raises(ClassesError, match=message):
        select_classes(VOCABULARY, allow, deny, ontology)
