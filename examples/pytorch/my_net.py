"""A network of PyTorch, as it stands in many repositories."""

from torch import nn


class Net(nn.Module):
    """`task` has `channels`, `height`, `width` and `classes`; the other arguments are options."""

    def __init__(self, task, width=32, dropout=0.0):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(task.channels, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Dropout(dropout), nn.Linear(2 * width * 16, task.classes)
        )

    def forward(self, images):
        return self.classifier(self.features(images))
