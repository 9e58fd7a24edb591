"""The P of PSLA: backbones that have seen ImageNet (section III-B)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flax import nnx

from psla_jax.cache import cache_directory
from psla_jax.download import DownloadError, fetch
from psla_jax.pretraining import pth
from psla_jax.pretraining.architecture import backbone_name
from psla_jax.pretraining.names import LoadReport, PretrainingError, load_state_dict, to_state_dict

EFFICIENTNET_URL = "https://github.com/lukemelas/EfficientNet-PyTorch/releases/download/1.0/"
TORCHVISION_URL = "https://download.pytorch.org/models/"
EFFICIENTNET_DIGESTS = "355c32eb", "f1951068", "8bb594d6", "5fb5a3c3", "6ed6700e", "b6417697", "c76e70fd", "dcc49843"
URLS = {
    **{
        f"efficientnet-b{i}": f"{EFFICIENTNET_URL}efficientnet-b{i}-{digest}.pth"
        for i, digest in enumerate(EFFICIENTNET_DIGESTS)
    },
    "resnet50": f"{TORCHVISION_URL}resnet50-0676ba61.pth",
    "mobilenet-v2": f"{TORCHVISION_URL}mobilenet_v2-b0353104.pth",
}
"""The files of efficientnet_pytorch and torchvision; a name ends with eight hex digits of the content's SHA-256."""
STEMS = "_conv_stem.weight", "conv1.weight", "features.0.0.weight"
"""The first convolution's name in each family of backbones."""


def imagenet_file(name: str) -> Path:
    """The ImageNet weights of a backbone, downloaded into the cache if they are not there, and verified.

    Raises:
        PretrainingError: there are none for `name`, the download fails, or the content is not what its name says.
    """
    if name not in URLS:
        raise PretrainingError(
            f"{name!r} has no ImageNet weights: choose one of {', '.join(URLS)}, or train without "
            "(--pretraining.source '')."
        )
    url = URLS[name]
    file = url.rsplit("/", 1)[1]
    digest = file.removesuffix(".pth").rsplit("-", 1)[1]
    try:
        return fetch(url, cache_directory() / "imagenet" / file, sha256_prefix=digest)
    except DownloadError as error:
        raise PretrainingError(
            f"{str(error).rstrip('.')}; or train from random weights, with --pretraining.source ''."
        ) from error


def require_backbone(arrays: Mapping[str, np.ndarray], name: str, source: str) -> None:
    """Raises PretrainingError if weights are of another backbone than `name`, saying which."""
    found = backbone_name(arrays)
    if found != name:
        remedy = (
            f"they are of {found}, so use --model.name {found}, or other weights" if found else "name other weights"
        )
        raise PretrainingError(f"{source} does not hold weights of {name}: {remedy}.")


def load_backbone(backbone: nnx.Module, name: str, file: pth.WeightFile, stem: str) -> LoadReport:
    """Fills a backbone with the weights of a file, in place.

    Args:
        backbone: of an ``AudioTagger``.
        name: its architecture, for the messages.
        file: ImageNet weights, under the names of efficientnet_pytorch or torchvision.
        stem: ``sum`` or ``random``. Summed over the colours, a grey image gives what it gave before; the reference
            draws the stem anew.

    Raises:
        PretrainingError: the file holds something else, or another architecture.
    """
    weights = dict(file.arrays)
    require_backbone(weights, name, str(file.path))
    own = to_state_dict(backbone)
    first = next(key for key in STEMS if key in own)
    if weights[first].ndim == 4 and weights[first].shape[1] == 3:
        weights[first] = np.sum(weights[first], axis=1, keepdims=True)
    if stem == "random":
        weights[first] = own[first]
    try:
        return load_state_dict(backbone, weights)
    except PretrainingError as error:
        raise PretrainingError(f"{file.path} is not for {name}: {error}") from error
