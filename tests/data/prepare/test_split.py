"""Stratified split: shares of every class, guarantees for rare classes, and dependence on names and seed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from psla_jax.data.prepare.split import stratified

SHARES = {"evaluation": 0.1, "validation": 0.1}


def clips(seed: int, max_labels: int) -> tuple[list[str], list[list[int]]]:
    """Returns names and labels of clips with one to `max_labels` of up to 39 classes, some of them rare."""
    rng = np.random.default_rng(seed)
    classes, count = int(rng.integers(2, 40)), int(rng.integers(20, 300))
    probabilities = rng.dirichlet(np.full(classes, 0.5))
    labels = [
        sorted(set(rng.choice(classes, size=rng.integers(1, max_labels + 1), p=probabilities).tolist()))
        for _ in range(count)
    ]
    return [f"clip{i}" for i in range(count)], labels


def count_parts(labels: list[list[int]], parts: list[str]) -> dict[int, Counter]:
    counts: dict[int, Counter] = {}
    for clip_labels, part in zip(labels, parts, strict=True):
        for label in clip_labels:
            counts.setdefault(label, Counter())[part] += 1
    return counts


@pytest.mark.parametrize("seed", range(20))
def test_with_one_label_every_class_has_exactly_its_share(seed):
    names, labels = clips(seed, 1)
    for counts in count_parts(labels, stratified(names, labels, SHARES, seed=seed)).values():
        total = counts.total()
        assert counts["evaluation"] == (max(1, round(0.1 * total)) if total >= 2 else 0)
        assert counts["validation"] == (max(1, round(0.1 * total)) if total >= 4 else 0)


@pytest.mark.parametrize("seed", range(40))
def test_with_several_labels_every_class_of_two_clips_is_trained_on_and_scored(seed):
    names, labels = clips(seed, 3)
    parts = stratified(names, labels, SHARES, seed=seed)
    for counts in count_parts(labels, parts).values():
        if counts.total() >= 2:
            assert counts["train"] >= 1
            assert counts["evaluation"] >= 1
        # Frequent classes get nearly their exact share, although they co-occur with others.
        if counts.total() >= 50:
            assert counts["evaluation"] / counts.total() == pytest.approx(0.1, abs=0.08)
    assert Counter(parts)["train"] / len(parts) > 0.6


def test_a_class_of_two_clips_that_share_their_labels_with_others_is_in_both_parts():
    # A greedy assignment would put both clips of class 0 into training: each is the only clip of another class.
    labels = [[0, 1], [0, 2], [3], [3], [4], [4]]
    counts = count_parts(labels, stratified(list("abcdef"), labels, {"evaluation": 0.5}, seed=0))
    assert all(counts[label]["train"] == counts[label]["evaluation"] == 1 for label in (0, 3, 4))


def test_a_part_depends_on_seed_and_name_and_not_on_the_order():
    names, labels = clips(0, 3)
    parts = dict(zip(names, stratified(names, labels, SHARES, seed=1)))
    order = np.random.default_rng(0).permutation(len(names))
    again = stratified([names[i] for i in order], [labels[i] for i in order], SHARES, seed=1)
    assert again == [parts[names[i]] for i in order]
    assert stratified(names, labels, SHARES, seed=2) != [parts[name] for name in names]


def test_an_additional_clip_changes_the_part_of_few_others():
    names, labels = [f"clip{i}" for i in range(200)], [[i % 4] for i in range(200)]
    before = stratified(names, labels, SHARES, seed=0)
    after = stratified([*names, "new"], [*labels, [0]], SHARES, seed=0)
    assert sum(a != b for a, b in zip(before, after)) <= 10


def test_clips_without_labels_are_split_by_the_shares():
    parts = stratified([f"clip{i}" for i in range(100)], [[]] * 100, SHARES, seed=0)
    assert Counter(parts) == {"train": 80, "evaluation": 10, "validation": 10}


def test_a_split_into_two_parts():
    parts = stratified(["a", "b", "c", "d"], [[0], [0], [1], [1]], {"validation": 0.5}, seed=0)
    assert Counter(parts) == {"train": 2, "validation": 2}


def pieces(seed: int, max_labels: int) -> tuple[list[str], list[list[int]], list[str]]:
    """Returns names, labels and groups of 25 classes in 40 pieces each of recordings that have up to eight pieces."""
    rng = np.random.default_rng(seed)
    names, labels, groups = [], [], []
    for label in range(25):
        count = 0
        while count < 40:
            size, others = min(int(rng.integers(1, 9)), 40 - count), rng.integers(0, 25, max_labels - 1).tolist()
            for piece in range(size):
                names.append(f"{label}-{count}-{piece}")
                labels.append(sorted({label, *others}))
                groups.append(f"{label}-{count}")
            count += size
    return names, labels, groups


@pytest.mark.parametrize("shares", [SHARES, {"validation": 0.1}])
@pytest.mark.parametrize("seed", range(8))
def test_no_group_is_divided_and_every_class_has_nearly_its_share(seed, shares):
    names, labels, groups = pieces(seed, 1)
    parts = stratified(names, labels, shares, seed=seed, groups=groups)
    assert len(set(zip(groups, parts))) == len(set(groups))
    counts = count_parts(labels, parts)
    held_out = [counts[label][part] for label in counts for part in shares]
    assert max(abs(count - 4) for count in held_out) <= 2  # of 40 clips; four is the exact share
    assert sum(count == 4 for count in held_out) >= 0.6 * len(held_out)
    assert stratified(names, labels, shares, seed=seed) != parts


@pytest.mark.parametrize("seed", range(8))
def test_groups_with_several_labels_are_not_divided(seed):
    names, labels, groups = pieces(seed, 3)
    names, labels, groups = [*names, "x1", "x2"], [*labels, [], []], [*groups, "x", "x"]
    parts = stratified(names, labels, SHARES, seed=seed, groups=groups)
    assert len(set(zip(groups, parts))) == len(set(groups))
    for counts in count_parts(labels, parts).values():
        for part in SHARES:
            assert counts[part] / counts.total() == pytest.approx(0.1, abs=0.06)


def test_a_class_of_one_group_is_in_the_training_part():
    labels, groups = [[0]] * 6 + [[1]] * 6, ["a"] * 6 + ["b"] * 4 + ["c", "d"]
    parts = stratified([f"clip{i}" for i in range(12)], labels, {"evaluation": 0.2}, seed=0, groups=groups)
    assert set(parts[:6]) == {"train"}
    assert Counter(parts[6:]) == {"train": 5, "evaluation": 1}
