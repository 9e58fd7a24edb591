"""ImageNet weights from a file or a download, and errors."""

from __future__ import annotations

import functools
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from efficientnet_pytorch import EfficientNet
from flax import nnx
from sounds import VOCABULARY
from tolerance import assert_close
from torch_reference import MobileNet, ResNet

from psla_jax.config import FrontendConfig, ModelConfig, PretrainingConfig
from psla_jax.models.factory import from_config
from psla_jax.models.psla import PSLAModel
from psla_jax.pretraining import imagenet
from psla_jax.pretraining.initialize import start_from
from psla_jax.pretraining.state_dict import PretrainingError, to_state_dict

NAMES = ("efficientnet-b0", "resnet50", "mobilenet-v2")
STEMS = dict(zip(NAMES, imagenet.STEMS))


@functools.cache
def reference(name: str) -> torch.nn.Module:
    """Returns a backbone for colour images as built by its library, with a classifier of 1000 classes."""
    torch.manual_seed(0)
    if name == "resnet50":
        model: torch.nn.Module = ResNet(channels=3)
        model.fc = torch.nn.Linear(2048, 1000)
    elif name == "mobilenet-v2":
        model = MobileNet(1000, channels=3)
        model.classifier = torch.nn.Sequential(torch.nn.Dropout(), model.classifier)
    else:
        model = EfficientNet.from_name(name)
    return model.eval()


def features(name: str, image: torch.Tensor) -> torch.Tensor:
    model = reference(name)
    if name == "resnet50":
        return model(image)
    return model.features(image) if name == "mobilenet-v2" else model.extract_features(image)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Returns a folder with a weight file for each backbone."""
    folder = tmp_path_factory.mktemp("imagenet")
    for name in NAMES:
        wrapper = "module._orig_mod." if name == NAMES[0] else ""  # As saved by DataParallel of a compiled module.
        torch.save({wrapper + k: v for k, v in reference(name).state_dict().items()}, folder / f"{name}.pth")
    return folder


def config(name: str) -> ModelConfig:
    return ModelConfig(name=name, heads=1)


def new_model(name: str = NAMES[0]) -> PSLAModel:
    return from_config(config(name), len(VOCABULARY), jnp.float32, nnx.Rngs(0))


def start(model: PSLAModel, name: str, source: object, stem: str = "sum") -> str:
    return start_from(
        model, config(name), PretrainingConfig(source=str(source), stem=stem), VOCABULARY, FrontendConfig()
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_grey_image_gives_the_same_features_as_in_colour(folder: Path, name: str) -> None:
    model = new_model(name)
    head = to_state_dict(model.attention)
    assert "arrays loaded" in start(model, name, folder / f"{name}.pth")
    image = np.random.default_rng(0).normal(size=(1, 64, 128)).astype(np.float32)
    with torch.no_grad():
        colour = torch.from_numpy(image).transpose(1, 2)[:, None].expand(-1, 3, -1, -1)
        expected = features(name, colour).mean(dim=2).transpose(1, 2).numpy()
    assert_close(nnx.jit(model.backbone)(jnp.asarray(image)), expected, 1e-5)
    for key, value in to_state_dict(model.attention).items():
        np.testing.assert_array_equal(value, head[key])


@pytest.mark.parametrize("name", NAMES)
def test_the_stem_can_remain_random_as_in_the_reference(folder: Path, name: str) -> None:
    model = new_model(name)
    initial = to_state_dict(model.backbone)[STEMS[name]]
    start(model, name, folder / f"{name}.pth", stem="random")
    np.testing.assert_array_equal(to_state_dict(model.backbone)[STEMS[name]], initial)


def test_weights_that_do_not_fit_are_rejected_and_change_nothing(folder: Path, tmp_path: Path) -> None:
    model = new_model("efficientnet-b1")
    before = to_state_dict(model)
    weights = folder / "efficientnet-b0.pth"
    with pytest.raises(
        PretrainingError,
        match=r"b0\.pth does not hold weights of efficientnet-b1: they are of efficientnet-b0, so use --model\.name",
    ):
        start(model, "efficientnet-b1", weights)
    for name, value in to_state_dict(model).items():
        np.testing.assert_array_equal(value, before[name])
    with pytest.raises(PretrainingError, match=r"there is no file .*nowhere\.pth"):
        start(model, "efficientnet-b1", "nowhere.pth")
    with pytest.raises(PretrainingError, match=r"resnet50\.pth does not hold weights of .*they are of resnet50"):
        start(model, "efficientnet-b1", folder / "resnet50.pth")


@pytest.fixture
def server(folder: Path, tmp_path: Path, monkeypatch) -> Iterator[Path]:
    """Serves the file for B0 locally, under a name of the official form."""
    source = folder / "efficientnet-b0.pth"
    served = tmp_path / "server"
    served.mkdir()
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:8]
    file = served / f"efficientnet-b0-{digest}.pth"
    file.write_bytes(source.read_bytes())
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{running.server_port}/{file.name}"
        monkeypatch.setattr(imagenet, "URLS", {"efficientnet-b0": url})
        monkeypatch.setenv("PSLA_CACHE", str(tmp_path / "cache"))
        yield file
        running.shutdown()


def test_weights_are_downloaded_once_verified_and_loaded(server: Path) -> None:
    path = imagenet.imagenet_file("efficientnet-b0")
    assert path.read_bytes() == server.read_bytes()
    server.unlink()
    assert imagenet.imagenet_file("efficientnet-b0") == path
    assert str(path) in start(new_model(), "efficientnet-b0", "imagenet")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(PretrainingError, match=r"is damaged.* delete it"):
        imagenet.imagenet_file("efficientnet-b0")


def test_without_a_writable_cache_weights_are_downloaded_for_this_process(
    server: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache").write_text("a file in place of the directory")
    path = imagenet.imagenet_file("efficientnet-b0")
    assert path.read_bytes() == server.read_bytes()
    server.unlink()
    assert imagenet.imagenet_file("efficientnet-b0") == path
    assert capsys.readouterr().err.count("the cache is not used: ") == 1


def test_a_failed_download_is_an_error_with_the_file_and_its_path(server: Path) -> None:
    server.unlink()
    with pytest.raises(PretrainingError, match=rf"put the file at .*imagenet.*{server.name}.*--pretraining\.source ''"):
        imagenet.imagenet_file("efficientnet-b0")
    with pytest.raises(PretrainingError, match="'efficientnet-tiny' has no ImageNet weights"):
        imagenet.imagenet_file("efficientnet-tiny")


def test_every_published_backbone_has_a_file_whose_name_ends_with_its_hash() -> None:
    assert set(imagenet.URLS) == {*(f"efficientnet-b{i}" for i in range(8)), "resnet50", "mobilenet-v2"}
    for url in imagenet.URLS.values():
        digest = url.removesuffix(".pth").rsplit("-", 1)[1]
        assert len(digest) == 8
        int(digest, 16)
