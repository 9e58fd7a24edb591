"""Validation of a data set from its files to the report."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import soundfile
from recordings import MIDS, clean, noise, write
from rich.console import Console

from psla_jax.config import FrontendConfig
from psla_jax.data import datafile, pack
from psla_jax.data.datafile import Record
from psla_jax.data.validate.report import print_report, report_to_json
from psla_jax.data.validate.run import Report, Request, validate_dataset
from psla_jax.runtime.logging import Logger
from psla_jax.vocabulary.vocabulary import Vocabulary

FITTING = FrontendConfig(target_length=60, mean=-3.0, std=1.0)
ONTOLOGY = [
    {"id": "/t/animal", "name": "Animal", "child_ids": ["/t/dog"], "restrictions": []},
    {"id": "/t/dog", "name": "Dog", "child_ids": [], "restrictions": []},
    {"id": "/t/car", "name": "Car", "child_ids": [], "restrictions": []},
]


@pytest.fixture
def home(tmp_path):
    """A training and an evaluation set without defects, their label file and ontology."""
    Vocabulary(MIDS, ("Animal", "Dog", "Car")).write(tmp_path / "labels.csv")
    (tmp_path / "ontology.json").write_text(json.dumps(ONTOLOGY))
    datafile.write(tmp_path / "train.json", clean(tmp_path, 6))
    for i in range(3):
        write(tmp_path / f"eval{i}.wav", noise(50 + i))
    datafile.write(tmp_path / "eval.json", [(f"eval{i}.wav", [MIDS[2]]) for i in range(3)])
    return tmp_path


def validate(home, data: str = "train.json", **fields) -> Report:
    request = {"frontend": FITTING, "labels": str(home / "labels.csv"), "ontology": str(home / "ontology.json")}
    if "against" in fields:
        fields["against"] = tuple(str(home / name) for name in fields["against"])
    return validate_dataset(Request(str(home / data), **{**request, **fields}), Logger(), print)


def kinds(report: Report) -> list[str]:
    return [finding.kind for finding in report.findings]


def printed(report: Report) -> str:
    console = Console(file=io.StringIO(), width=100)
    print_report(report, console)
    return console.file.getvalue()


@pytest.fixture
def fitting(home) -> FrontendConfig:
    """The normalisation that fits the clips of the training set."""
    log_mel = validate(home).dataset.log_mel
    return FrontendConfig(target_length=60, mean=log_mel.mean, std=log_mel.std)


def test_a_data_set_without_defects_has_no_findings(home, fitting):
    report = validate(home, against=["eval.json"], frontend=fitting)
    assert report.findings == ()
    assert report.ok
    text = printed(report)
    assert "no findings: the data set can be used for training" in text
    assert "6, of which 6 were read" in text


def spoil(home) -> None:
    """Adds defects of every severity."""
    soundfile.write(home / "clean1.wav", (noise(1) * 32768).astype(np.float32), 16_000, subtype="FLOAT")
    write(home / "clean2.wav", noise(50))
    write(home / "clean3.wav", 0 * noise())
    (home / "clean4.wav").unlink()
    write(home / "clean5.wav", noise(5, rate=22_050), 22_050)
    records = json.loads((home / "train.json").read_text())["data"]
    records[5]["labels"] = "/t/dog,/t/cow"
    (home / "train.json").write_text(json.dumps({"data": records}))


def test_findings_are_sorted_by_severity(home, fitting):
    spoil(home)
    report = validate(home, against=["eval.json"], frontend=fitting)
    assert kinds(report) == [
        "unreadable", "unknown-labels", "scale-integers", "overlap", "silent", "missing-parents", "log-mel", "rates",
    ]  # fmt: skip
    assert not report.ok
    text = printed(report)
    assert text.index("error    Clips that cannot be read: 1 of 6 clips") < text.index("warning  Silent")
    assert "4 errors, 3 warnings, 1 note: repair the errors before training" in text
    assert f"{home / 'clean2.wav'} = {home / 'eval0.wav'}" in text


def test_the_json_has_all_findings(home, fitting):
    spoil(home)
    report = validate(home, against=["eval.json"], frontend=fitting)
    data = json.loads(json.dumps(report_to_json(report)))
    assert (data["ok"], data["clips"], data["read"]) == (False, 6, 5)
    assert data["datafile"] == str(home / "train.json")
    assert [entry["kind"] for entry in data["findings"]] == kinds(report)
    assert data["findings"][0]["places"][0].startswith(str(home / "clean4.wav"))
    assert {entry["severity"] for entry in data["findings"]} == {"error", "warning", "note"}
    assert data["rates"] == {"16000": 4, "22050": 1}
    assert data["seconds"]["median"] == 0.5
    assert data["classes"] == [
        {"mid": "/t/animal", "name": "Animal", "clips": 3},
        {"mid": "/t/dog", "name": "Dog", "clips": 4},
        {"mid": "/t/car", "name": "Car", "clips": 2},
    ]
    assert data["log_mel"]["config_mean"] == fitting.mean


def test_a_data_set_without_readable_clips_has_a_report(home):
    for i in range(6):
        (home / f"clean{i}.wav").unlink()
    report = validate(home)
    assert kinds(report) == ["unreadable"]
    assert "6, of which 0 were read" in printed(report)
    assert report_to_json(report)["log_mel"] is None


def test_a_limit_is_reported(home, fitting):
    spoil(home)
    report = validate(home, limit=2, frontend=fitting, against=["eval.json"])
    # Clips 0 and 3 are read; the missing clip 4 is reported all the same.
    assert kinds(report) == [
        "unreadable", "unknown-labels", "silent", "missing-parents", "log-mel", "limited",
    ]  # fmt: skip
    assert report.findings[-1].title == "Only 2 of 6 clips were read, evenly spaced"
    assert report.dataset.measurements.clips.tolist() == [0, 3]


def test_a_missing_label_file_is_reported(home, fitting):
    report = validate(home, labels="", ontology="", frontend=fitting)
    assert kinds(report) == ["no-vocabulary"]
    assert report.ok


@pytest.mark.parametrize("format", ["pcm16", "flac"])
def test_a_packed_data_set_has_the_findings_of_its_files(home, fitting, format):
    write(home / "clean5.wav", noise(51))
    for name in ("train", "eval"):
        pack.pack(str(home / f"{name}.json"), str(home / "packed"), format=format, progress=False)
    whole = validate(home, against=["eval.json"], frontend=fitting)
    assert kinds(whole) == ["overlap"]
    for own, other in (("packed/train.json", "eval.json"), ("train.json", "packed/eval.json")):
        report = validate(home, own, against=[other], frontend=fitting)
        assert kinds(report) == ["overlap"]
        assert report.findings[0].items == whole.findings[0].items


def test_control_characters_in_names_are_escaped(home, fitting):
    write(home / "a\x1b[31m\n.wav", 0 * noise())
    datafile.write(home / "train.json", [("a\x1b[31m\n.wav", [MIDS[2]]), ("clean1.wav", [MIDS[2]])])
    text = printed(validate(home, frontend=fitting))
    assert "\x1b" not in text
    assert "a\\x1b[31m\\n.wav" in text


def test_a_long_vocabulary_is_shown_in_part(home, fitting):
    mids = [f"/t/{i:03d}" for i in range(60)]
    Vocabulary(tuple(mids), tuple(f"Class {i}" for i in range(60))).write(home / "labels.csv")
    records = [("clean0.wav", mids[: 60 - i]) for i in range(40)]
    datafile.write(home / "train.json", records)
    lines = printed(validate(home, frontend=fitting, ontology="")).splitlines()
    start = lines.index("Clips per class")
    assert lines[start + 1].startswith("  Class 0   40 ")
    assert lines[start + 1].count("█") == 40
    assert lines[start + 13] == "  ... 40 classes omitted"
    assert lines[start + 21].split()[:3] == ["Class", "59", "1"]


def test_segments_are_examined_as_if_each_were_a_file(home):
    """One long recording has, one after the other, sound, silence, a clipped part and sound of another loudness."""
    parts = [noise(1), 0 * noise(), np.sign(noise(2)), noise(3, level=0.9)]
    times = [(0.5 * i, 0.5 * i + 0.5) for i in range(4)]
    write(home / "long.flac", np.concatenate(parts))
    for i, part in enumerate(parts):
        write(home / f"part{i}.wav", part)
    labels = [[MIDS[0], MIDS[1]], [MIDS[2]], [MIDS[2]], [MIDS[0], MIDS[1]]]
    datafile.write(home / "files.json", [(f"part{i}.wav", mids) for i, mids in enumerate(labels)])
    records = [Record("long.flac", mids, *time) for mids, time in zip(labels, times)]
    datafile.write(home / "cut.json", [*records, Record("long.flac", labels[1], 0.75, 0.76)])
    datafile.write(home / "beyond.json", [*records, Record("long.flac", labels[1], 1.5, 9.0)])

    files, cut, beyond = (validate(home, f"{name}.json") for name in ("files", "cut", "beyond"))
    np.testing.assert_array_equal(cut.dataset.table[:4], files.dataset.table)
    assert cut.dataset.table["samples"][4] == 160
    np.testing.assert_array_equal(beyond.dataset.table, files.dataset.table)
    assert beyond.dataset.log_mel == files.dataset.log_mel
    unreadable = next(finding for finding in beyond.findings if finding.kind == "unreadable")
    path = home / "long.flac"
    assert unreadable.items[0].startswith(f"{path}#t=1.5,9 is not within the recording, which lasts 2 s")
    found = {finding.kind: list(finding.items) for finding in cut.findings}
    assert found["silent"] == [f"{path}#t=0.5,1  all samples are 0", f"{path}#t=0.75,0.76  all samples are 0"]
    assert found["clipped"] == [f"{path}#t=1,1.5  100.0% of its samples"]
    assert found["too-short"] == [f"{path}#t=0.75,0.76  10.0 ms"]
    assert "  segments  5 of the clips, of 1 recording\n" in printed(cut)
    assert "  segments " not in printed(files)
