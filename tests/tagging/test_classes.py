"""Classes by name, mid and descent."""

from __future__ import annotations

import pytest

from psla_jax.ontology import Ontology, SoundClass, Vocabulary
from psla_jax.tagging.classes import ClassesError, selected

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
def test_classes_are_found(allow, deny, ontology, expected):
    assert selected(VOCABULARY, allow, deny, ontology) == expected


@pytest.mark.parametrize(
    ("allow", "deny", "ontology", "message"),
    [
        (["Dgo"], [], None, "there is no class 'Dgo': did you mean 'dog'"),
        (["Animal"], [], None, "there is no class 'Animal'"),
        ([], ["Helicopter"], ONTOLOGY, "there is no class 'Helicopter': name classes as the model does"),
        (["Howl"], [], ONTOLOGY, "knows neither 'Howl' nor a class below it"),
        (["Dog"], ["Dog"], None, "no class is left"),
    ],
)
def test_classes_that_are_not_there_are_named(allow, deny, ontology, message):
    with pytest.raises(ClassesError, match=message):
        selected(VOCABULARY, allow, deny, ontology)
