"""ImageNet starts: from a file, by name from a server, and what happens when either is wrong."""

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

from psla_jax import pretraining
from psla_jax.config import PretrainingConfig
from psla_jax.models.tagger import AudioTagger, build_model
from psla_jax.pretraining import PretrainingError, start_from, to_state_dict

NAME = "efficientnet-b0"


@pytest.fixture(scope="module")
def reference() -> EfficientNet:
    torch.manual_seed(0)
    return EfficientNet.from_name(NAME).eval()


@pytest.fixture(scope="module")
def weights(reference, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("imagenet") / "weights.pth"
    torch.save(reference.state_dict(), path)
    return path


def fresh(name: str = NAME) -> AudioTagger:
    return build_model(name, num_classes=3, heads=1, rngs=nnx.Rngs(0))


def test_a_grey_image_gives_what_it_gave_in_colour(reference, weights):
    model = fresh()
    head = to_state_dict(model.attention)
    report = start_from(model, NAME, PretrainingConfig(source=str(weights)))
    assert "arrays loaded" in report
    image = np.random.default_rng(0).normal(size=(1, 64, 128)).astype(np.float32)
    with torch.no_grad():
        colour = torch.from_numpy(image).transpose(1, 2)[:, None].expand(-1, 3, -1, -1)
        wanted = reference.extract_features(colour).mean(dim=2).transpose(1, 2).numpy()
    np.testing.assert_allclose(model.effnet(jnp.asarray(image)), wanted, atol=1e-5)
    for name, value in to_state_dict(model.attention).items():
        np.testing.assert_array_equal(value, head[name])


def test_the_stem_can_stay_random_as_in_the_reference(weights):
    model = fresh()
    own = to_state_dict(model.effnet)["_conv_stem.weight"]
    start_from(model, NAME, PretrainingConfig(source=str(weights), stem="random"))
    np.testing.assert_array_equal(to_state_dict(model.effnet)["_conv_stem.weight"], own)


def test_weights_that_do_not_fit_are_refused_and_change_nothing(weights, tmp_path):
    model = fresh("efficientnet-b1")
    before = to_state_dict(model)
    with pytest.raises(PretrainingError, match=r"weights\.pth is not for efficientnet-b1: .*missing: _blocks"):
        start_from(model, "efficientnet-b1", PretrainingConfig(source=str(weights)))
    for name, value in to_state_dict(model).items():
        np.testing.assert_array_equal(value, before[name])
    with pytest.raises(PretrainingError, match=r"there is no file .*nowhere\.pth"):
        start_from(model, NAME, PretrainingConfig(source="nowhere.pth"))
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(PretrainingError, match=r"text\.pth cannot be read as a file of weights"):
        start_from(model, NAME, PretrainingConfig(source=str(tmp_path / "text.pth")))
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(PretrainingError, match=r"other\.pth does not hold ImageNet weights"):
        start_from(model, NAME, PretrainingConfig(source=str(tmp_path / "other.pth")))


@pytest.fixture
def server(weights, tmp_path, monkeypatch) -> Iterator[Path]:
    """The official address, as a local server of a folder that has the file under its official form of name."""
    folder = tmp_path / "server"
    folder.mkdir()
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()[:8]
    file = folder / f"{NAME}-{digest}.pth"
    file.write_bytes(weights.read_bytes())
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        monkeypatch.setattr(pretraining, "IMAGENET_URL", f"http://127.0.0.1:{running.server_port}/")
        monkeypatch.setattr(pretraining, "IMAGENET_FILES", {NAME: file.name})
        monkeypatch.setenv("PSLA_CACHE", str(tmp_path / "cache"))
        yield file
        running.shutdown()


def test_by_name_they_are_downloaded_once_and_verified(server, weights):
    path = pretraining.imagenet_file(NAME)
    assert path.read_bytes() == weights.read_bytes()
    server.unlink()
    assert pretraining.imagenet_file(NAME) == path
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(PretrainingError, match=r"is damaged .* delete it"):
        pretraining.imagenet_file(NAME)


def test_without_a_server_the_error_says_where_the_file_goes(server, tmp_path):
    server.unlink()
    with pytest.raises(PretrainingError, match=rf"put the file at .*imagenet.*{server.name}"):
        pretraining.imagenet_file(NAME)
    with pytest.raises(PretrainingError, match="'resnet50' has no ImageNet weights"):
        pretraining.imagenet_file("resnet50")
