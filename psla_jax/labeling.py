"""The L of PSLA: labels that annotators left out and a model finds (PSLA, section III-D).

A clip that has a class but not the child of it that can be heard is a Type I error; one that has a class but not its
parents, a Type II error. Enhancement adds the child, or the ancestor, where a model scores it above what it typically
gives to the clips that carry it. Labels are only ever added.

Labels are held as sorted keys, one number per clip and class: as a matrix, those of two million clips would fill a
gigabyte, and few of them are ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from psla_jax.config import Kind, Threshold
from psla_jax.data.datafile import Datafile
from psla_jax.ontology import Ontology, Vocabulary

MERGED: Kind = "type1_2"
LEFT_OUT = frozenset({"/m/0bm0k", "/t/dd00071"})
"""Classes whose labels add nothing in the reference, by name: FSD50K's Crash cymbal and Domestic sounds. They are in no
other released class list."""
_STATISTICS: Mapping[Threshold, Callable[[np.ndarray], float]] = {
    "mean": lambda scores: float(np.mean(scores)),
    "median": lambda scores: float(np.median(scores)),
    "25": lambda scores: float(np.percentile(scores, 25)),
    "10": lambda scores: float(np.percentile(scores, 10)),
    "5": lambda scores: float(np.percentile(scores, 5)),
}


@dataclass(frozen=True, eq=False)
class Links:
    """From every class to some other classes, by index."""

    targets: np.ndarray
    """int64: the targets of all classes, one class after the other."""
    offsets: np.ndarray
    """int64 ``(classes + 1,)``: where each class's targets start; the last is the end."""

    @classmethod
    def of(cls, targets: Sequence[Iterable[int]]) -> Links:
        """The links that have, for each class, these targets."""
        rows = [sorted(set(row)) for row in targets]
        return cls(np.array([t for row in rows for t in row], np.int64), np.cumsum([0, *map(len, rows)]))

    def counts(self) -> np.ndarray:
        """How many targets each class has, ``(classes,)``."""
        return np.diff(self.offsets)

    def follow(self, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All targets of each of `classes`, one after the other, and for each the position in `classes` it is from."""
        counts = self.counts()[classes]
        origin = np.repeat(np.arange(len(classes)), counts)
        within = np.arange(len(origin)) - np.repeat(np.cumsum(counts) - counts, counts)
        return self.targets[self.offsets[classes][origin] + within], origin


@dataclass(frozen=True, eq=False)
class Relations:
    """What a label may add, within the vocabulary.

    Classes that the ontology marks exactly ``["abstract"]`` have no entry, as in the reference: their labels add
    nothing, and they are nobody's parent, so that no ancestor is found through them.
    """

    children: Links
    """Type I: the direct children."""
    ancestors: Links
    """Type II: the parents, their parents and so on; those in between need not be in the vocabulary."""
    parents: Links
    """The direct parents."""
    abstract: tuple[str, ...]
    """Classes of the vocabulary whose labels add nothing because they are abstract, or in :data:`LEFT_OUT`."""
    unknown: tuple[str, ...]
    """Classes of the vocabulary that the ontology lacks: they add nothing, and nothing adds them."""

    @classmethod
    def of(cls, vocabulary: Vocabulary, ontology: Ontology) -> Relations:
        """The relations of the classes of a vocabulary."""
        parents: dict[str, list[str]] = {mid: [] for mid in ontology.classes}
        for entry in ontology.classes.values():
            for child in entry.children if not _is_abstract(ontology, entry.mid) else ():
                parents[child].append(entry.mid)
        unknown = tuple(mid for mid in vocabulary.mids if mid not in ontology)
        abstract = tuple(m for m in vocabulary.mids if m in LEFT_OUT or (m in ontology and _is_abstract(ontology, m)))
        silent = {*unknown, *abstract}

        def links(targets: Callable[[str], Iterable[str]]) -> Links:
            found = [() if mid in silent else targets(mid) for mid in vocabulary.mids]
            return Links.of([[vocabulary.index(mid) for mid in row if mid in vocabulary] for row in found])

        return cls(
            children=links(ontology.children),
            ancestors=links(lambda mid: _above(mid, parents)),
            parents=links(parents.__getitem__),
            abstract=abstract,
            unknown=unknown,
        )


def _is_abstract(ontology: Ontology, mid: str) -> bool:
    return ontology.restrictions(mid) == ("abstract",)


def _above(mid: str, parents: Mapping[str, Sequence[str]]) -> set[str]:
    """Everything that is reached from a class by going to parents."""
    found: set[str] = set()
    waiting = [mid]
    while waiting:
        new = set(parents[waiting.pop()]) - found
        found |= new
        waiting += new
    return found


@dataclass(frozen=True, eq=False)
class Labels:
    """Which clip has which class: ``clip * num_classes + class`` for each label, int64, sorted, each once."""

    keys: np.ndarray
    num_clips: int
    num_classes: int

    @classmethod
    def of(cls, datafile: Datafile) -> Labels:
        """The labels of a datafile."""
        clips = np.repeat(np.arange(len(datafile)), np.diff(datafile.label_offsets))
        keys = clips * datafile.num_classes + datafile.label_indices
        return cls(np.sort(keys), len(datafile), datafile.num_classes)

    def __len__(self) -> int:
        return len(self.keys)

    def has(self, keys: np.ndarray) -> np.ndarray:
        """Whether each of `keys` is among them, bool."""
        if not len(self.keys):
            return np.zeros(len(keys), bool)
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return self.keys[places] == keys

    def classes(self) -> np.ndarray:
        """The class of every label."""
        return self.keys % self.num_classes

    def clips(self) -> np.ndarray:
        """The clip of every label."""
        return self.keys // self.num_classes

    def counts(self) -> np.ndarray:
        """How many clips have each class: ``(classes,)``."""
        return np.bincount(self.classes(), minlength=self.num_classes)

    def joined(self, keys: np.ndarray) -> Labels:
        """With these labels added."""
        return Labels(_distinct(np.concatenate([self.keys, keys])), self.num_clips, self.num_classes)

    def linked(self, links: Links) -> tuple[np.ndarray, np.ndarray]:
        """The keys, in the same clip, of what each label is linked to, and the position of the label each is from."""
        classes = self.classes()
        targets, origin = links.follow(classes)
        return (self.keys - classes)[origin] + targets, origin

    def without_parent(self, relations: Relations) -> int:
        """Labels of which a direct parent in the vocabulary is missing: Type II errors."""
        keys, origin = self.linked(relations.parents)
        return len(_distinct(origin[~self.has(keys)]))

    def without_child(self, relations: Relations) -> int:
        """Labels that have children in the vocabulary, and none of them on the same clip: possible Type I errors."""
        keys, origin = self.linked(relations.children)
        return len(_distinct(origin)) - len(_distinct(origin[self.has(keys)]))


def _distinct(keys: np.ndarray) -> np.ndarray:
    """Sorted, each once. (``numpy.unique`` hashes, which takes ten times as long for millions of integers.)"""
    keys = np.sort(keys, kind="stable")  # mostly a few sorted runs, which it merges
    return keys[np.append(True, keys[1:] != keys[:-1])[: len(keys)]]


@dataclass(frozen=True, eq=False)
class ClipScores:
    """The scores of the clips of a datafile.

    Attributes:
        values: ``(rows, classes)`` floats, the classes as in the vocabulary.
        rows: int64 ``(clips,)``, where each clip's scores are; -1 for a clip without any.
    """

    values: np.ndarray
    rows: np.ndarray

    def of(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The scores of labels given by their keys, as float64, and which of the labels have one."""
        clips, classes = np.divmod(keys, self.values.shape[1])
        rows = self.rows[clips]
        there = rows >= 0
        return self.values[rows[there], classes[there]].astype(np.float64), there


def thresholds(labels: Labels, scores: ClipScores, names: Sequence[Threshold]) -> dict[Threshold, np.ndarray]:
    """What a class has to score to be added, by threshold: float64 ``(classes,)``.

    It is the mean, median or percentile (linearly interpolated) of its scores on the clips that carry it; NaN for a
    class that no clip with scores carries.
    """
    values, scored = scores.of(labels.keys)
    classes = labels.classes()[scored]
    # The order among the clips of a class is kept: sums then round as in a plain loop over the classes.
    values = values[np.argsort(classes, kind="stable")]
    ends = np.cumsum(np.bincount(classes, minlength=labels.num_classes))
    of_class = np.split(values, ends[:-1])
    return {name: np.array([_STATISTICS[name](v) if len(v) else np.nan for v in of_class]) for name in names}


@dataclass(frozen=True, eq=False)
class Enhancement:
    """What enhancement adds to the labels of a datafile.

    Attributes:
        labels: the labels before.
        scored: clips with each class that have scores, ``(classes,)``.
        thresholds: by their name, see :func:`thresholds`.
        added: the keys of the labels that are added, by kind and threshold.
    """

    labels: Labels
    scored: np.ndarray
    thresholds: Mapping[Threshold, np.ndarray]
    added: Mapping[tuple[Kind, Threshold], np.ndarray]

    def counts(self, kind: Kind, name: Threshold) -> np.ndarray:
        """How many clips gain each class: ``(classes,)``."""
        return np.bincount(self.added[kind, name] % self.labels.num_classes, minlength=self.labels.num_classes)

    def clips_changed(self, kind: Kind, name: Threshold) -> int:
        """How many clips gain a label."""
        return len(_distinct(self.added[kind, name] // self.labels.num_classes))

    def after(self, kind: Kind, name: Threshold) -> Labels:
        """The labels with what is added."""
        return self.labels.joined(self.added[kind, name])


def enhance(labels: Labels, scores: ClipScores, relations: Relations, names: Sequence[Threshold]) -> Enhancement:
    """Type I, Type II and merged enhancement, for each of the thresholds `names`.

    For every label of a clip, each direct child (Type I) or ancestor (Type II) in the vocabulary is added that the clip
    does not have and whose score is strictly above its threshold. What is added adds nothing further. Merged is the
    union of both.
    """
    limits = thresholds(labels, scores, names)
    added: dict[tuple[Kind, Threshold], np.ndarray] = {}
    single: dict[Kind, Links] = {"type1": relations.children, "type2": relations.ancestors}
    for kind, links in single.items():
        wanted = _distinct(labels.linked(links)[0])
        wanted = wanted[~labels.has(wanted)]
        values, scored = scores.of(wanted)
        wanted = wanted[scored]
        classes = wanted % labels.num_classes
        for name in names:
            # Nothing is above a threshold that is NaN.
            added[kind, name] = wanted[values > limits[name][classes]]
    for name in names:
        added[MERGED, name] = _distinct(np.concatenate([added["type1", name], added["type2", name]]))
    carriers = labels.classes()[scores.rows[labels.clips()] >= 0]
    return Enhancement(labels, np.bincount(carriers, minlength=labels.num_classes), limits, added)
