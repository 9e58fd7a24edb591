"""psla prepare --folds: folds of the data set itself, stratified ones, and groups."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from psla_jax.cli import main
from psla_jax.data.datafile import Datafile
from psla_jax.data.folds import fold_files
from psla_jax.data.prepare import folder, table
from psla_jax.data.prepare.collection import Clip, Collection
from psla_jax.data.prepare.folds import choose
from psla_jax.vocabulary.vocabulary import Vocabulary


def record(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        soundfile.write(folder / name, np.full(800, 0.1), 8000)


def written(out: Path) -> dict[str, list[str]]:
    """Returns the names of the clips in each written fold, all of whose datafiles declare exclusive classes."""
    vocabulary = Vocabulary.read(out / "class_labels_indices.csv")
    folds = {path.name: Datafile.read(path, vocabulary) for path in fold_files(out / "folds")}
    assert all(data.exclusive for data in folds.values())
    return {name: sorted(Path(data.wav(i)).name for i in range(len(data))) for name, data in folds.items()}


def folds_of(collection: Collection) -> dict[str, str]:
    return {Path(clip.path).name: clip.fold for clip in collection.clips}


@pytest.fixture
def esc50(tmp_path) -> Path:
    """A folder in the layout of ESC-50: two classes and ten folds, which sort differently as numbers and as text."""
    names = [f"{fold}-{index}.wav" for fold in range(1, 11) for index in (0, 1)]
    rows = [f"{name},{name[0 : name.index('-')]},{'dog' if name[-5] == '0' else 'cat'}" for name in names]
    record(tmp_path / "ESC-50" / "audio", *names)
    (tmp_path / "ESC-50" / "meta").mkdir()
    (tmp_path / "ESC-50" / "meta" / "esc50.csv").write_text("\n".join(["filename,fold,category", *rows]))
    return tmp_path / "ESC-50"


def test_the_folds_of_esc50_are_its_own(esc50, tmp_path, capsys):
    assert main.main(["prepare", "folder", str(esc50), "--folds", "--out", str(tmp_path / "out")]) == 0
    folds = written(tmp_path / "out")
    assert folds == {f"fold_{i}.json": [f"{i}-0.wav", f"{i}-1.wav"] for i in range(1, 11)}
    assert list(folds)[-1] == "fold_10.json"
    shown = capsys.readouterr().out.splitlines()
    assert f"{tmp_path}/out/folds: 10 folds of 2 + 2 + 2 + 2 + 2 + 2 + 2 + 2 + 2 + 2 clips" in shown
    assert shown[-1] == f"to cross-validate: psla crossval {tmp_path}/out/config.py"
    # Other folds replace them, and folds of a data set that has its own are named.
    options = ["--folds", "4", "--out", str(tmp_path / "out"), "--force"]
    assert main.main(["prepare", "folder", str(esc50), *options]) == 0
    assert sorted(map(len, written(tmp_path / "out").values())) == [5, 5, 5, 5]
    assert "the data set has folds of its own, which published results are for" in capsys.readouterr().out
    assert main.main(["prepare", "folder", str(esc50), *options[2:]]) == 0
    assert written(tmp_path / "out") == {}


def test_the_folds_of_urbansound8k_are_those_of_its_table(tmp_path):
    root = tmp_path / "UrbanSound8K"
    names = ["100032-3-0-0.wav", "100263-2-0-117.wav", "7061-6-0-0.wav"]
    folds = ["5", "10", "1"]
    (root / "metadata").mkdir(parents=True)
    lines = [f"{name},1,0.0,0.3,1,{fold},3,dog_bark" for name, fold in zip(names, folds)]
    header = "slice_file_name,fsID,start,end,salience,fold,classID,class"
    (root / "metadata" / "UrbanSound8K.csv").write_text("\n".join([header, *lines]))
    for name, fold in zip(names, folds):
        record(root / "audio" / f"fold{fold}", name)
    assert folds_of(folder.read(str(root), progress=False)) == dict(zip(names, folds))


def test_folders_may_be_named_by_folds(tmp_path):
    for path in ("Fold 1/dog/a.wav", "fold_2/dog/b.wav", "fold10/cat/c.wav"):
        record((tmp_path / path).parent, path[-5:])
    assert folds_of(folder.read(str(tmp_path), progress=False)) == {"a.wav": "1", "b.wav": "2", "c.wav": "10"}


def test_a_table_has_its_folds_in_the_split_column_or_in_one_named_fold(tmp_path):
    (tmp_path / "t.csv").write_text("file;label;subset;Fold;cv\na.wav;x;train;fold 1;3\nb/c.flac;y;test;2;4\n")
    record(tmp_path, "a.wav")
    record(tmp_path / "b", "c.flac")
    for split, expected in (("", ["1", "2"]), ("subset", ["1", "2"]), ("cv", ["3", "4"])):
        made = table.read(str(tmp_path / "t.csv"), columns=table.Columns(split=split), progress=False)
        assert folds_of(made) == dict(zip(("a.wav", "c.flac"), expected))
    (tmp_path / "t.csv").write_text("file,label\na.wav,x\n")
    assert folds_of(table.read(str(tmp_path / "t.csv"), progress=False)) == {"a.wav": ""}


def test_the_folds_of_a_table_are_those_of_the_clips_that_it_was_read_for(tmp_path):
    """Paths of another computer, and lines with times, which were once matched a second time by another rule."""
    names = [f"{label}/{i}.wav" for label in ("dog", "cat") for i in range(3)]
    for name in names:
        record(tmp_path / "wavs" / name[:3], name[4:])
    windows = [f"D:\\x\\{name.replace('/', chr(92))},{name[:3]},{name[4]}" for name in names]
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "list.csv").write_text("\n".join(["file,label,fold", *windows]))
    timed = [f"{label}/0.wav,{label},{i},{0.02 * i},{0.02 * i + 0.02}" for i in range(3) for label in ("dog", "cat")]
    (tmp_path / "meta" / "timed.csv").write_text("\n".join(["file,label,fold,start,end", *timed]))
    for name in ("list", "timed"):
        options = ["--audio", str(tmp_path / "wavs"), "--folds", "--out", str(tmp_path / name)]
        assert main.main(["prepare", "csv", str(tmp_path / "meta" / f"{name}.csv"), *options]) == 0
        assert list(map(len, written(tmp_path / name).values())) == [2, 2, 2]


def test_without_folds_of_its_own_a_number_makes_stratified_ones(tmp_path, capsys):
    for label in ("dog", "cat"):
        record(tmp_path / "sounds" / label, *(f"{label}{i}.wav" for i in range(9)))
    command = ["prepare", "folder", str(tmp_path / "sounds"), "--out", str(tmp_path / "out")]
    assert main.main([*command, "--folds"]) == 2
    assert (
        "sounds has no folds of its own: give the number of folds to make, as in --folds 5." in capsys.readouterr().err
    )
    for numbers in (["1"], ["2", "3"]):
        assert main.main([*command, "--folds", *numbers]) == 2
        assert f"--folds is {' '.join(numbers)}: use one number from 2 on" in capsys.readouterr().err
    assert main.main([*command, "--folds", "100"]) == 2
    capsys.readouterr()
    assert not (tmp_path / "out").exists()
    assert main.main([*command, "--folds", "3"]) == 0
    folds = written(tmp_path / "out")
    assert [Counter(name[:3] for name in names) for names in folds.values()] == [{"dog": 3, "cat": 3}] * 3
    assert len({name for names in folds.values() for name in names}) == 18


def test_a_group_stays_in_one_fold_and_divided_groups_and_rare_classes_are_named(tmp_path):
    clips = [Clip(f"{i}.wav", ("x" if i % 2 else "y",), group=f"g{i // 3}") for i in range(12)]
    folding = choose([2], clips, seed=0, name="a test")
    folds = folding.assign(clips)
    assert all(len(set(folds[3 * group : 3 * group + 3])) == 1 for group in range(4))
    assert Counter(folds) == {"1": 6, "2": 6}
    assert folding.notes([replace(clip, fold=fold) for clip, fold in zip(clips, folds)]) == []
    clips = [replace(clip, fold=fold) for clip, fold in zip(clips, "111122223333")]
    folding = choose([], clips, seed=0, name="a test")
    clips = [*clips[:5], replace(clips[9], labels=("z",))]
    assert folding.assign(clips) == ["1", "1", "1", "1", "2", "3"]
    notes = folding.notes(clips)
    assert notes[0].startswith("1 group, such as g1, is in several folds")
    assert notes[1].startswith("3 classes, such as y, have no clip in at least one fold")


def test_segments_of_a_recording_are_in_one_fold_with_their_times(tmp_path):
    names = [f"{i}.wav" for i in range(6)]
    for name in names:
        soundfile.write(tmp_path / name, np.full(16_000, 0.1), 8000)
    rows = [f"{name},{label},{start},{start + 0.5}" for name in names for label, start in (("dog", 0.0), ("cat", 1.0))]
    (tmp_path / "list.csv").write_text("\n".join(["file,label,start,end", *rows]))
    out = tmp_path / "out"
    assert main.main(["prepare", "csv", str(tmp_path / "list.csv"), "--folds", "3", "--out", str(out)]) == 0
    vocabulary = Vocabulary.read(out / "class_labels_indices.csv")
    folds = [Datafile.read(path, vocabulary) for path in fold_files(out / "folds")]
    assert [len(data) for data in folds] == [4, 4, 4]
    assert [len({data.wav(i) for i in range(4)}) for data in folds] == [2, 2, 2]
    for data in folds:
        assert {(vocabulary.names[data.labels(i)[0]], *data.time(i)) for i in range(4)} == {
            ("dog", 0.0, 0.5), ("cat", 1.0, 1.5),
        }  # fmt: skip
