"""The P of PSLA: backbones pretrained on ImageNet (PSLA, section III-B)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flax import nnx

from psla_jax.pretraining import weight_file
from psla_jax.pretraining.infer import backbone_name
from psla_jax.pretraining.state_dict import (
    LoadReport,
    PretrainingError,
    load_state_dict,
    to_state_dict,
    without_wrappers,
)
from psla_jax.runtime.cache import in_cache
from psla_jax.runtime.download import DownloadError, fetch

EFFICIENTNET_URL = "https://github.com/lukemelas/EfficientNet-PyTorch/releases/download/1.0/"
TORCHVISION_URL = "https://download.pytorch.org/models/"
EFFICIENTNET_DIGESTS = "355c32eb", "f1951068", "8bb594d6", "5fb5a3c3", "6ed6700e", "b6417697", "c76e70fd", "dcc49843"
_EFFICIENTNETS = {f"efficientnet-b{i}": f"efficientnet-b{i}-{d}.pth" for i, d in enumerate(EFFICIENTNET_DIGESTS)}
URLS = {
    **{name: EFFICIENTNET_URL + file for name, file in _EFFICIENTNETS.items()},
    "resnet50": f"{TORCHVISION_URL}resnet50-0676ba61.pth",
    "mobilenet-v2": f"{TORCHVISION_URL}mobilenet_v2-b0353104.pth",
}
"""Files of efficientnet_pytorch and torchvision; each name ends with the first eight hex digits of its SHA-256."""
STEMS = "_conv_stem.weight", "conv1.weight", "features.0.0.weight"
"""Name of the first convolution in each family of backbones."""


def imagenet_file(name: str) -> Path:
    """Returns the ImageNet weights of a backbone in the download cache, downloaded if necessary and verified.

    Raises:
        PretrainingError: the backbone has no ImageNet weights, the download fails, or the SHA-256 is wrong.
    """
    if name not in URLS:
        raise PretrainingError(
            f"{name!r} has no ImageNet weights: choose one of {', '.join(URLS)}, or train without "
            "(--pretraining.source '')."
        )
    file = URLS[name].rsplit("/", 1)[1]
    digest = file.removesuffix(".pth").rsplit("-", 1)[1]
    try:
        return in_cache(lambda path: fetch(URLS[name], path, sha256_prefix=digest), "imagenet", file)
    except DownloadError as error:
        remedy = "or train from random weights, with --pretraining.source ''."
        raise PretrainingError(f"{str(error).rstrip('.')}; {remedy}") from error


def check_backbone(arrays: Mapping[str, np.ndarray], name: str, source: str) -> None:
    """Raises PretrainingError if weights do not belong to the backbone `name`; the message names their backbone."""
    actual = backbone_name(arrays)
    if actual != name:
        remedy = f"they are of {actual}, so use --model.name {actual}, or other" if actual else "name other"
        raise PretrainingError(f"{source} does not hold weights of {name}: {remedy} weights.")


def load_imagenet(backbone: nnx.Module, name: str, file: weight_file.WeightFile, stem: str) -> LoadReport:
    """Loads ImageNet weights into a backbone, in place.

    Args:
        backbone: backbone of a ``PSLAModel``.
        name: its architecture.
        file: ImageNet weights, under the names of efficientnet_pytorch or torchvision.
        stem: initialisation of the first convolution. ``sum`` adds its kernels over the colour channels, so that a grey
            image gives the same features as before; ``random`` keeps the random initialisation, as in the reference.

    Raises:
        PretrainingError: the weights belong to another architecture.
    """
    arrays = {without_wrappers(name): value for name, value in file.arrays.items()}
    check_backbone(arrays, name, str(file.path))
    initial = to_state_dict(backbone)
    first = next(key for key in STEMS if key in initial)
    if arrays[first].ndim == 4 and arrays[first].shape[1] == 3:
        arrays[first] = np.sum(arrays[first], axis=1, keepdims=True)
    if stem == "random":
        arrays[first] = initial[first]
    return load_backbone(backbone, arrays, str(file.path), name)


def load_backbone(backbone: nnx.Module, arrays: Mapping[str, np.ndarray], source: str, name: str) -> LoadReport:
    """Loads weights into a backbone, in place.

    Raises:
        PretrainingError: the weights belong to another architecture; the message names `source`.
    """
    check_backbone(arrays, name, source)
    try:
        return load_state_dict(backbone, arrays)
    except PretrainingError as error:
        raise PretrainingError(f"{source} is not for {name}: {error}") from error
