"""ResNets, a wide one and VGG16 for 32x32 images in PyTorch, the peers of `train_step.py`."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the activated sum."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def resnet18(blocks: tuple[int, ...] = (2, 2, 2, 2)) -> nn.Module:
    """Returns ResNet-18 with the CIFAR stem."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    channels = 64
    for width, stride, count in zip((64, 128, 256, 512), (1, 2, 2, 2), blocks, strict=True):
        for block_stride in (stride, *[1] * (count - 1)):
            layers.append(BasicBlock(channels, width, block_stride))
            channels = width
    return nn.Sequential(*layers, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(512, 10))


def resnet34() -> nn.Module:
    """Returns ResNet-34 with the CIFAR stem."""
    return resnet18((3, 4, 6, 3))


class Largest(torch.autograd.Function):
    """1 for the entries of largest score, found by sorting; the gradient passes by."""

    @staticmethod
    def forward(ctx: Any, scores: torch.Tensor, k: float) -> torch.Tensor:
        """Returns the mask."""
        order = scores.flatten().sort().indices
        mask = torch.ones_like(scores)
        mask.flatten()[order[: int((1 - k) * scores.numel())]] = 0
        return mask

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Passes the gradient on."""
        return upstream[0], None


class SubnetConv(nn.Conv2d):
    """Convolution with random signs that are masked by scores in every forward pass."""

    k = 0.01

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.scores = nn.Parameter(0.02 * torch.rand_like(self.weight) - 0.01)
        self.weight.data = self.weight.data.sign()
        self.weight.requires_grad = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the convolution."""
        return self._conv_forward(x, self.weight * Largest.apply(self.scores.abs(), self.k), self.bias)


def of_signs(network: nn.Module, fractions: dict[int, float]) -> nn.Module:
    """Turns every convolution into `SubnetConv`, the classifier too, batch norm to one without scale and shift."""
    for name, child in list(network.named_children()):
        new: nn.Module = child
        if isinstance(child, nn.Conv2d):
            new = SubnetConv(
                child.in_channels, child.out_channels, child.kernel_size, child.stride, child.padding, bias=False
            )
            new.k = fractions[new.weight.numel()]
        elif isinstance(child, nn.BatchNorm2d):
            new = nn.BatchNorm2d(child.num_features, affine=False)
        elif isinstance(child, nn.Flatten):
            new = nn.Identity()
        elif isinstance(child, nn.Linear):
            conv = SubnetConv(child.in_features, child.out_features, 1, bias=False)
            conv.k = fractions[conv.weight.numel()]
            new = nn.Sequential(conv, nn.BatchNorm2d(child.out_features, affine=False), nn.Flatten())
        else:
            of_signs(child, fractions)
        setattr(network, name, new)
    return network


def vgg16() -> nn.Module:
    """Returns VGG16 with batch norm and two hidden dense layers of 256."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512):
        if width == 0:
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    head = [nn.Linear(2048, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)]
    return nn.Sequential(*layers, nn.Flatten(), *head)


class PreactivatedBlock(nn.Module):
    """Batch norm and ReLU before each of two 3x3 convolutions, and a shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.shortcut: nn.Module | None = None
        if channels_in != channels:
            self.shortcut = nn.Conv2d(channels_in, channels, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the sum."""
        y = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(y)
        return self.conv2(F.relu(self.bn2(self.conv1(y)))) + shortcut


def wrn28_4() -> nn.Module:
    """Returns WRN-28-4."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False)]
    channels = 16
    for width, stride in ((64, 1), (128, 2), (256, 2)):
        for block_stride in (stride, 1, 1, 1):
            layers.append(PreactivatedBlock(channels, width, block_stride))
            channels = width
    return nn.Sequential(*layers, nn.BatchNorm2d(256), nn.ReLU(), nn.AvgPool2d(8), nn.Flatten(), nn.Linear(256, 10))


NETWORKS = {"resnet18": resnet18, "resnet34": resnet34, "vgg16": vgg16, "wrn28_4": wrn28_4}
