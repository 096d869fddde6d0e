"""Writes the files of this folder with PyTorch (2.13), for the tests of host/src/torch/weights.rs."""

import collections
import io
import os
import pickle
import zipfile

import numpy
import torch
from safetensors.torch import save_file

folder = os.path.dirname(os.path.abspath(__file__))


def save(value, name, **options):
    torch.save(value, os.path.join(folder, name), **options)


floats = ["float32", "float64", "float16", "bfloat16"]
floats += ["float8_e5m2", "float8_e4m3fn", "float8_e5m2fnuz", "float8_e4m3fnuz"]
dtypes = {name: torch.tensor([1.5, -2.0]).to(getattr(torch, name)) for name in floats}
dtypes |= {name: torch.tensor([1, -2], dtype=getattr(torch, name)) for name in ["int8", "int16", "int32", "int64"]}
dtypes |= {"uint8": torch.tensor([1, 255], dtype=torch.uint8), "bool": torch.tensor([True, False])}
dtypes |= {name: torch.tensor([1 + 2j, -1j], dtype=getattr(torch, name)) for name in ["complex32", "complex64", "complex128"]}
save(dtypes, "dtypes.pt")

matrix = torch.arange(6.0).reshape(2, 3)
save(
    collections.OrderedDict(
        turned=matrix.T,
        part=matrix.view(-1)[4:],
        none=torch.zeros(0, 3),
        one=torch.tensor(0.5),
        expanded=torch.tensor([7.0]).expand(4),
        parameter=torch.nn.Parameter(torch.tensor([1.0, 2.0])),
    ),
    "views.pt",
)

torch.manual_seed(0)
linear = torch.nn.Linear(3, 2)
state = linear.state_dict()
save({"epoch": 3, "state_dict": state, "optimizer_states": [{"lr": 0.1}]}, "lightning.pt")
save({"model": {"net": state, "epoch": 1}}, "nested.pt")
save({f"_orig_mod.module.{name}": tensor for name, tensor in state.items()}, "parallel.pt")
save({"weight": state["weight"], "epoch": 3, "name": "mine"}, "mixed.pt")
save_file(state, os.path.join(folder, "weights.safetensors"))

save(state, "old.pt", _use_new_zipfile_serialization=False)
save(linear, "module.pt")
save({"model": linear, "epoch": 1}, "module-inside.pt")
torch.jit.script(linear).save(os.path.join(folder, "scripted.pt"))
numpy.savez(os.path.join(folder, "arrays.npz"), weight=state["weight"].numpy())
save({"weight": state["weight"].to_sparse()}, "sparse.pt")
save({"weight": torch.tensor([1], dtype=torch.uint16)}, "unsigned.pt")
save(state["weight"], "one-tensor.pt")
save({"epoch": 3, "state": {}}, "optimizer.pt")
with open(os.path.join(folder, "plain.pickle"), "wb") as file:
    pickle.dump({"weight": [1.0]}, file)


class Hostile:
    def __reduce__(self):
        return os.system, ("touch /tmp/executed-by-a-pickle",)


save({"weight": Hostile(), "bias": Hostile()}, "hostile.pt")

# A file as a machine of the other byte order writes it.
buffer = io.BytesIO()
torch.save({"x": torch.tensor([1.5, -2.0])}, buffer)
with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(os.path.join(folder, "big-endian.pt"), "w") as target:
    for name in source.namelist():
        contents = source.read(name)
        if name.endswith("/byteorder"):
            contents = b"big"
        if name.endswith("/data/0"):
            contents = numpy.frombuffer(contents, "<f4").astype(">f4").tobytes()
        target.writestr(name, contents)
