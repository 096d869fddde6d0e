"""Writes the TorchScript files of the tests: small networks for images of 1x8x8 and 3 classes, and
one for each mistake that the plugin names.

Run with the Python of a full torch, from any folder: python plugins/torchscript/tests/fixtures.py
Expected logits for the tests are printed.
"""

import warnings
from pathlib import Path

import torch
from torch import nn

HERE = Path(__file__).parent / "fixtures"
warnings.filterwarnings("ignore")


class Net(nn.Module):
    """Convolution, batch normalisation, dropout and a linear layer."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(4)
        )
        self.dropout = nn.Dropout(0.5)
        self.output = nn.Linear(16, 3)

    def forward(self, images):
        return self.output(self.dropout(self.features(images).flatten(1)))


class Small(nn.Module):
    """One linear layer, with something done to its logits."""

    def __init__(self):
        super().__init__()
        self.output = nn.Linear(64, 3)

    def forward(self, images):
        return self.output(images.flatten(1))


class OfOneBatch(Small):
    def forward(self, images):
        return self.output(images.reshape(2, 64))


class OnGpu(Small):
    def forward(self, images):
        return self.output(images.flatten(1)) + torch.zeros([3], device="cuda:0")


class Probabilities(Small):
    def forward(self, images):
        return self.output(images.flatten(1)).softmax(1)


class Saturated(Small):
    """Probabilities of which some are zero in f32."""

    def forward(self, images):
        return (self.output(images.flatten(1)) * 1000.0).softmax(1)


class Pair(Small):
    def forward(self, images):
        logits = self.output(images.flatten(1))
        return logits, images.mean()


class Named(Small):
    def forward(self, images):
        return {"logits": self.output(images.flatten(1))}


class InDouble(Small):
    def forward(self, images):
        return self.output(images.flatten(1)).double()


class WithoutGradient(Small):
    def forward(self, images):
        return self.output(images.detach().round().flatten(1))


class Detached(Small):
    def forward(self, images):
        return self.output(images.flatten(1)).detach()


class Counting(Small):
    """Keeps a number outside of its parameters and buffers."""

    def __init__(self):
        super().__init__()
        self.calls: int = 0

    def forward(self, images):
        self.calls += 1
        return self.output(images.flatten(1))


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(64, 64, bias=False)
        self.second = nn.Linear(64, 64, bias=False)
        self.second.weight = self.first.weight
        self.output = nn.Linear(64, 3)

    def forward(self, images):
        return self.output(self.second(self.first(images.flatten(1)).relu()))


class NoWeights(nn.Module):
    def forward(self, images):
        return images.flatten(1)[:, :3]


def images(count):
    """The images on which the plugin tries a network."""
    return torch.arange(count * 64).sin().reshape(count, 1, 8, 8) * 0.5 + 0.5


def save(name, module):
    """Without the debugging records, which name the files of the machine that wrote them."""
    path = str(HERE / name)
    module.save(path)
    reader = torch._C.PyTorchFileReader(path)
    records = {name: reader.get_record(name) for name in reader.get_all_records()}
    del reader
    own = ("version", "byteorder", ".data/serialization_id")  # The writer makes its own.
    writer = torch._C.PyTorchFileWriter(path)
    for name, record in records.items():
        if name not in own and not name.endswith(".debug_pkl"):
            writer.write_record(name, record, len(record))
    writer.write_end_of_file()


def main():
    torch.manual_seed(0)
    HERE.mkdir(exist_ok=True)
    net = Net()
    net.train()
    for _ in range(20):  # Statistics that are not the initial ones.
        net(torch.rand(32, 1, 8, 8))
    net.eval()
    save("scripted.pt", torch.jit.script(net))
    save("traced.pt", torch.jit.trace(net, images(2)))
    print("logits of scripted.pt and traced.pt:", net(images(2)).tolist())
    save("frozen.pt", torch.jit.freeze(torch.jit.script(net)))
    save("double.pt", torch.jit.script(Net().double().eval()))
    still = Net().eval()
    for parameter in still.parameters():
        parameter.requires_grad_(False)
    save("not-trainable.pt", torch.jit.script(still))
    dropout = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 3)).train()
    save("traced-dropout.pt", torch.jit.trace(dropout, images(2), check_trace=False))
    norm = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 3)).train()
    save("traced-norm.pt", torch.jit.trace(norm, images(2), check_trace=False))
    for name, kind in [
        ("small", Small),
        ("one-batch", OfOneBatch),
        ("on-gpu", OnGpu),
        ("probabilities", Probabilities),
        ("saturated", Saturated),
        ("tuple", Pair),
        ("dictionary", Named),
        ("double-logits", InDouble),
        ("detached-images", WithoutGradient),
        ("detached", Detached),
        ("counting", Counting),
        ("tied", Tied),
        ("no-weights", NoWeights),
    ]:
        save(f"{name}.pt", torch.jit.script(kind().eval()))
    torch.save(Small().state_dict(), HERE / "weights.pt")
    torch.save(Small().state_dict(), HERE / "old-weights.pt", _use_new_zipfile_serialization=False)
    exported = torch.export.export(Small().eval(), (images(2),))
    for node in exported.graph.nodes:
        node.meta.pop("stack_trace", None)
    torch.export.save(exported, HERE / "exported.pt2")
    for path in sorted(HERE.iterdir()):
        print(f"{path.stat().st_size:7} {path.name}")


if __name__ == "__main__":
    main()
