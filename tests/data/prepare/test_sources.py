"""Sources of clips by file name, and exact copies."""

from __future__ import annotations

from psla_jax.data.prepare.sources import by_file_name, copy_notes, exact_copies, split_notes


def names(*pairs: tuple[str, str]) -> tuple[str, list[str]]:
    return by_file_name([f"folder/{name}.wav" for name, _ in pairs], [(label,) for _, label in pairs])


def test_file_names_of_public_data_sets_contain_the_source():
    assert names(("1-100032-A-0", "dog"), ("1-100032-B-0", "dog"), ("2-7-A-5", "cat")) == (
        "ESC-50",
        ["100032", "100032", "7"],
    )
    assert names(("100032-3-0-0", "dog_bark"), ("100032-3-1-0", "dog_bark"), ("own", "x")) == (
        "UrbanSound8K",
        ["100032", "100032", ""],
    )
    assert names(("0a7c2a8d_nohash_0", "yes"), ("0a7c2a8d_nohash_1", "no")) == ("Speech Commands", ["0a7c2a8d"] * 2)


def test_other_names_contain_no_source():
    dates = ("2020-5-01-12", "dog"), ("2020-5-02-10", "cat"), ("2021-6-02-10", "cat")
    assert names(*dates) == ("", ["", "", ""])
    assert names(("1-100032-A-0", "dog"), ("own1", "dog"), ("own2", "dog")) == ("", ["", "", ""])


def test_exact_copies_are_found_and_counted(tmp_path):
    content = {"a": b"x" * 9000, "b": b"x" * 9000, "c": b"x" * 8999 + b"y", "d": b"z", "e": b"x" * 9000, "f": b"w"}
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    paths = [str(tmp_path / name) for name in (*content, "missing")]
    copies = exact_copies(paths, progress=False)
    assert list(copies) == [0, 1, 4]
    assert len(set(copies.values())) == 1
    labels = [("dog",), ("dog",), ("dog",), ("dog",), ("cat",), ("dog",), ("dog",)]
    parts = ["train", "evaluation", "train", "train", "evaluation", "train", "train"]
    assert list(copy_notes(paths, labels, parts, copies)) == [
        "copies of other recordings of the evaluation part in it, which count again in metrics: 1",
        "copies of training clips in the evaluation part, which make metrics too high: 2, such as "
        f"{paths[1]}; delete them",
        f"recordings with the same content but different labels: 3, such as {paths[0]} = {paths[1]}",
        f"exact copies of other recordings: 2, such as {paths[0]} = {paths[1]}",
    ]
    assert list(copy_notes(paths, labels, parts, {})) == []


def test_sources_in_several_parts_are_reported():
    assert list(split_notes(["a", "a", "b", ""], ["train", "validation", "train", "train"])) == [
        "sources with clips in several parts of the split, which makes metrics too high: 1, such as a"
    ]
    assert list(split_notes(["a", "a", "b", ""], ["train", "train", "validation", "train"])) == [
        "3 clips are of 2 sources; all clips of a source are in one part"
    ]
    assert list(split_notes(["a", "", "b", ""], ["train", "train", "validation", "train"])) == []
