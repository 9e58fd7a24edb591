"""A set from its files to the report."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import soundfile
from recordings import MIDS, clean, noise, write
from rich.console import Console

from psla_jax import inspection_page
from psla_jax.config import FrontendConfig
from psla_jax.data import datafile, pack
from psla_jax.inspection import Report, Request, inspect
from psla_jax.journal import Journal
from psla_jax.ontology import Vocabulary

FITTING = FrontendConfig(target_length=60, mean=-3.0, std=1.0)
ONTOLOGY = [
    {"id": "/t/animal", "name": "Animal", "child_ids": ["/t/dog"], "restrictions": []},
    {"id": "/t/dog", "name": "Dog", "child_ids": [], "restrictions": []},
    {"id": "/t/car", "name": "Car", "child_ids": [], "restrictions": []},
]


@pytest.fixture
def home(tmp_path):
    """A training and an evaluation set without a flaw, their label file and ontology."""
    Vocabulary(MIDS, ("Animal", "Dog", "Car")).write(tmp_path / "labels.csv")
    (tmp_path / "ontology.json").write_text(json.dumps(ONTOLOGY))
    datafile.write(tmp_path / "train.json", clean(tmp_path, 6))
    for i in range(3):
        write(tmp_path / f"eval{i}.wav", noise(50 + i))
    datafile.write(tmp_path / "eval.json", [(f"eval{i}.wav", [MIDS[2]]) for i in range(3)])
    return tmp_path


def report(home, data: str = "train.json", **fields) -> Report:
    request = {"frontend": FITTING, "labels": str(home / "labels.csv"), "ontology": str(home / "ontology.json")}
    if "against" in fields:
        fields["against"] = tuple(str(home / name) for name in fields["against"])
    return inspect(Request(str(home / data), **{**request, **fields}), Journal(), print)


def kinds(found: Report) -> list[str]:
    return [finding.kind for finding in found.findings]


def page(found: Report) -> str:
    screen = Console(file=io.StringIO(), width=100)
    inspection_page.show(found, screen)
    return screen.file.getvalue()


@pytest.fixture
def fitting(home) -> FrontendConfig:
    """The normalisation that the clips of a set have."""
    found = report(home).examined.log_mel
    return FrontendConfig(target_length=60, mean=found.mean, std=found.std)


def test_a_flawless_set_gives_no_finding(home, fitting):
    found = report(home, against=["eval.json"], frontend=fitting)
    assert found.findings == ()
    assert found.ok
    text = page(found)
    assert "nothing found: nothing has to be repaired" in text
    assert "6, of which 6 were read" in text


def spoil(home) -> None:
    """A defect of every severity."""
    soundfile.write(home / "clean1.wav", (noise(1) * 32768).astype(np.float32), 16_000, subtype="FLOAT")
    write(home / "clean2.wav", noise(50))
    write(home / "clean3.wav", 0 * noise())
    (home / "clean4.wav").unlink()
    write(home / "clean5.wav", noise(5, rate=22_050), 22_050)
    records = json.loads((home / "train.json").read_text())["data"]
    records[5]["labels"] = "/t/dog,/t/cow"
    (home / "train.json").write_text(json.dumps({"data": records}))


def test_findings_come_in_order_of_harm_and_everything_is_looked_for(home, fitting):
    spoil(home)
    found = report(home, against=["eval.json"], frontend=fitting)
    assert kinds(found) == [
        "unreadable", "unknown-labels", "scale-integers", "overlap", "silent", "missing-parents", "log-mel", "rates",
    ]  # fmt: skip
    assert not found.ok
    text = page(found)
    assert text.index("error    Clips that cannot be read: 1 of 6 clips") < text.index("warning  Silent")
    assert "4 errors, 3 warnings, 1 note: repair the errors before you train" in text
    assert f"{home / 'clean2.wav'} = {home / 'eval0.wav'}" in text


def test_the_json_has_all_of_the_page(home, fitting):
    spoil(home)
    found = report(home, against=["eval.json"], frontend=fitting)
    data = json.loads(json.dumps(inspection_page.to_json(found)))
    assert (data["ok"], data["clips"], data["read"]) == (False, 6, 5)
    assert data["datafile"] == str(home / "train.json")
    assert [entry["kind"] for entry in data["findings"]] == kinds(found)
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


def test_a_set_of_which_nothing_can_be_read_still_has_a_page(home):
    for i in range(6):
        (home / f"clean{i}.wav").unlink()
    found = report(home)
    assert kinds(found) == ["unreadable"]
    assert "6, of which 0 were read" in page(found)
    assert inspection_page.to_json(found)["log_mel"] is None


def test_a_limit_reads_some_and_says_so(home, fitting):
    spoil(home)
    found = report(home, limit=2, frontend=fitting, against=["eval.json"])
    # Clips 0 and 3 are read; the missing one is seen all the same, and what the limit hides is said.
    assert kinds(found) == [
        "unreadable", "unknown-labels", "silent", "missing-parents", "log-mel", "limited",
    ]  # fmt: skip
    assert found.findings[-1].title == "Read: 2 of 6 clips, evenly spaced"
    assert found.examined.measurements.clips.tolist() == [0, 3]


def test_without_label_file_and_ontology_that_is_said(home, fitting):
    found = report(home, labels="", ontology="", frontend=fitting)
    assert kinds(found) == ["no-vocabulary"]
    assert found.ok


@pytest.mark.parametrize("format", ["pcm16", "flac"])
def test_a_packed_set_is_checked_as_its_files_are(home, fitting, format):
    write(home / "clean5.wav", noise(51))
    for name in ("train", "eval"):
        pack.pack(str(home / f"{name}.json"), str(home / "packed"), format=format, progress=False)
    whole = report(home, against=["eval.json"], frontend=fitting)
    assert kinds(whole) == ["overlap"]
    for own, other in (("packed/train.json", "eval.json"), ("train.json", "packed/eval.json")):
        found = report(home, own, against=[other], frontend=fitting)
        assert kinds(found) == ["overlap"]
        assert found.findings[0].places == whole.findings[0].places


def test_names_are_shown_without_power_over_the_terminal(home, fitting):
    write(home / "a\x1b[31m\n.wav", 0 * noise())
    datafile.write(home / "train.json", [("a\x1b[31m\n.wav", [MIDS[2]]), ("clean1.wav", [MIDS[2]])])
    text = page(report(home, frontend=fitting))
    assert "\x1b" not in text
    assert "a\\x1b[31m\\n.wav" in text


def test_a_long_vocabulary_is_shown_in_part(home, fitting):
    mids = [f"/t/{i:03d}" for i in range(60)]
    Vocabulary(tuple(mids), tuple(f"Class {i}" for i in range(60))).write(home / "labels.csv")
    records = [("clean0.wav", mids[: 60 - i]) for i in range(40)]
    datafile.write(home / "train.json", records)
    lines = page(report(home, frontend=fitting, ontology="")).splitlines()
    start = lines.index("Clips per class")
    assert lines[start + 1].startswith("  Class 0   40 ")
    assert lines[start + 1].count("█") == 40
    assert lines[start + 13] == "  ... 40 classes between"
    assert lines[start + 21].split()[:3] == ["Class", "59", "1"]
