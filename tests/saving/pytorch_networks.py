"""Networks in PyTorch with the module names of the originals; what our import is compared with."""

import torch
import torch.nn.functional as F
from torch import nn


class WideBlock(nn.Module):
    def __init__(self, channels_in, channels, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(channels_in), nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(channels), nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.convShortcut = nn.Conv2d(channels_in, channels, 1, stride, bias=False) if channels_in != channels else None

    def forward(self, x):
        activated = F.relu(self.bn1(x))
        y = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        return y + (x if self.convShortcut is None else self.convShortcut(activated))


class Group(nn.Module):
    def __init__(self, count, channels_in, channels, stride):
        super().__init__()
        sizes = [(channels_in if i == 0 else channels, stride if i == 0 else 1) for i in range(count)]
        self.layer = nn.Sequential(*[WideBlock(size, channels, step) for size, step in sizes])

    def forward(self, x):
        return self.layer(x)


class WideResNet(nn.Module):
    def __init__(self, num_classes, widening=2, blocks=4):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.block1 = Group(blocks, 16, 16 * widening, 1)
        self.sub_block1 = Group(blocks, 16, 16 * widening, 1)
        self.block2 = Group(blocks, 16 * widening, 32 * widening, 2)
        self.block3 = Group(blocks, 32 * widening, 64 * widening, 2)
        self.bn1 = nn.BatchNorm2d(64 * widening)
        self.fc = nn.Linear(64 * widening, num_classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.block3(self.block2(self.block1(self.conv1(x))))))
        return self.fc(F.avg_pool2d(x, 8).flatten(1))


class Basic(nn.Module):
    def __init__(self, channels_in, channels, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = None
        if stride != 1 or channels_in != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ImageNetResNet(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        channels = 64
        for stage, width in enumerate((64, 128, 256, 512), start=1):
            blocks = [Basic(channels, width, 1 if stage == 1 else 2), Basic(width, width, 1)]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
            channels = width
        self.fc = nn.Linear(512, num_classes)

    def forward(self, x):
        mean, deviation = (
            torch.tensor(values).reshape(1, 3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        )
        x = F.relu(self.bn1(self.conv1((x - mean) / deviation)))
        x = F.max_pool2d(x, 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


class VGG16(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        features, channels = [], 3
        for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512):
            if width == 0:
                features.append(nn.MaxPool2d(2))
                continue
            features += [nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.features = nn.Sequential(*features)
        head = [nn.Linear(2048, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, num_classes)]
        self.classifier = nn.Sequential(*head)

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


def large_cnn(num_classes):
    convs, channels = [], 3
    for width, size, stride in ((32, 3, 1), (32, 4, 2), (64, 3, 1), (64, 4, 2)):
        convs += [nn.Conv2d(channels, width, size, stride, 1), nn.ReLU()]
        channels = width
    head = [nn.Linear(4096, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, num_classes)]
    return nn.Sequential(*convs, nn.Flatten(), *head)


NETWORKS = {
    "vgg16": VGG16,
    "wrn28_2": WideResNet,
    "resnet18_imagenet": ImageNetResNet,
    "large_cnn": large_cnn,
}
