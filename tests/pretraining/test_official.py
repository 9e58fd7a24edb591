"""The released weights by name, from a server that has small ones in their place."""

from __future__ import annotations

import dataclasses
import io
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from flax import nnx
from servers import Page, Request, Server, one_sentence, serving

from psla_jax import cli
from psla_jax.checkpoints import load_model
from psla_jax.models.tagger import build_model
from psla_jax.ontology import Vocabulary
from psla_jax.pretraining import official
from psla_jax.pretraining.names import PREFIX, PretrainingError, to_state_dict

SINGLE, SET = "audioset-single", "audioset-3-runs"
CLASSES = 527
BIAS = "attention.cla.bias"
WEB_PAGE = b"<!DOCTYPE html>\n<html><body>Sign in to see this file. weights.pth</body></html>"
NOISE, OTHER_NOISE = ({"model_1.pth": np.random.default_rng(seed).bytes(10_000)} for seed in (0, 1))
OPTIMIZER = "run/best_optim_state.pth"
CONTENT = "/content/abc/as_mdl_0.pth"
"""Where the link of the single model leads."""


def pth_of(arrays: Mapping[str, np.ndarray]) -> bytes:
    """A checkpoint as DataParallel saves it."""
    file = io.BytesIO()
    torch.save({PREFIX + name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}, file)
    return file.getvalue()


def zip_of(members: Mapping[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def checkpoints(*biases: float) -> list[bytes]:
    """Checkpoints of one small model that differ by a bias."""
    arrays = to_state_dict(build_model("efficientnet-tiny", num_classes=CLASSES, heads=1, rngs=nnx.Rngs(0)))
    return [pth_of(arrays | {BIAS: np.full(CLASSES, bias, np.float32)}) for bias in biases]


def path_of(name: str) -> str:
    """Where the server has a release: at a link like those of the authors."""
    return f"/s/{name}?dl=1"


@pytest.fixture(scope="module")
def here() -> Iterator[Server]:
    with serving() as running:
        yield running


def divert(patch: pytest.MonkeyPatch, server: Server, cache: Path) -> None:
    """Sets the catalogue's links to the server, and the cache to a folder of the test."""
    server.pages, server.asked = {}, []
    catalogue = tuple(dataclasses.replace(entry, url=server.url(path_of(entry.name))) for entry in official.CATALOGUE)
    patch.setattr(official, "CATALOGUE", catalogue)
    patch.setenv("PSLA_CACHE", str(cache))
    patch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server(here: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    divert(monkeypatch, here, tmp_path / "cache")
    return here


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What came of a release."""

    cache: Path
    directories: list[Path]
    asked: list[Request]
    said: list[str]


@pytest.fixture(scope="module")
def converted(here: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Conversion]:
    """A single model behind a redirection, and a set of which an archive is made on the way, as Dropbox has them."""
    home = tmp_path_factory.mktemp("official")
    cache = home / "cache"
    single, second, tenth = checkpoints(1, 2, 10)
    members = {"run/model_10.pth": tenth, "run/model_2.pth": second, OPTIMIZER: second, "run/notes.txt": b"hello"}
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        divert(patch, here, cache)
        here.pages[path_of(SINGLE)] = Page(status=302, location=here.url(CONTENT))
        here.pages[CONTENT] = Page(single, breaks=[50_000])
        here.pages[path_of(SET)] = Page(zip_of(members), ranges=False, length=False)
        for name in (SINGLE, SET):
            here.asked, said = [], []
            directories = official.get(name, home / "models" / name, say=said.append)
            found[name] = Conversion(cache, directories, here.asked, said)
    return found


def bias_of(directory: Path) -> float:
    values = to_state_dict(load_model(directory).network)[BIAS]
    assert (values == values[0]).all()
    return float(values[0])


def refused(name: str, destination: Path) -> str:
    """Asks for what cannot be had; the one sentence."""
    with pytest.raises(PretrainingError) as caught:
        official.get(name, destination, say=lambda _: None)
    return one_sentence(caught.value)


def complaint(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """Runs a command that has to fail; its one sentence on standard error."""
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("psla: ")
    return one_sentence(error.removeprefix("psla: "))


def everything_in(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def place(name: str, content: bytes) -> Path:
    """Puts a file into the cache by hand."""
    file = official.release(name).file
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    return file


def test_a_single_model_comes_through_a_redirection_and_is_converted(
    converted: dict[str, Conversion], here: Server
) -> None:
    found = converted[SINGLE]
    (directory,) = found.directories
    model = load_model(directory)
    assert model.card.model.name == "efficientnet-tiny"
    assert model.card.vocabulary == Vocabulary.read("audioset")
    assert model.card.licence == official.LICENCE
    assert bias_of(directory) == 1
    assert [request.path for request in found.asked] == [path_of(SINGLE), CONTENT] * 2
    assert found.said[0] == f"downloading {here.url(path_of(SINGLE))}"
    assert found.said[1].endswith(f"{SINGLE}.pth -> {directory}")
    assert found.said[-1].startswith("checked ")


def test_of_a_set_every_model_is_converted_in_the_order_of_the_numbers(converted: dict[str, Conversion]) -> None:
    found = converted[SET]
    assert [directory.name for directory in found.directories] == ["model_2", "model_10"]
    assert [bias_of(directory) for directory in found.directories] == [2, 10]
    assert found.asked == [Request(path_of(SET))]


def test_the_cache_keeps_the_downloads_and_their_weights_and_nothing_else(converted: dict[str, Conversion]) -> None:
    assert everything_in(converted[SET].cache) == [
        f"official/{SET}.zip",
        f"official/{SET}/model_10.pth",
        f"official/{SET}/model_2.pth",
        f"official/{SINGLE}.pth",
    ]


def test_what_is_in_the_cache_is_not_downloaded_again(
    converted: dict[str, Conversion],
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PSLA_CACHE", str(converted[SINGLE].cache))
    (directory,) = converted[SINGLE].directories
    before = (directory / "model.json").stat().st_mtime_ns
    assert cli.main(["models", SINGLE, "--out", str(directory), "--overwrite", "True"]) == 0
    assert (directory / "model.json").stat().st_mtime_ns > before
    assert server.asked == []
    printed = capsys.readouterr()
    assert "downloading" not in printed.out
    assert str(directory) in printed.out
    assert printed.err == ""


def test_the_list_says_which_ones_are_in_the_cache(
    converted: dict[str, Conversion], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setenv("PSLA_CACHE", str(converted[SINGLE].cache))
    assert cli.main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert rows == [
        [
            entry.name, entry.what, str(entry.models), f"{entry.mAP:.3f}", "yes" if entry.name in converted else "-",
            entry.url,
        ]
        for entry in official.CATALOGUE
    ]  # fmt: skip
    assert str(converted[SINGLE].cache / "official") in lines[-1]


def test_every_release_has_a_name_a_link_and_a_class_list_of_its_own() -> None:
    names = [entry.name for entry in official.CATALOGUE]
    assert len(set(names)) == len(names) == len({entry.url for entry in official.CATALOGUE})
    for entry in official.CATALOGUE:
        assert entry.url.startswith("https://")
        assert entry.url.endswith("?dl=1")  # without it Dropbox sends a web page
        assert len(Vocabulary.read(entry.labels)) == {"audioset": 527, "fsd50k": 200}[entry.labels]
        assert entry.file.suffix == (".zip" if entry.models > 1 else ".pth")


def test_an_unknown_name_is_one_sentence_with_the_known_ones(
    server: Server, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = complaint(capsys, ["models", "audioset-best", "--out", str(models)])
    assert "'audioset-best'" in message
    assert all(entry.name in message for entry in official.CATALOGUE)
    assert not models.exists()


def test_a_destination_that_is_there_is_refused_before_the_download(
    server: Server, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models.mkdir()
    message = complaint(capsys, ["models", SINGLE, "--out", str(models)])
    assert message == f"{models} is there already: name another place, or replace it with --overwrite True."
    assert server.asked == []


def test_without_pytorch_it_says_so_before_the_download(
    server: Server, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert refused(SINGLE, models) == f"converting {SINGLE} needs PyTorch: pip install torch."
    assert server.asked == []


@pytest.mark.parametrize("name", [SINGLE, SET])
def test_a_link_that_is_gone_is_one_sentence_that_says_what_to_put_where(
    server: Server, models: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    message = complaint(capsys, ["models", name, "--out", str(models)])
    assert message.startswith(server.url(path_of(name)))
    assert "404 Not Found" in message
    assert message.endswith(f"put the file at {official.release(name).file} yourself.")
    assert not models.exists()


NO_ARCHIVE = "is no archive of weights, or a damaged one"
STRANGERS = {
    "web page": (SINGLE, WEB_PAGE, "is a web page, not weights"),
    "nothing": (SINGLE, b"", "is empty"),
    "text": (SINGLE, b"hello", "is not a file of PyTorch weights"),
    "archive": (SINGLE, zip_of({"model_1.pth": b"weights"}), "is cut short or damaged"),
    "web page for a set": (SET, WEB_PAGE, NO_ARCHIVE),
    "archive cut short": (SET, zip_of({"model_1.pth": b"weights"})[:-30], NO_ARCHIVE),
    "archive without its beginning": (SET, zip_of({"model_1.pth": b"weights"})[40:], NO_ARCHIVE),
    "archive of two halves": (SET, zip_of(NOISE)[:5_000] + zip_of(OTHER_NOISE)[5_000:], NO_ARCHIVE),
    "archive without weights": (SET, zip_of({OPTIMIZER: b"state", "notes.txt": b""}), NO_ARCHIVE),
}


@pytest.mark.parametrize(("name", "body", "what"), STRANGERS.values(), ids=STRANGERS)
def test_something_else_instead_of_the_file_is_one_sentence_and_nothing_is_left(
    server: Server, models: Path, name: str, body: bytes, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server.pages[path_of(name)] = Page(body)
    release = official.release(name)
    assert complaint(capsys, ["models", name, "--out", str(models)]) == (
        f"what {release.url} gave {what}: open the link in a browser, and put the {release.file.suffix} file at "
        f"{release.file} yourself."
    )
    assert everything_in(release.file.parent) == []
    assert not models.exists()


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        (SINGLE, WEB_PAGE, "is a web page, not weights"),
        (SET, WEB_PAGE, "is damaged or no zip archive: delete it and start again."),
        (SET, zip_of({OPTIMIZER: b"state"}), "holds no weights (.pth): delete it and start again."),
    ],
)
def test_the_wrong_file_put_there_by_hand_is_one_sentence_with_its_path(
    server: Server, models: Path, name: str, content: bytes, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = place(name, content)
    assert complaint(capsys, ["models", name, "--out", str(models)]).startswith(f"{file} {what}")
    assert file.read_bytes() == content
    assert server.asked == []


def test_members_of_an_archive_land_in_its_folder_whatever_their_paths(server: Server, tmp_path: Path) -> None:
    outside = tmp_path / "outside" / "absolute.pth"
    members = {
        "../../evil.pth": b"1",
        "../../../../evil_2.pth": b"2",
        str(outside): b"3",
        "run/../../../evil_4.pth": b"4",
    }
    files = official.unpack(place(SET, zip_of(members)))
    folder = tmp_path / "cache" / "official" / SET
    wanted = {folder / Path(name).name: content for name, content in members.items()}
    assert {file: file.read_bytes() for file in files} == wanted
    inside = [str(file.relative_to(tmp_path)) for file in [*wanted, folder.with_suffix(".zip")]]
    assert everything_in(tmp_path) == sorted(inside)
    assert not (tmp_path.parent / "evil_2.pth").exists()


def test_files_of_optimizers_and_others_are_left_out_and_numbers_count(server: Server) -> None:
    numbers = (10, 2, 1, 21, 3)
    members = {f"models/audio_model.{i}.pth": b"%d" % i for i in numbers} | {"models/": b"", "result.csv": b""}
    members |= {f"models/optim_state.{i}.pth": b"" for i in numbers} | {OPTIMIZER: b""}
    files = official.unpack(place(SET, zip_of(members)))
    assert [file.name for file in files] == [f"audio_model.{i}.pth" for i in sorted(numbers)]
    assert [file.read_bytes() for file in files] == [b"%d" % i for i in sorted(numbers)]
    assert len(everything_in(files[0].parent)) == len(numbers)


def test_what_is_unpacked_stays_and_what_is_incomplete_is_unpacked_again(server: Server) -> None:
    archive = place(SET, zip_of({"model_1.pth": b"first", "model_2.pth": b"second"}))
    first, second = official.unpack(archive)
    second.write_bytes(b"sec")
    before = first.stat()
    assert official.unpack(archive) == [first, second]
    assert second.read_bytes() == b"second"
    assert (first.stat().st_ino, first.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
@pytest.mark.parametrize("at", [0, 5_000], ids=["header", "content"])
def test_a_damaged_archive_is_one_sentence_and_gives_no_half_files(
    server: Server, models: Path, compression: int, at: int, capsys: pytest.CaptureFixture[str]
) -> None:
    content = bytearray(zip_of(NOISE, compression))
    content[at : at + 50] = bytes(50)
    archive = place(SET, bytes(content))
    message = complaint(capsys, ["models", SET, "--out", str(models)])
    assert message == f"{archive} is damaged or no zip archive: delete it and start again."
    assert everything_in(archive.parent) == [archive.name]


def test_two_members_of_one_name_are_refused(server: Server, models: Path) -> None:
    archive = place(SET, zip_of({"run_1/model.pth": b"1", "run_2/model.pth": b"2"}))
    message = refused(SET, models)
    assert message == f"{archive} holds model.pth twice: unpack it by hand and convert the files."
