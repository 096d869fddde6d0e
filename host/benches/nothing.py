"""A network that does nothing, to measure what it costs to call one in Python."""

import torch


class Nothing(torch.nn.Module):
    train_differs = False

    def __init__(self, task):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.zeros(1, task.classes))

    def forward(self, images):
        return self.logits.expand(len(images), -1)
