"""Own recordings to vocabulary, datafiles and config."""

from __future__ import annotations

import csv
import json
import runpy
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from servers import one_sentence

from psla_jax.data.collection import Clip, Collection, CollectionError, LeftOut, Prepared, prepare
from psla_jax.data.datafile import Datafile
from psla_jax.data.files import FilesError
from psla_jax.ontology import Vocabulary, VocabularyError

PARTS = ("train", "validation", "evaluation")


@pytest.fixture(scope="module")
def audio(tmp_path_factory) -> Path:
    """Forty recordings of several rates and formats, 0.1 s each but for one of 2 s."""
    folder = tmp_path_factory.mktemp("audio")
    for i in range(40):
        rate, ending = (8000, "wav") if i % 2 else (22_050, "flac")
        soundfile.write(folder / f"{i:02d}.{ending}", np.full(rate // 10 if i else 2 * rate, 0.1), rate)
    return folder


def collection(audio: Path, *labels: str, parts: str = "", exclusive: bool = True) -> Collection:
    """The first recordings with these labels, ``;`` between them, and parts by their first letter."""
    files = sorted(audio.iterdir())
    names = {"t": "train", "v": "validation", "e": "evaluation", "": ""}
    given = [names[parts[i : i + 1]] for i in range(len(labels))]
    clips = [
        Clip(str(files[i]), tuple(filter(None, cell.split(";"))), given[i]) for i, cell in enumerate(labels)
    ]  # fmt: skip
    return Collection("a test", tuple(clips), exclusive)


def run(found: Collection, out: Path, **options) -> Prepared:
    return prepare(found, str(out), progress=False, **options)


def records(path: str) -> dict[str, str]:
    return {Path(r["wav"]).name: r["labels"] for r in json.loads(Path(path).read_text())["data"]}


def test_what_is_written_is_read_by_training(audio, tmp_path):
    made = run(collection(audio, *["dog", "cat"] * 20), tmp_path / "out")
    vocabulary = Vocabulary.read(made.labels)
    assert vocabulary == Vocabulary(("cat", "dog"), ("cat", "dog"))
    config = runpy.run_path(made.config)["config"]
    seen = Counter()
    for part in PARTS:
        assert getattr(config.data, part) == made.datafiles[part] == str(tmp_path / "out" / f"{part}.json")
        data = Datafile.read(made.datafiles[part], vocabulary)
        assert data.exclusive
        assert len(data) == made.clips[part] == {"train": 32}.get(part, 4)
        assert set(data.class_counts()) == {16 if part == "train" else 2}
        seen.update(data.wav(i) for i in range(len(data)))
    assert seen == Counter({str(file): 1 for file in audio.iterdir()})
    assert config.frontend.target_length == 32
    report = made.report().splitlines()
    assert report[0] == "layout: a test"
    assert report[-1] == f"to train on it: psla train {made.config}"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "class_labels_indices.csv", "config.py", "evaluation.json", "train.json", "validation.json",
    ]  # fmt: skip


def test_the_same_seed_gives_the_same_files_wherever_the_recordings_lie(audio, tmp_path):
    labels = ["a", "b", "c", "d"] * 10
    one, two, other = (run(collection(audio, *labels), tmp_path / n, seed=s) for n, s in (("1", 5), ("2", 5), ("3", 6)))
    (tmp_path / "moved").mkdir()
    for file in audio.iterdir():
        (tmp_path / "moved" / file.name).symlink_to(file)
    moved = run(collection(tmp_path / "moved", *labels), tmp_path / "4", seed=5)
    for part in PARTS:
        files = [Path(made.datafiles[part]) for made in (one, two, other)]
        assert files[0].read_bytes() == files[1].read_bytes()
        assert records(one.datafiles[part]) == records(moved.datafiles[part])
    assert records(one.datafiles["evaluation"]) != records(other.datafiles["evaluation"])


def test_several_labels_are_said_to_be_that(audio, tmp_path):
    made = run(collection(audio, *["a;b", "b", "a", ""] * 5, exclusive=False), tmp_path)
    vocabulary = Vocabulary.read(made.labels)
    assert not any(Datafile.read(path, vocabulary).exclusive for path in made.datafiles.values())
    assert records(made.datafiles["train"])["00.flac"] in ("a,b", "b,a", "")
    assert "binary cross-entropy" in Path(made.config).read_text()


def test_commas_in_names_are_kept_in_the_name_and_not_in_the_mid(audio, tmp_path):
    made = run(collection(audio, *["Male speech, man", "Music"] * 2), tmp_path)
    assert Vocabulary.read(made.labels).to_json() == [["Male speech; man", "Male speech, man"], ["Music", "Music"]]
    assert set(records(made.datafiles["train"]).values()) == {"Male speech; man", "Music"}
    files = sorted(map(str, audio.iterdir()))
    alike = Collection("a test", (Clip(files[0], ("a, b",)), Clip(files[1], ("a; b",))), True)
    with pytest.raises(VocabularyError, match="'a; b', as one before it"):
        run(alike, tmp_path / "twice")
    assert not (tmp_path / "twice").exists()


def test_a_split_that_is_given_is_kept(audio, tmp_path):
    made = run(collection(audio, *"ababab", parts="ttteve"), tmp_path / "1")
    assert {part: list(records(path)) for part, path in made.datafiles.items()} == {
        "train": ["00.flac", "01.wav", "02.flac"],
        "validation": ["04.flac"],
        "evaluation": ["03.wav", "05.wav"],
    }
    bare = run(collection(audio, *"ab" * 10, parts="tttttttttttttttteeee"), tmp_path / "2")
    assert bare.clips == {"train": 16, "evaluation": 4}
    assert "no validation part, so no epoch is chosen" in "".join(bare.notes)
    assert runpy.run_path(bare.config)["config"].data.validation == ""
    taken = run(collection(audio, *"ab" * 10, parts="tttttttttttttttteeee"), tmp_path / "3", validation=0.25)
    assert taken.clips == {"train": 12, "validation": 4, "evaluation": 4}
    assert records(taken.datafiles["evaluation"]) == records(bare.datafiles["evaluation"])
    assert Counter(records(taken.datafiles["validation"]).values()) == {"a": 2, "b": 2}


def test_shares_can_be_chosen(audio, tmp_path):
    made = run(collection(audio, *"ab" * 20), tmp_path / "1", validation=0.0, evaluation=0.3)
    assert made.clips == {"train": 28, "evaluation": 12}
    for options in ({"validation": 1.0}, {"evaluation": -0.1}, {"validation": 0.5, "evaluation": 0.5}):
        with pytest.raises(CollectionError, match=r"--(validation|evaluation)") as caught:
            run(collection(audio, *"ab" * 20), tmp_path / "2", **options)
        one_sentence(caught.value)
    with pytest.raises(CollectionError, match="both 0"):
        run(collection(audio, *"ab"), tmp_path / "2", validation=0.0, evaluation=0.0)


def test_recordings_that_cannot_be_read_are_left_out_and_listed(audio, tmp_path):
    (tmp_path / "broken, twice.wav").write_text("hello")
    (tmp_path / "empty.wav").touch()
    found = collection(audio, *"ab" * 5)
    broken = tuple(Clip(str(tmp_path / name), ("c",)) for name in ("empty.wav", "broken, twice.wav"))
    before = LeftOut("/x.m4a", "is of a kind that is not read.")
    made = run(Collection("a test", found.clips + broken, True, (before,)), tmp_path / "out")
    assert made.classes == 2
    assert [Path(left.path).name for left in made.left_out] == ["x.m4a", "broken, twice.wav", "empty.wav"]
    with open(made.left_out_list, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [left.path for left in made.left_out]
    assert "is an empty file" in rows[2]["reason"]
    assert "left out: 3 recordings, all in" in made.report()
    run(found, tmp_path / "out", force=True)
    assert not (tmp_path / "out" / "left_out.csv").exists()
    with pytest.raises(CollectionError, match=r"no recording can be used: .*broken, twice\.wav cannot be read"):
        run(Collection("a test", broken, True), tmp_path / "none")


def test_thin_classes_are_named(audio, tmp_path):
    made = run(collection(audio, *"aaaaabbc", parts="tttvett t".replace(" ", "t")), tmp_path / "1")
    assert made.notes == (
        "the class c has only one clip, which is trained on or scored, not both",
        "the class b has no validation clip, and is not scored there",
        "the class b has no evaluation clip, and is not scored there",
    )
    made = run(collection(audio, *"abcdefgh", parts="tttttttv"), tmp_path / "2")
    assert (
        "each of 8 classes has only one clip, which is trained on or scored, not both: a, b, c, d, e, ..." in made.notes
    )
    assert "the class h has no training clip, and cannot be learned" in made.notes


def test_fewer_than_two_classes_are_refused(audio, tmp_path):
    for labels, said in ((["dog"] * 4, "only the class dog"), ([""] * 4, "no class")):
        with pytest.raises(CollectionError, match=said) as caught:
            run(collection(audio, *labels), tmp_path / "out")
        one_sentence(caught.value)
    assert not (tmp_path / "out").exists()


def test_clips_that_are_all_of_different_classes_are_refused(audio, tmp_path):
    with pytest.raises(CollectionError, match="no class has two clips") as caught:
        run(collection(audio, *"abcd"), tmp_path / "out")
    one_sentence(caught.value)
    assert not (tmp_path / "out").exists()


def test_too_few_clips_for_a_validation_part_are_said(audio, tmp_path):
    made = run(collection(audio, *"ababab"), tmp_path)
    assert made.clips == {"train": 4, "evaluation": 2}
    assert made.notes == ("there is no validation part, so no epoch is chosen as the best",)


def test_a_split_without_training_is_refused_and_one_of_a_single_part_divided_anew(audio, tmp_path):
    with pytest.raises(CollectionError, match="no training part"):
        run(collection(audio, *"abab", parts="vvee"), tmp_path / "1")
    made = run(collection(audio, *"ab" * 10, parts="t" * 20), tmp_path / "2")
    assert set(made.datafiles) == set(PARTS)
    assert "all clips are in the part train of the split, so they are divided anew" in made.notes


def test_what_is_there_is_only_replaced_by_force(audio, tmp_path):
    (tmp_path / "config.py").write_text("mine")
    with pytest.raises(FilesError, match=r"config\.py is there already"):
        run(collection(audio, *"ab" * 5), tmp_path)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("config.py", "mine")]
    run(collection(audio, *"ab" * 10), tmp_path, force=True)
    assert (tmp_path / "validation.json").exists()
    made = run(collection(audio, *"ab" * 10, parts="tttttttttttttttteeee"), tmp_path, force=True)
    assert sorted(made.datafiles) == ["evaluation", "train"]
    assert not (tmp_path / "validation.json").exists()
