"""A Dataset of PyTorch: images of bars, lying or standing, in noise."""

import torch
from torch.utils.data import Dataset


class Bars(Dataset):
    def __init__(self, count, seed):
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.rand(count, 1, 16, 16, generator=generator) * 0.2
        self.labels = torch.randint(2, (count,), generator=generator)
        places = torch.randint(16, (count,), generator=generator).tolist()
        for image, label, place in zip(self.images, self.labels, places):
            bar = image[0, place] if label == 0 else image[0, :, place]
            bar += 0.7

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.images[index], self.labels[index]


train = Bars(400, seed=0)
test = Bars(100, seed=1)
