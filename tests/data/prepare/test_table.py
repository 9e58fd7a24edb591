"""Tables of recordings: columns, separators, files, splits and errors."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from servers import one_sentence

from psla_jax.data.prepare.collection import Clip, Collection, CollectionError
from psla_jax.data.prepare.table import Columns, read


@pytest.fixture
def home(tmp_path) -> Path:
    """Creates empty audio files; only their names matter here."""
    for name in ("a.wav", "b.wav", "c.wav", "sub/d.flac", "sub/deep/e.WAV", "twice/x.wav", "again/x.wav"):
        (tmp_path / "audio" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "audio" / name).touch()
    return tmp_path


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def table(home: Path, *lines: str, **options) -> Collection:
    (home / "list.csv").write_text("\n".join(lines) + "\n", encoding=options.pop("encoding", "utf-8"))
    return read(str(home / "list.csv"), str(home / "audio"), progress=False, **options)


def labels(collection: Collection) -> list[tuple[str, ...]]:
    return [clip.labels for clip in collection.clips]


def error_message(home: Path, *lines: str, **options) -> str:
    with pytest.raises(CollectionError) as caught:
        table(home, *lines, **options)
    return one_sentence(caught.value)


def test_a_plain_table(home):
    made = table(home, "filename,label", "a.wav,dog", "b.wav,cat", "sub/d.flac,dog")
    audio = home / "audio"
    assert made.clips == (
        Clip(str(audio / "a.wav"), ("dog",)),
        Clip(str(audio / "b.wav"), ("cat",)),
        Clip(str(audio / "sub" / "d.flac"), ("dog",)),
    )
    assert (made.exclusive, made.excluded) == (True, ())
    assert made.layout == "table with the columns filename and label, one label per clip"


@pytest.mark.parametrize(
    ("header", "layout"),
    [("fname,labels", "fname and labels"), ("FILE,Class", "FILE and Class"), ("path,category", "path and category"),
     ("file_name,target", "file_name and target"), ("slice_file_name,class", "slice_file_name and class"),
     ("wav,tags", "wav and tags"), ("file_name, target", "file_name and target")],
)  # fmt: skip
def test_common_column_names_are_recognised_in_any_case(home, header, layout):
    made = table(home, header, "a.wav,dog", "b.wav,cat")
    assert labels(made) == [("dog",), ("cat",)]
    assert layout in made.layout


def test_class_names_are_preferred_to_numbers_and_columns_can_be_selected(home):
    lines = ["id,filename,target,category,origin,who", "1,a.wav,0,dog,b.wav,ann", "2,b.wav,1,cat,c.wav,bob"]
    assert labels(table(home, *lines)) == [("dog",), ("cat",)]
    assert labels(table(home, *lines, columns=Columns(label="target"))) == [("0",), ("1",)]
    made = table(home, *lines, columns=Columns(file="origin", label="who"))
    assert [(Path(clip.path).name, clip.labels) for clip in made.clips] == [("b.wav", ("ann",)), ("c.wav", ("bob",))]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ('"dog,barking"', "cat", [("dog", "barking"), ("cat",)]),
        ("dog; barking ;", "cat", [("dog", "barking"), ("cat",)]),
        ("dog|barking|dog", "cat", [("dog", "barking"), ("cat",)]),
        ('"dog, old;barking"', '"cat, old"', [("dog, old", "barking"), ("cat, old",)]),
        ('"a;b|c,d"', "e", [("a;b", "c,d"), ("e",)]),
        ('"dog,barking"', "", [("dog", "barking"), ()]),
    ],
)
def test_separators_of_labels_are_detected(home, first, second, expected):
    made = table(home, "file,labels", f"a.wav,{first}", f"b.wav,{second}")
    assert labels(made) == expected
    assert not made.exclusive


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("['Dog', 'any']", "['Cat']", [("Dog", "any"), ("Cat",)]),
        ('["Dog, old", "any"]', "[]", [("Dog, old", "any"), ()]),
        ("('Dog', 'any')", "('Cat',)", [("Dog", "any"), ("Cat",)]),
        ("['Dog' 'any']", "['Cat']", [("Dog", "any"), ("Cat",)]),  # as NumPy prints it
        ("{'b', 'a'}", "c", [("a", "b"), ("c",)]),
        ("{Dog,any}", "{Cat}", [("Dog", "any"), ("Cat",)]),
        ("Dog ['old']", "('Cat') fight", [("Dog ['old']",), ("('Cat') fight",)]),
        ("[unknown]", "[Cat]", [("[unknown]",), ("[Cat]",)]),
        ("['Dog', None]", "['nan', 'Cat', '']", [("Dog",), ("Cat",)]),
    ],
)
def test_lists_of_python_and_json_are_read(home, first, second, expected):
    cells = [cell.replace('"', '""') for cell in (first, second)]
    assert labels(table(home, "file,labels", f'a.wav,"{cells[0]}"', f'b.wav,"{cells[1]}"')) == expected


def notes(home: Path, *cells: str, **options) -> tuple[str, ...]:
    touch(home / "audio", *(f"{i}.wav" for i in range(len(cells))))
    return table(home, "file,label", *(f'{i}.wav,"{cell}"' for i, cell in enumerate(cells)), **options).notes


def test_the_separator_is_named_and_labels_that_it_may_have_split_are_reported(home):
    horn = "Vehicle horn, car horn, honking"
    lines = ["file,label", f'a.wav,"{horn}"', f'b.wav,"Dog,{horn}"', "c.wav,Dog"]
    assert table(home, *lines).layout.endswith("several labels per clip, separated by commas")
    assert notes(home, horn, f"Dog,{horn}", "Dog") == (
        f"classes that occur only together, in the same order: {horn}; if each is one name with a comma in it, use "
        "--separator none or another separator",
    )
    assert notes(home, horn, "Dog", separator="") == ()
    assert notes(home, "a,b", "b", "b,a", "") == (
        "clips without a label, in which training treats every class as absent: 1",
    )
    assert notes(home, "a,b", "b", "b,a") == ()
    assert notes(home, "a|b", "c, d", "a", "b") == ("commas are parts of names, as in c, d, since | separates labels",)


def test_text_for_a_missing_label_is_no_class(home):
    made = table(home, "file,label", "a.wav,dog", "b.wav,nan", "c.wav,NaN", "sub/d.flac,None")
    assert labels(made) == [("dog",), ("None",)]
    assert [clip.reason[:27] for clip in made.excluded] == [f"has no label in line {n}: add" for n in (3, 4)]
    assert made.notes == (
        "the text nan, NaN counts as no label, in 2 places",
        "the label None is a class: leave the cell empty if it stands for no label",
    )


def test_class_names_are_preferred_to_numbers(home):
    made = table(home, "file,label,category,target", "a.wav,0,dog,5", "b.wav,1,cat,6")
    assert labels(made) == [("dog",), ("cat",)]
    assert made.notes == ("the column label has numbers, so the classes are those of the column category",)
    assert labels(table(home, "file,label,target", "a.wav,0,5", "b.wav,1,6")) == [("0",), ("1",)]
    named = table(home, "file,label,category", "a.wav,0,dog", "b.wav,1,cat", columns=Columns(label="label"))
    assert (labels(named), named.notes) == ([("0",), ("1",)], ())


def test_tables_of_public_data_sets_are_understood(home):
    touch(home / "audio", "train_audio/abc/XC1.ogg", "train_audio/abd/XC2.ogg")
    rows = ["abc/XC1.ogg,abc,\"['abd']\",4.5", "abd/XC2.ogg,abd,[],5"]
    made = table(home, "filename,primary_label,secondary_labels,rating", *rows)
    assert (files(made, home), labels(made)) == (
        ["train_audio/abc/XC1.ogg", "train_audio/abd/XC2.ogg"],
        [("abc",), ("abd",)],
    )
    assert made.notes == ("the column secondary_labels is not used: clips have only the labels of primary_label",)
    names = [f"{scene}-{city}-0-{i}-a.wav" for scene in ("bus", "park") for city in ("lyon", "paris") for i in range(2)]
    touch(home / "audio", *names)
    rows = [f"audio/{name}\t{name.split('-')[0]}\t{name.split('-')[1]}-{name[0]}\ta" for name in names]
    made = table(home, "filename\tscene_label\tidentifier\tsource_label", *rows)
    assert (files(made, home), made.clips[0].labels) == (names, ("bus",))
    assert [clip.group for clip in made.clips[:4]] == ["lyon-b", "lyon-b", "paris-b", "paris-b"]


@pytest.mark.parametrize("first", ["sep=;", '"sep=;"', "SEP=;\r"])
def test_the_first_line_of_excel_names_the_delimiter(home, first):
    assert labels(table(home, first, "file;label,", "a.wav;dog", "b.wav;cat", columns=Columns(label="label,"))) == [
        ("dog",),
        ("cat",),
    ]
    assert "line 4 of" in error_message(home, first, "file;label", "a.wav;dog", "b.wav")


def test_sources_of_recordings_are_read(home):
    lines = ["file,label,fsID,site", "a.wav,dog,7,x", "b.wav,cat,8,x"]
    made = table(home, *lines, "c.wav,dog,9,x", "sub/d.flac,cat,10,x", "e.WAV,cat,nan,x", "again/x.wav,cat,10,x")
    assert [clip.group for clip in made.clips] == ["7", "8", "9", "10", "", "10"]
    assert made.notes == ("the column fsID has the source of each clip",)
    made = table(home, *lines, "c.wav,dog,8,x")
    assert [clip.group for clip in made.clips] == ["", "", ""]
    assert made.notes == ("the column fsID has too few values for sources: use --group-column fsID if it has them",)
    assert [clip.group for clip in table(home, *lines, columns=Columns(group="site")).clips] == ["x", "x"]
    assert "no column 'place', only" in error_message(home, *lines, columns=Columns(group="place"))


def test_the_separator_of_labels_can_be_selected(home):
    made = table(home, "file,label", 'a.wav,"Male speech, man speaking"', "b.wav,Music", separator="")
    assert labels(made) == [("Male speech, man speaking",), ("Music",)]
    assert made.exclusive
    assert labels(table(home, "file,label", 'a.wav,"x;y,z"', "b.wav,Music", separator=",")) == [
        ("x;y", "z"),
        ("Music",),
    ]


@pytest.mark.parametrize("mark", [";", "\t"])
def test_cells_may_be_separated_by_semicolon_or_tab(home, mark):
    lines = [line.replace("/", mark) for line in ("file/label", 'a.wav/"dog, old"', "b.wav/cat")]
    assert labels(table(home, *lines, separator="")) == [("dog, old",), ("cat",)]


def test_files_are_found_in_subfolders_by_name_and_without_extension(home):
    made = table(home, "file,label", "e.WAV,a", "d,b", "elsewhere\\c.wav,c", f"{home}/audio/b.wav,d")
    names = ["sub/deep/e.WAV", "sub/d.flac", "c.wav", "b.wav"]
    assert [clip.path for clip in made.clips] == [str(home / "audio" / name) for name in names]


def files(collection: Collection, home: Path) -> list[str]:
    return [str(Path(clip.path).relative_to(home / "audio")) for clip in collection.clips]


def test_a_missing_file_is_not_replaced_by_one_of_another_folder(home):
    touch(home / "audio", "dog/1.wav", "bird/5.wav", "bird/6.wav", "7.wav")
    rows = ["dog/1.wav,dog", "dog/5.wav,dog", "bird/6.wav,bird", "dog/7.wav,dog", "cat\\6.wav,cat"]
    made = table(home, "file,label", *rows)
    assert files(made, home) == ["dog/1.wav", "bird/6.wav"]
    missing = [str(Path(clip.path).relative_to(home / "audio")) for clip in made.excluded]
    assert missing == ["dog/5.wav", "dog/7.wav", "cat\\6.wav"]
    assert "dog/5.wav is missing (line 2" in error_message(home, "file,label", "dog/5.wav,dog")
    assert "other/dog/5.wav is missing" in error_message(home, "file,label", "other/dog/5.wav,dog")


@pytest.mark.parametrize("prefix", ["", "/data/ann/wavs/", "C:\\ann\\wavs\\", "wavs/", "./"])
@pytest.mark.parametrize("base", ["audio", "audio/sub"])
def test_folders_must_match_wherever_the_recordings_were_moved(home, prefix, base):
    touch(home / "audio", "sub/dog/1.wav", "sub/bird/1.wav", "sub/bird/5.wav")
    names = ["dog/1.wav", "bird\\1", "dog/5.wav"]
    (home / "list.csv").write_text("\n".join(["file,label", *(f"{prefix}{name},x" for name in names)]))
    made = read(str(home / "list.csv"), str(home / base), progress=False)
    assert files(made, home) == ["sub/dog/1.wav", "sub/bird/1.wav"]
    assert [clip.reason[:19] for clip in made.excluded] == ["is missing (line 4 "]


def test_unicode_forms_of_names_are_the_same(home):
    touch(home / "audio", "V\u00f6gel/k\u00e4uz.wav", "Hunde/wau\u0308.wav")
    made = table(home, "file,label", "Vo\u0308gel/ka\u0308uz.wav,Vo\u0308gel", "wa\u00fc.wav,V\u00f6gel")
    assert files(made, home) == ["V\u00f6gel/k\u00e4uz.wav", "Hunde/wau\u0308.wav"]
    assert labels(made) == [("V\u00f6gel",), ("V\u00f6gel",)]


def test_the_default_folder_is_that_of_the_table(home):
    (home / "audio" / "list.csv").write_text("file,label\na.wav,x\nsub/d.flac,y\n")
    made = read(str(home / "audio" / "list.csv"), progress=False)
    assert [clip.path for clip in made.clips] == [str(home / "audio" / name) for name in ("a.wav", "sub/d.flac")]


def test_missing_files_and_clips_without_label_are_excluded_with_the_reason(home):
    made = table(home, "file,label", "a.wav,x", "gone.wav,y", "b.wav,", "c.wav,z")
    assert labels(made) == [("x",), ("z",)]
    missing, unlabelled = made.excluded
    assert (missing.path, unlabelled.path) == (str(home / "audio" / "gone.wav"), str(home / "audio" / "b.wav"))
    assert "is missing (line 3 of" in missing.reason
    assert "has no label in line 4: add one" in unlabelled.reason
    assert "gone.wav is missing (line 2" in error_message(home, "file,label", "gone.wav,y")
    assert "gone.wav is missing (line 3" in error_message(home, "file,label", "b.wav,", "gone.wav,x")


def test_common_names_of_parts_are_recognised(home):
    made = table(home, "file,label,split", "a.wav,x,Train", "b.wav,x,dev", "c.wav,x,testing")
    assert [clip.part for clip in made.clips] == ["train", "validation", "evaluation"]
    assert "split by its column split" in made.layout
    for third in ("eval", "Testing"):
        made = table(home, "file,label,split", "a.wav,x,dev", f"b.wav,x,{third}")
        assert [clip.part for clip in made.clips] == ["train", "evaluation"]


def test_one_fold_is_for_evaluation(home):
    lines = ["file,label,fold", "a.wav,x,1", "b.wav,x,2", "c.wav,x,10"]
    made = table(home, *lines)
    assert [clip.part for clip in made.clips] == ["train", "train", "evaluation"]
    assert made.layout.endswith("fold 10 of 1, 2, 10 is for evaluation")
    named = [line.replace(",x,", ",x,fold") for line in lines]
    assert [clip.part for clip in table(home, *named, fold="2").clips] == ["train", "evaluation", "train"]


MISTAKES = {
    "no column of files": (["sound,label", "a.wav,x"], {}, "has none of the columns filename, file_name"),
    "no column of labels": (["file,value", "a.wav,x"], {}, "only file, value: name one with --label-column"),
    "named column": (
        ["file,label", "a.wav,x"],
        {"columns": Columns(split="part")},
        "no column 'part', only file, label",
    ),
    "header alone": (["file,label"], {}, "lists no clip"),
    "empty": ([""], {}, "lists no clip"),
    "short line": (["file,label", "a.wav,x", "b.wav"], {}, "line 3 of .* has 1 cells and the header 2"),
    "comma without quotes": (["file,label", "a.wav,x,y"], {}, "line 2 of .* has 3 cells and the header 2: put cells"),
    "no file": (["file,label", ",x"], {}, "line 2 of .* names no file: fill in its file"),
    "a file twice": (["file,label", "a.wav,x", "b.wav,x", "./a.wav,y"], {}, "lines 2 and 4 of .* both name"),
    "a name twice": (["file,label", "x.wav,x"], {}, "names x.wav, which matches 2 files, such as .*again.*twice"),
    "odd split": (["file,label,split", "a.wav,x,train", "b.wav,x,maybe"], {}, "line 3 of .* has the split 'maybe'"),
    "odd fold": (["file,label,fold", "a.wav,x,train", "b.wav,x,1", "c.wav,x,2"], {}, "line 2 of .* the fold 'train'"),
    "list cut short": (
        ["file,label", "a.wav,x", 'b.wav,"[\'x, y]"'],
        {},
        r"line 3 of .* has the labels \['x, y\], which are not",
    ),
    "no header": (["a.wav,x", "b.wav,y"], {}, "the first line of .* names the recording a.wav, .*: add one, such as"),
    "no header, selected column": (
        ["a,x", "b,y"],
        {"columns": Columns(file="a", label="x")},
        "the first line of .* names the recording a, so the table has no header",
    ),
    "no header, missing files": (["D:\\z.wav,x", "y.wav,y"], {}, "names the recording .*z.wav, so the table has no"),
    "list without its end": (
        ["file,label", "a.wav,['x']", "b.wav,['y'"],
        {},
        r"line 3 .* \['y', which are a list without",
    ),
    "list without its start": (["file,label", "a.wav,'y']"], {}, r"line 2 .* 'y'\], which are a list without"),
    "split not filled in": (["file,label,fold", "a.wav,x,1", "b.wav,x,"], {}, "line 3 of .* has the fold ''"),
    "no such fold": (
        ["file,label,fold", "a.wav,x,1", "b.wav,x,2"],
        {"fold": "3"},
        "has the folds 1, 2, but --fold is 3",
    ),
    "one fold": (["file,label,fold", "a.wav,x,1", "b.wav,x,1"], {}, "has only the fold 1"),
    "no folds": (["file,label", "a.wav,x"], {"fold": "1"}, "has no column of folds, but --fold is 1"),
    "split, not folds": (["file,label,split", "a.wav,x,train"], {"fold": "1"}, "has no folds, but --fold is 1"),
    "Latin-1": (["file,label", "a.wav,Vögel"], {"encoding": "latin-1"}, "is not in UTF-8: save it as CSV UTF-8"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_errors_of_one_sentence(home, mistake):
    lines, options, expected = MISTAKES[mistake]
    message = error_message(home, *lines, **options)
    assert re.search(expected, message), message
    assert "list.csv" in message


def test_a_missing_table_is_an_error(tmp_path):
    with pytest.raises(CollectionError, match=r"the table .*none\.csv cannot be read \(No such file"):
        read(str(tmp_path / "none.csv"))


@pytest.mark.parametrize("numbers", ["label,0,1", "target,0.0,1.0"])
def test_any_column_with_one_name_for_each_number_has_the_classes(home, numbers):
    column, first, second = numbers.split(",")
    rows = [f"a.wav,{first},loud,dog", f"b.wav,{second},loud,cat", f"c.wav,{first},low,dog"]
    made = table(home, f"file,{column},volume,its name", *rows)
    assert labels(made) == [("dog",), ("cat",), ("dog",)]
    assert made.notes == (f"the column {column} has numbers, so the classes are those of the column its name",)
    assert labels(table(home, f"file,{column},volume,its name", *rows[:2])) == [(first,), (second,)]


@pytest.mark.parametrize(
    "column", ["speaker", "Speaker_ID", "session", "site", "video_id", "youtube_id", "track_id", "artist", "recordist"]
)
def test_columns_of_speakers_and_places_have_the_sources(home, column):
    files = ["a.wav", "b.wav", "c.wav", "d.flac", "e.WAV"]
    rows = [f"{file},{'xy'[i % 2]},s{i % 4}" for i, file in enumerate(files)]
    made = table(home, f"file,label,{column}", *rows)
    assert [clip.group for clip in made.clips] == ["s0", "s1", "s2", "s3", "s0"]
    assert made.notes == (f"the column {column} has the source of each clip",)


def test_a_column_of_classes_has_no_sources(home):
    made = table(home, "file,speaker", "a.wav,x", "b.wav,x", "c.wav,y", columns=Columns(label="speaker"))
    assert ([clip.group for clip in made.clips], made.notes) == (["", "", ""], ())
