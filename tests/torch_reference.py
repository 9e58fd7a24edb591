"""The reference model in PyTorch, against which the model tests compare.

The backbone is ``efficientnet-pytorch`` 0.7.0 itself; the pooling heads and the wrapper follow the description of the
reference (PSLA, section III-B). The names of the weights are those of the released checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from efficientnet_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn import functional

FEATURES = (1280, 1280, 1408, 1536, 1792, 2048, 2304, 2560)
"""Number of channels of the last convolution of B0 to B7."""
FLOOR = 1e-7
"""Attention values and, in the loss, probabilities are clamped to [FLOOR, 1 - FLOOR]."""


def pointwise(channels: int, num_classes: int) -> nn.Conv2d:
    """Returns the 1x1 convolution that maps features to a logit per class and output frame."""
    return nn.Conv2d(channels, num_classes, kernel_size=1)


def attended(features: Tensor, attention: nn.Conv2d, classifier: nn.Conv2d) -> Tensor:
    """Applies an attention head: ``(batch, channels, frames, 1)`` to probabilities ``(batch, classes)``."""
    weights = torch.sigmoid(attention(features)).squeeze(3).clamp(FLOOR, 1 - FLOOR)
    scores = torch.sigmoid(classifier(features)).squeeze(3)
    return (weights * scores).sum(dim=2) / weights.sum(dim=2)


class MeanPooling(nn.Module):
    """Mean of the probabilities over time, without attention."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.cla = pointwise(channels, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        return torch.sigmoid(self.cla(features)).squeeze(3).mean(dim=2)


class Attention(nn.Module):
    """Single attention head."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.att = pointwise(channels, num_classes)
        self.cla = pointwise(channels, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        return attended(features, self.att, self.cla)


class MHeadAttention(nn.Module):
    """Several attention heads, summed with learnable weights that start at 1/heads."""

    def __init__(self, channels: int, num_classes: int, heads: int) -> None:
        super().__init__()
        self.att = nn.ModuleList([pointwise(channels, num_classes) for _ in range(heads)])
        self.cla = nn.ModuleList([pointwise(channels, num_classes) for _ in range(heads)])
        self.head_weight = nn.Parameter(torch.full((heads,), 1 / heads))

    def forward(self, features: Tensor) -> Tensor:
        heads = [attended(features, att, cla) for att, cla in zip(self.att, self.cla, strict=True)]
        return torch.einsum("h,hbc->bc", self.head_weight, torch.stack(heads))


def build_pooling(channels: int, num_classes: int, heads: int) -> nn.Module:
    """Returns the pooling of the reference for a number of attention heads; 0 is mean pooling."""
    if heads == 0:
        return MeanPooling(channels, num_classes)
    return Attention(channels, num_classes) if heads == 1 else MHeadAttention(channels, num_classes, heads)


def use_static_paddings(effnet: EfficientNet, image_size: int) -> None:
    """Replaces every padding by that of ``efficientnet-pytorch`` 0.7.1.

    The total padding gives ``ceil(size / stride)`` outputs for a square image of ``image_size``, and its smaller half
    comes first. The sizes of the layers follow from the strides, not from the actual input.
    """
    size = image_size
    depthwise = [block._depthwise_conv for block in effnet._blocks]
    for convolution in [effnet._conv_stem, *depthwise]:
        kernel, stride = convolution.kernel_size[0], convolution.stride[0]
        outputs = math.ceil(size / stride)
        total = max((outputs - 1) * stride + kernel - size, 0)
        before, after = total // 2, total - total // 2
        convolution.static_padding = nn.ZeroPad2d((before, after, before, after))
        size = outputs


class ReferenceTagger(nn.Module):
    """The reference's network: spectrograms ``(batch, frames, 128)`` to probabilities ``(batch, classes)``."""

    def __init__(
        self,
        variant: int = 2,
        num_classes: int = 527,
        heads: int = 4,
        padding: str = "symmetric",
        drop_connect: float = 0.2,
    ) -> None:
        super().__init__()
        name = f"efficientnet-b{variant}"
        self.effnet = EfficientNet.from_name(name, in_channels=1, drop_connect_rate=drop_connect)
        self.effnet._fc = nn.Identity()
        if padding == "static":
            use_static_paddings(self.effnet, EfficientNet.get_image_size(name))
        self.attention = build_pooling(FEATURES[variant], num_classes, heads)

    def features(self, spectrograms: Tensor) -> Tensor:
        """Returns the backbone's output averaged over frequency, ``(batch, channels, output frames)``."""
        image = spectrograms.unsqueeze(1).transpose(2, 3)
        return self.effnet.extract_features(image).mean(dim=2)

    def forward(self, spectrograms: Tensor) -> Tensor:
        return self.attention(self.features(spectrograms).unsqueeze(3))


class Bottleneck(nn.Module):
    """Block of ResNet-50 with torchvision's names."""

    def __init__(self, channels: int, inner: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, 4 * inner, 1, bias=False), nn.BatchNorm2d(4 * inner)
        if stride != 1 or channels != 4 * inner:
            shortcut = nn.Conv2d(channels, 4 * inner, 1, stride, bias=False)
            self.downsample: nn.Module = nn.Sequential(shortcut, nn.BatchNorm2d(4 * inner))
        else:
            self.downsample = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        return torch.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class ResNet(nn.Module):
    """ResNet-50 without its classifier; ``channels`` is 1 for spectrograms and 3 for images."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        width = 64
        for index, (blocks, inner) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), 1):
            layers = []
            for block in range(blocks):
                layers.append(Bottleneck(width, inner, 2 if block == 0 and index > 1 else 1))
                width = 4 * inner
            setattr(self, f"layer{index}", nn.Sequential(*layers))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def convolution(channels: int, features: int, size: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels, features, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(features), nn.ReLU6())


class InvertedResidual(nn.Module):
    """Block of MobileNetV2 with torchvision's names."""

    def __init__(self, channels: int, features: int, stride: int, expand: int) -> None:
        super().__init__()
        inner = channels * expand
        layers: list[nn.Module] = [] if expand == 1 else [convolution(channels, inner)]
        layers += [convolution(inner, inner, 3, stride, inner)]
        layers += [nn.Conv2d(inner, features, 1, bias=False), nn.BatchNorm2d(features)]
        self.conv, self.residual = nn.Sequential(*layers), stride == 1 and channels == features

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNet(nn.Module):
    """MobileNetV2 with a linear layer as its classifier."""

    def __init__(self, num_classes: int, channels: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = [convolution(channels, 32, 3, 2)]
        width = 32
        table = (
            (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
        )  # fmt: skip
        for expand, features, blocks, stride in table:
            for block in range(blocks):
                layers.append(InvertedResidual(width, features, stride if block == 0 else 1, expand))
                width = features
        self.features = nn.Sequential(*layers, convolution(width, 1280))
        self.classifier = nn.Linear(1280, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean(dim=(2, 3)))


class ResNetAttention(nn.Module):
    """The reference's ResNet-50, with a single attention head."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.model = ResNet()
        self.attention = Attention(2048, num_classes)

    def forward(self, spectrograms: Tensor) -> Tensor:
        image = spectrograms.unsqueeze(1).transpose(2, 3)
        return self.attention(self.model(image).mean(dim=2).unsqueeze(3))


class MBNet(nn.Module):
    """The reference's MobileNetV2."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.model = MobileNet(num_classes)

    def forward(self, spectrograms: Tensor) -> Tensor:
        return torch.sigmoid(self.model(spectrograms.unsqueeze(1).transpose(2, 3)))


def make_spectrograms(batch: int, frames: int, seed: int, mels: int = 128) -> np.ndarray:
    """Returns patchy noise, float32 ``(batch, frames, mels)``, that varies between clips and along both axes."""
    rng = np.random.default_rng(seed)
    patches = rng.standard_normal((batch, math.ceil(frames / 16), math.ceil(mels / 16)))
    coarse = np.kron(patches, np.ones((1, 16, 16)))[:, :frames, :mels]
    return (coarse + 0.5 * rng.standard_normal((batch, frames, mels))).astype(np.float32)


def measure_statistics(norm: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
    """Forward hook that sets the running statistics to those of the input with random perturbations."""
    noise = torch.randn(2, norm.num_features)
    variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3))
    norm.running_mean = mean + 0.1 * variance.sqrt() * noise[0]
    norm.running_var = variance * torch.exp(0.2 * noise[1])


def randomise(model: nn.Module, gains: tuple[float, float] = (0.5, 1.5)) -> None:
    """Draws weights and batch statistics with which the output depends on every part of the model.

    With PyTorch's initial values, activations vanish over the depth, and the output hardly depends on the head. Here
    the running statistics of each layer are measured on a batch, so that activations keep their scale, and perturbed.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, *gains)
        nn.init.normal_(norm.bias, 0, 0.3)
    head = model.attention if hasattr(model, "attention") else model.model.classifier
    for name, parameter in head.named_parameters():
        if name == "head_weight":
            nn.init.uniform_(parameter, 0.1, 0.5)
        else:
            nn.init.normal_(parameter, 0, 2 / math.sqrt(norms[-1].num_features))
    hooks = [norm.register_forward_pre_hook(measure_statistics) for norm in norms]
    evaluate(model, make_spectrograms(batch=2, frames=333, seed=99))
    for hook in hooks:
        hook.remove()


def make_reference(
    variant: int = 0,
    num_classes: int = 20,
    heads: int = 4,
    padding: str = "symmetric",
    drop_connect: float = 0.0,
) -> ReferenceTagger:
    """Returns an EfficientNet model with weights of :func:`randomise`, in evaluation mode; the same in every call."""
    with torch.random.fork_rng():
        torch.manual_seed(variant)
        model = ReferenceTagger(variant, num_classes, heads, padding, drop_connect)
        randomise(model)
    return model


def make_network(name: str, num_classes: int = 20) -> nn.Module:
    """Returns ``resnet50`` or ``mobilenet-v2``, with weights and mode as in :func:`make_reference`."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = ResNetAttention(num_classes) if name == "resnet50" else MBNet(num_classes)
        # With gains around one, 16 residual branches add up until PyTorch's own rounding error exceeds 1e-5.
        randomise(model, gains=(0.2, 0.8))
    return model.eval()


def to_numpy(state_dict: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Returns a copy of a state dict as NumPy arrays."""
    return {name: tensor.detach().numpy().copy() for name, tensor in state_dict.items()}


def evaluate(model: nn.Module, spectrograms: np.ndarray) -> np.ndarray:
    """Returns the model's probabilities in evaluation mode."""
    with torch.no_grad():
        return model.eval()(torch.from_numpy(np.array(spectrograms))).numpy()


def train(model: nn.Module, batches: list[tuple[np.ndarray, np.ndarray]]) -> list[float]:
    """Takes one step of the reference's optimizer per batch of ``(spectrograms, labels)``; returns the losses.

    The learning rate is 1e-3.
    """
    adam = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.95, 0.999), eps=1e-8, weight_decay=5e-7)
    model.train()
    losses = []
    for spectrograms, labels in batches:
        probabilities = model(torch.from_numpy(spectrograms)).clamp(FLOOR, 1 - FLOOR)
        loss = functional.binary_cross_entropy(probabilities, torch.from_numpy(labels))
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    return losses
