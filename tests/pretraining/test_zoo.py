"""Download and conversion of released weights, from a local server with small models in their place."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from flax import nnx
from servers import Page, Request, Server, one_sentence, serving

import psla_jax
from psla_jax.cli import main
from psla_jax.models.factory import build_model
from psla_jax.models.model_dir import load_model
from psla_jax.pretraining import zoo
from psla_jax.pretraining.state_dict import PREFIX, PretrainingError, to_state_dict
from psla_jax.vocabulary.vocabulary import Vocabulary

SINGLE, SET = "audioset-single", "audioset-3-runs"
CLASSES = 527
BIAS = "attention.cla.bias"
WEB_PAGE = b"<!DOCTYPE html>\n<html><body>Sign in to see this file. weights.pth</body></html>"
NOISE, OTHER_NOISE = ({"model_1.pth": np.random.default_rng(seed).bytes(10_000)} for seed in (0, 1))
OPTIMIZER = "run/best_optim_state.pth"
CONTENT = "/content/abc/as_mdl_0.pth"
"""Target of the redirection of the single model's link."""


def to_pth(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Returns a checkpoint with the names of DataParallel."""
    file = io.BytesIO()
    torch.save({PREFIX + name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}, file)
    return file.getvalue()


def to_zip(members: Mapping[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def checkpoints(*biases: float) -> list[bytes]:
    """Returns checkpoints of a small model that differ only in a bias."""
    arrays = to_state_dict(build_model("efficientnet-tiny", num_classes=CLASSES, heads=1, rngs=nnx.Rngs(0)))
    return [to_pth(arrays | {BIAS: np.full(CLASSES, bias, np.float32)}) for bias in biases]


def path_of(name: str) -> str:
    """Returns the path of a release on the server, in the form of the authors' links."""
    return f"/s/{name}?dl=1"


@pytest.fixture(scope="module")
def shared_server() -> Iterator[Server]:
    with serving() as running:
        yield running


def redirect_downloads(patch: pytest.MonkeyPatch, server: Server, cache: Path) -> None:
    """Replaces the links of the catalogue by links to the server, and sets the cache folder."""
    server.pages, server.asked = {}, []
    catalogue = tuple(dataclasses.replace(entry, url=server.url(path_of(entry.name))) for entry in zoo.CATALOGUE)
    patch.setattr(zoo, "CATALOGUE", catalogue)
    patch.setenv("PSLA_CACHE", str(cache))
    patch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server(shared_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    redirect_downloads(monkeypatch, shared_server, tmp_path / "cache")
    return shared_server


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


@dataclasses.dataclass(frozen=True)
class Conversion:
    """Result of downloading and converting a release."""

    cache: Path
    directories: list[Path]
    asked: list[Request]
    lines: list[str]


@pytest.fixture(scope="module")
def converted(shared_server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Conversion]:
    """Converts a single model behind a redirection, and an archive created on request, as served by Dropbox."""
    home = tmp_path_factory.mktemp("official")
    cache = home / "cache"
    single, second, tenth = checkpoints(1, 2, 10)
    members = {"run/model_10.pth": tenth, "run/model_2.pth": second, OPTIMIZER: second, "run/notes.txt": b"hello"}
    conversions = {}
    with pytest.MonkeyPatch.context() as patch:
        redirect_downloads(patch, shared_server, cache)
        shared_server.pages[path_of(SINGLE)] = Page(status=302, location=shared_server.url(CONTENT))
        shared_server.pages[CONTENT] = Page(single, breaks=[50_000])
        shared_server.pages[path_of(SET)] = Page(to_zip(members), ranges=False, length=False)
        for name in (SINGLE, SET):
            shared_server.asked, lines = [], []
            directories = zoo.get(name, home / "models" / name, log=lines.append)
            conversions[name] = Conversion(cache, directories, shared_server.asked, lines)
    return conversions


def bias_of(directory: Path) -> float:
    values = to_state_dict(load_model(directory).network)[BIAS]
    assert (values == values[0]).all()
    return float(values[0])


def download_error(name: str, destination: Path) -> str:
    """Requests a release that cannot be converted; returns the error message."""
    with pytest.raises(PretrainingError) as caught:
        zoo.get(name, destination, log=lambda _: None)
    return one_sentence(caught.value)


def error_message(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """Runs a command that fails; returns the message on standard error."""
    assert main.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("psla: ")
    return one_sentence(error.removeprefix("psla: "))


def files_in(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def unpack(archive: Path) -> list[Path]:
    return zoo.unpack(archive, archive.with_suffix(""))


def write_to_cache(name: str, content: bytes) -> Path:
    """Writes the file of a release into the cache."""
    file = zoo.find_release(name).file
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    return file


def test_a_single_model_is_downloaded_through_a_redirection_and_converted(
    converted: dict[str, Conversion], shared_server: Server
) -> None:
    conversion = converted[SINGLE]
    (directory,) = conversion.directories
    model = load_model(directory)
    assert model.card.model.name == "efficientnet-tiny"
    assert model.card.vocabulary == Vocabulary.read("audioset")
    assert model.card.licence == zoo.LICENCE
    assert bias_of(directory) == 1
    assert [request.path for request in conversion.asked] == [path_of(SINGLE), CONTENT] * 2
    assert conversion.lines[0] == f"downloading {shared_server.url(path_of(SINGLE))}"
    assert conversion.lines[1].endswith(f"{SINGLE}.pth -> {directory}")
    assert conversion.lines[-1].startswith("verified ")


def test_all_models_of_an_archive_are_converted_in_numerical_order(converted: dict[str, Conversion]) -> None:
    conversion = converted[SET]
    assert [directory.name for directory in conversion.directories] == ["model_2", "model_10"]
    assert [bias_of(directory) for directory in conversion.directories] == [2, 10]
    assert conversion.asked == [Request(path_of(SET))]


def test_the_cache_contains_the_downloads_and_their_weights_and_nothing_else(converted: dict[str, Conversion]) -> None:
    assert files_in(converted[SET].cache) == [
        f"official/{SET}.zip",
        f"official/{SET}/model_10.pth",
        f"official/{SET}/model_2.pth",
        f"official/{SINGLE}.pth",
    ]


def test_cached_files_are_not_downloaded_again(
    converted: dict[str, Conversion],
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PSLA_CACHE", str(converted[SINGLE].cache))
    (directory,) = converted[SINGLE].directories
    before = (directory / "model.json").stat().st_mtime_ns
    assert main.main(["models", SINGLE, "--out", str(directory), "--overwrite"]) == 0
    assert (directory / "model.json").stat().st_mtime_ns > before
    assert server.asked == []
    printed = capsys.readouterr()
    assert "downloading" not in printed.out
    assert str(directory) in printed.out
    assert printed.err == ""


def test_without_a_writable_cache_the_models_are_converted_all_the_same(
    converted: dict[str, Conversion],
    server: Server,
    tmp_path: Path,
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The download and the extracted weights of an archive are in a temporary directory then."""
    archive = (converted[SET].cache / "official" / f"{SET}.zip").read_bytes()
    server.pages[path_of(SET)] = Page(archive)
    (tmp_path / "cache").write_text("a file in place of the directory")
    directories = zoo.get(SET, models, log=lambda _: None)
    assert [bias_of(directory) for directory in directories] == [2, 10]
    assert len(server.asked) == 1
    assert capsys.readouterr().err.startswith(f"the cache is not used: {tmp_path}/cache/official cannot be written (")
    read_only = tmp_path / "read-only"
    (read_only / "official").mkdir(parents=True)
    (read_only / "official" / f"{SET}.zip").write_bytes(archive)
    (read_only / "official" / SET).write_text("a file in place of the folder of the weights")
    monkeypatch.setenv("PSLA_CACHE", str(read_only))
    assert len(zoo.get(SET, tmp_path / "again", log=lambda _: None)) == 2
    assert len(server.asked) == 1, "the archive in the cache is used"


def test_the_list_shows_which_releases_are_cached(
    converted: dict[str, Conversion], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setenv("PSLA_CACHE", str(converted[SINGLE].cache))
    assert main.main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert rows == [
        [
            entry.name, entry.what, str(entry.models), f"{entry.mAP:.3f}", "yes" if entry.name in converted else "-",
            entry.url,
        ]
        for entry in zoo.CATALOGUE
    ]  # fmt: skip
    assert str(converted[SINGLE].cache / "official") in lines[-1]


def test_every_release_has_a_unique_name_and_link_and_a_class_list() -> None:
    names = [entry.name for entry in zoo.CATALOGUE]
    assert len(set(names)) == len(names) == len({entry.url for entry in zoo.CATALOGUE})
    for entry in zoo.CATALOGUE:
        assert entry.url.startswith("https://")
        assert entry.url.endswith("?dl=1")  # otherwise Dropbox sends a web page
        assert len(Vocabulary.read(entry.labels)) == {"audioset": 527, "fsd50k": 200}[entry.labels]
        assert entry.file.suffix == (".zip" if entry.models > 1 else ".pth")


def test_an_unknown_name_is_an_error_that_lists_the_releases(
    server: Server, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = error_message(capsys, ["models", "audioset-best", "--out", str(models)])
    assert "'audioset-best'" in message
    assert all(entry.name in message for entry in zoo.CATALOGUE)
    assert not models.exists()


def test_an_existing_destination_is_rejected_before_the_download(
    server: Server, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models.mkdir()
    message = error_message(capsys, ["models", SINGLE, "--out", str(models)])
    assert message == f"{models} exists: choose another path, or replace it with --overwrite."
    assert server.asked == []


def test_without_pytorch_models_are_converted_without_its_scores(
    server: Server, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.pages[path_of(SINGLE)] = Page(checkpoints(3)[0])
    monkeypatch.setitem(sys.modules, "torch", None)
    lines: list[str] = []
    zoo.get(SINGLE, models, log=lines.append)
    assert bias_of(models) == 3
    assert "pip install torch to compare scores" in lines[-1]
    assert set(load_model(models).card.golden) == {"scores"}


@pytest.fixture
def released(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server with the default release and a set of two; small models in their place."""
    catalogue = tuple(dataclasses.replace(entry, models=2) if entry.name == SET else entry for entry in zoo.CATALOGUE)
    monkeypatch.setattr(zoo, "CATALOGUE", catalogue)
    monkeypatch.delenv(zoo.MODEL_VARIABLE, raising=False)
    first, second = checkpoints(1, 2)
    server.pages[path_of(zoo.DEFAULT)] = Page(first)
    server.pages[path_of(SET)] = Page(to_zip({"model_1.pth": first, "model_2.pth": second}))
    return server


def test_the_default_model_is_downloaded_and_converted_once(released: Server, tmp_path: Path) -> None:
    lines: list[str] = []
    (path,) = zoo.resolve([], lines.append)
    assert bias_of(Path(path)) == 1
    assert Path(path) == tmp_path / "cache" / "models" / zoo.DEFAULT
    assert lines[0].startswith(
        f"{zoo.DEFAULT} (weight average, published mAP 0.444) is needed once: about 55 MB; licence: "
    )
    asked, lines = len(released.asked), []
    assert zoo.resolve([], lines.append) == [path]
    assert (len(released.asked), lines) == (asked, [])


def test_names_stand_for_their_models_and_paths_for_themselves(released: Server, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = zoo.resolve(["runs/demo", SET], lambda text: None)
    assert paths[0] == "runs/demo"
    assert [bias_of(Path(path)) for path in paths[1:]] == [1, 2]
    lines: list[str] = []
    assert zoo.resolve([SET], lines.append) == paths[1:]
    assert lines == []
    (tmp_path / SET).mkdir()
    assert zoo.resolve([SET], lines.append) == [SET]
    monkeypatch.setenv(zoo.MODEL_VARIABLE, "runs/mine")
    assert zoo.resolve([], lines.append) == ["runs/mine"]


def test_a_recording_is_tagged_without_naming_a_model(
    released: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "noise.wav", np.random.default_rng(0).uniform(-0.1, 0.1, 16_000), 16_000)
    assert main.main(["tag", str(tmp_path / "noise.wav"), "--json", "-"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out)["clip"].endswith("noise.wav")
    assert "licence" in output.err
    assert psla_jax.load_tagger().tag(tmp_path / "noise.wav").duration == 1.0


def test_without_a_connection_the_error_says_which_file_to_put_where(
    released: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del released.pages[path_of(zoo.DEFAULT)]
    soundfile.write(tmp_path / "noise.wav", np.zeros(16_000), 16_000)
    assert main.main(["tag", str(tmp_path / "noise.wav")]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("psla: ")
    assert one_sentence(message).endswith(
        f"put the file at {tmp_path / 'cache' / 'official' / zoo.DEFAULT}.pth yourself."
    )


@pytest.mark.parametrize("name", [SINGLE, SET])
def test_a_broken_link_is_an_error_with_the_file_and_its_path(
    server: Server, models: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    message = error_message(capsys, ["models", name, "--out", str(models)])
    assert message.startswith(server.url(path_of(name)))
    assert "404 Not Found" in message
    assert message.endswith(f"put the file at {zoo.find_release(name).file} yourself.")
    assert not models.exists()


NO_ARCHIVE = "is not an archive of weights, or is damaged"
UNEXPECTED = {
    "web page": (SINGLE, WEB_PAGE, "is a web page, not weights"),
    "nothing": (SINGLE, b"", "is empty"),
    "text": (SINGLE, b"hello", "is not a file of PyTorch weights"),
    "archive": (SINGLE, to_zip({"model_1.pth": b"weights"}), "is truncated or damaged"),
    "web page for a set": (SET, WEB_PAGE, NO_ARCHIVE),
    "truncated archive": (SET, to_zip({"model_1.pth": b"weights"})[:-30], NO_ARCHIVE),
    "archive without its beginning": (SET, to_zip({"model_1.pth": b"weights"})[40:], NO_ARCHIVE),
    "archive of two halves": (SET, to_zip(NOISE)[:5_000] + to_zip(OTHER_NOISE)[5_000:], NO_ARCHIVE),
    "archive without weights": (SET, to_zip({OPTIMIZER: b"state", "notes.txt": b""}), NO_ARCHIVE),
}


@pytest.mark.parametrize(("name", "body", "what"), UNEXPECTED.values(), ids=UNEXPECTED)
def test_unexpected_content_is_an_error_and_nothing_is_saved(
    server: Server, models: Path, name: str, body: bytes, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server.pages[path_of(name)] = Page(body)
    release = zoo.find_release(name)
    assert error_message(capsys, ["models", name, "--out", str(models)]) == (
        f"the download from {release.url} {what}: open the link in a browser, and put the {release.file.suffix} file "
        f"at {release.file} yourself."
    )
    assert files_in(release.file.parent) == []
    assert not models.exists()


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        (SINGLE, WEB_PAGE, "is a web page, not weights"),
        (SET, WEB_PAGE, "is damaged or not a zip archive: delete it and start again."),
        (SET, to_zip({OPTIMIZER: b"state"}), "holds no weights (.pth): delete it and start again."),
    ],
)
def test_a_wrong_file_in_the_cache_is_an_error_with_its_path(
    server: Server, models: Path, name: str, content: bytes, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_to_cache(name, content)
    assert error_message(capsys, ["models", name, "--out", str(models)]).startswith(f"{file} {what}")
    assert file.read_bytes() == content
    assert server.asked == []


def test_archive_members_are_extracted_into_one_folder_whatever_their_paths(server: Server, tmp_path: Path) -> None:
    outside = tmp_path / "outside" / "absolute.pth"
    members = {
        "../../evil.pth": b"1",
        "../../../../evil_2.pth": b"2",
        str(outside): b"3",
        "run/../../../evil_4.pth": b"4",
    }
    files = unpack(write_to_cache(SET, to_zip(members)))
    folder = tmp_path / "cache" / "official" / SET
    expected = {folder / Path(name).name: content for name, content in members.items()}
    assert {file: file.read_bytes() for file in files} == expected
    inside = [str(file.relative_to(tmp_path)) for file in [*expected, folder.with_suffix(".zip")]]
    assert files_in(tmp_path) == sorted(inside)
    assert not (tmp_path.parent / "evil_2.pth").exists()


def test_only_weights_are_extracted_in_numerical_order(server: Server) -> None:
    numbers = (10, 2, 1, 21, 3)
    members = {f"models/audio_model.{i}.pth": b"%d" % i for i in numbers} | {"models/": b"", "result.csv": b""}
    members |= {f"models/optim_state.{i}.pth": b"" for i in numbers} | {OPTIMIZER: b""}
    files = unpack(write_to_cache(SET, to_zip(members)))
    assert [file.name for file in files] == [f"audio_model.{i}.pth" for i in sorted(numbers)]
    assert [file.read_bytes() for file in files] == [b"%d" % i for i in sorted(numbers)]
    assert len(files_in(files[0].parent)) == len(numbers)


def test_complete_files_are_not_extracted_again(server: Server) -> None:
    archive = write_to_cache(SET, to_zip({"model_1.pth": b"first", "model_2.pth": b"second"}))
    first, second = unpack(archive)
    second.write_bytes(b"sec")
    before = first.stat()
    assert unpack(archive) == [first, second]
    assert second.read_bytes() == b"second"
    assert (first.stat().st_ino, first.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
@pytest.mark.parametrize("at", [0, 5_000], ids=["header", "content"])
def test_a_damaged_archive_is_an_error_and_leaves_no_partial_files(
    server: Server, models: Path, compression: int, at: int, capsys: pytest.CaptureFixture[str]
) -> None:
    content = bytearray(to_zip(NOISE, compression))
    content[at : at + 50] = bytes(50)
    archive = write_to_cache(SET, bytes(content))
    message = error_message(capsys, ["models", SET, "--out", str(models)])
    assert message == f"{archive} is damaged or not a zip archive: delete it and start again."
    assert files_in(archive.parent) == [archive.name]


def test_two_members_with_the_same_name_are_rejected(server: Server, models: Path) -> None:
    archive = write_to_cache(SET, to_zip({"run_1/model.pth": b"1", "run_2/model.pth": b"2"}))
    message = download_error(SET, models)
    assert message == f"{archive} holds model.pth twice: unpack it by hand and convert the files."
