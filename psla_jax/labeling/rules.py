"""The L of PSLA: rules that add missing labels to incompletely annotated clips (PSLA, section III-D).

A Type I error is a label whose audible child class is missing, a Type II error one whose parent class is missing.
Enhancement adds the child, or the ancestor, if a model scores it above a threshold that is typical of the clips with
that label. Labels are never removed.

Labels are stored as sorted integer keys, one per pair of clip and class: a dense matrix for two million clips would
take a gigabyte and consist mostly of zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from psla_jax.config import Kind, Threshold
from psla_jax.data.datafile import Datafile
from psla_jax.vocabulary.ontology import Ontology
from psla_jax.vocabulary.vocabulary import Vocabulary

MERGED: Kind = "type1_2"
EXCLUDED = frozenset({"/m/0bm0k", "/t/dd00071"})
"""Classes that the reference excludes by mid, so that their labels add nothing: FSD50K's Crash cymbal and Domestic
sounds. No other released class list contains them."""
_STATISTICS: Mapping[Threshold, Callable[[np.ndarray], float]] = {
    "mean": lambda scores: float(np.mean(scores)),
    "median": lambda scores: float(np.median(scores)),
    "25": lambda scores: float(np.percentile(scores, 25)),
    "10": lambda scores: float(np.percentile(scores, 10)),
    "5": lambda scores: float(np.percentile(scores, 5)),
}


@dataclass(frozen=True, eq=False)
class Links:
    """A mapping from each class to a set of related classes, by index."""

    targets: np.ndarray
    """int64: related classes of all classes, concatenated."""
    offsets: np.ndarray
    """int64 ``(classes + 1,)``: start of each class's targets; the last entry is the end."""

    @classmethod
    def from_targets(cls, targets: Sequence[Iterable[int]]) -> Links:
        """Returns the links with the given related classes of each class."""
        rows = [sorted(set(row)) for row in targets]
        return cls(np.array([t for row in rows for t in row], np.int64), np.cumsum([0, *map(len, rows)]))

    def counts(self) -> np.ndarray:
        """Returns the number of related classes of each class, ``(classes,)``."""
        return np.diff(self.offsets)

    def follow(self, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the related classes of all `classes`, concatenated, and for each its position in `classes`."""
        counts = self.counts()[classes]
        origin = np.repeat(np.arange(len(classes)), counts)
        within = np.arange(len(origin)) - np.repeat(np.cumsum(counts) - counts, counts)
        return self.targets[self.offsets[classes][origin] + within], origin


@dataclass(frozen=True, eq=False)
class Relations:
    """Relations between the classes of a vocabulary that enhancement uses.

    As in the reference, classes whose restrictions in the ontology are exactly ``["abstract"]`` have no entry: their
    labels add nothing, and they are not parents, so that no ancestor is reached through them.
    """

    children: Links
    """Direct children (Type I)."""
    ancestors: Links
    """Parents, their parents and so on (Type II); intermediate classes need not be in the vocabulary."""
    parents: Links
    """Direct parents."""
    abstract: tuple[str, ...]
    """Classes of the vocabulary whose labels add nothing because they are abstract or in :data:`EXCLUDED`."""
    unknown: tuple[str, ...]
    """Classes of the vocabulary that are not in the ontology; they add nothing and are never added."""

    @classmethod
    def from_ontology(cls, vocabulary: Vocabulary, ontology: Ontology) -> Relations:
        """Returns the relations of the classes of a vocabulary."""
        parents: dict[str, list[str]] = {mid: [] for mid in ontology.classes}
        for entry in ontology.classes.values():
            for child in entry.children if not _is_abstract(ontology, entry.mid) else ():
                parents[child].append(entry.mid)
        unknown = tuple(mid for mid in vocabulary.mids if mid not in ontology)
        abstract = tuple(m for m in vocabulary.mids if m in EXCLUDED or (m in ontology and _is_abstract(ontology, m)))
        inactive = {*unknown, *abstract}

        def links(targets: Callable[[str], Iterable[str]]) -> Links:
            mids = [() if mid in inactive else targets(mid) for mid in vocabulary.mids]
            return Links.from_targets([[vocabulary.index(mid) for mid in row if mid in vocabulary] for row in mids])

        ancestors = links(lambda mid: _ancestors(mid, parents))
        return cls(links(ontology.children), ancestors, links(parents.__getitem__), abstract, unknown)


def _is_abstract(ontology: Ontology, mid: str) -> bool:
    return ontology.restrictions(mid) == ("abstract",)


def _ancestors(mid: str, parents: Mapping[str, Sequence[str]]) -> set[str]:
    ancestors: set[str] = set()
    queue = [mid]
    while queue:
        new = set(parents[queue.pop()]) - ancestors
        ancestors |= new
        queue += new
    return ancestors


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels of a set of clips."""

    keys: np.ndarray
    """int64 ``(labels,)``: ``clip * num_classes + class`` of each label, sorted and unique."""
    num_clips: int
    num_classes: int

    @classmethod
    def from_datafile(cls, datafile: Datafile) -> Labels:
        """Returns the labels of a datafile."""
        clips = np.repeat(np.arange(len(datafile)), np.diff(datafile.label_offsets))
        keys = clips * datafile.num_classes + datafile.label_indices
        return cls(np.sort(keys), len(datafile), datafile.num_classes)

    def __len__(self) -> int:
        return len(self.keys)

    def has(self, keys: np.ndarray) -> np.ndarray:
        """Returns whether each of `keys` is one of the labels, bool ``(keys,)``."""
        if not len(self.keys):
            return np.zeros(len(keys), bool)
        positions = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return self.keys[positions] == keys

    def classes(self) -> np.ndarray:
        """Returns the class of every label, ``(labels,)``."""
        return self.keys % self.num_classes

    def clips(self) -> np.ndarray:
        """Returns the clip of every label, ``(labels,)``."""
        return self.keys // self.num_classes

    def counts(self) -> np.ndarray:
        """Returns the number of clips with each class, ``(classes,)``."""
        return np.bincount(self.classes(), minlength=self.num_classes)

    def with_added(self, keys: np.ndarray) -> Labels:
        """Returns the union of these labels and the labels `keys`."""
        return Labels(_sorted_unique(np.concatenate([self.keys, keys])), self.num_clips, self.num_classes)

    def related(self, links: Links) -> tuple[np.ndarray, np.ndarray]:
        """Returns the keys of all classes related to each label, in the label's clip, and the label's position."""
        classes = self.classes()
        targets, origin = links.follow(classes)
        return (self.keys - classes)[origin] + targets, origin

    def without_parent(self, relations: Relations) -> int:
        """Returns the number of labels with a missing direct parent in the vocabulary (Type II errors)."""
        keys, origin = self.related(relations.parents)
        return len(_sorted_unique(origin[~self.has(keys)]))

    def without_child(self, relations: Relations) -> int:
        """Returns the number of labels whose children in the vocabulary are all missing (possible Type I errors)."""
        keys, origin = self.related(relations.children)
        return len(_sorted_unique(origin)) - len(_sorted_unique(origin[self.has(keys)]))


def _sorted_unique(keys: np.ndarray) -> np.ndarray:
    """Returns the sorted unique keys; ``numpy.unique`` hashes, which takes ten times as long for millions of keys."""
    keys = np.sort(keys, kind="stable")  # fast for the usual concatenation of a few sorted runs
    return keys[np.append(True, keys[1:] != keys[:-1])[: len(keys)]]


@dataclass(frozen=True, eq=False)
class ClipScores:
    """Scores of the clips of a datafile.

    Attributes:
        values: float ``(rows, classes)``, with the classes of the vocabulary.
        rows: int64 ``(clips,)``, row of each clip in `values`; -1 for a clip without scores.
    """

    values: np.ndarray
    rows: np.ndarray

    def lookup(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the scores, float64, of those label keys that have one, and a bool mask of these ``(keys,)``."""
        clips, classes = np.divmod(keys, self.values.shape[1])
        rows = self.rows[clips]
        scored = rows >= 0
        return self.values[rows[scored], classes[scored]].astype(np.float64), scored


def thresholds(labels: Labels, scores: ClipScores, names: Sequence[Threshold]) -> dict[Threshold, np.ndarray]:
    """Returns the score above which a class is added, float64 ``(classes,)``, for each of the statistics `names`.

    The threshold of a class is the mean, median or percentile (linearly interpolated) of its scores on the clips that
    have the label; NaN if no clip with scores has it.
    """
    values, scored = scores.lookup(labels.keys)
    classes = labels.classes()[scored]
    # A stable sort preserves the order of the clips, so that sums round as in a plain loop over the classes.
    values = values[np.argsort(classes, kind="stable")]
    ends = np.cumsum(np.bincount(classes, minlength=labels.num_classes))
    class_values = np.split(values, ends[:-1])
    return {name: np.array([_STATISTICS[name](v) if len(v) else np.nan for v in class_values]) for name in names}


@dataclass(frozen=True, eq=False)
class Enhancement:
    """Labels added to a datafile by enhancement.

    Attributes:
        labels: labels before enhancement.
        scored: number of clips with scores that have each class, ``(classes,)``.
        thresholds: thresholds by name, see :func:`thresholds`.
        added: keys of the added labels, by kind and threshold.
    """

    labels: Labels
    scored: np.ndarray
    thresholds: Mapping[Threshold, np.ndarray]
    added: Mapping[tuple[Kind, Threshold], np.ndarray]

    def counts(self, kind: Kind, name: Threshold) -> np.ndarray:
        """Returns the number of clips to which each class is added, ``(classes,)``."""
        return np.bincount(self.added[kind, name] % self.labels.num_classes, minlength=self.labels.num_classes)

    def clips_changed(self, kind: Kind, name: Threshold) -> int:
        """Returns the number of clips to which a label is added."""
        return len(_sorted_unique(self.added[kind, name] // self.labels.num_classes))

    def after(self, kind: Kind, name: Threshold) -> Labels:
        """Returns the labels after enhancement."""
        return self.labels.with_added(self.added[kind, name])


def enhance(labels: Labels, scores: ClipScores, relations: Relations, names: Sequence[Threshold]) -> Enhancement:
    """Returns the labels added by Type I, Type II and merged enhancement, for each of the thresholds `names`.

    For every label of a clip, each direct child (Type I) or ancestor (Type II) in the vocabulary is added if the clip
    does not have it and scores it strictly above its threshold. Added labels do not add further labels. Merged
    enhancement is the union of both.
    """
    limits = thresholds(labels, scores, names)
    added: dict[tuple[Kind, Threshold], np.ndarray] = {}
    single: dict[Kind, Links] = {"type1": relations.children, "type2": relations.ancestors}
    for kind, links in single.items():
        candidates = _sorted_unique(labels.related(links)[0])
        candidates = candidates[~labels.has(candidates)]
        values, scored = scores.lookup(candidates)
        candidates = candidates[scored]
        for name in names:
            # A comparison with a NaN threshold is false.
            added[kind, name] = candidates[values > limits[name][candidates % labels.num_classes]]
    for name in names:
        added[MERGED, name] = _sorted_unique(np.concatenate([added["type1", name], added["type2", name]]))
    scored_labels = labels.classes()[scores.rows[labels.clips()] >= 0]
    return Enhancement(labels, np.bincount(scored_labels, minlength=labels.num_classes), limits, added)
