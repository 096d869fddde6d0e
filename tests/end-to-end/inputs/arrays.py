"""Writes files of other programs that the host's readers are tested with.

    .setup/python/bin/python tests/end-to-end/inputs/arrays.py

* numpy.npz: numpy.savez_compressed, with arrays in both byte orders and in column-major order
* svhn.mat: scipy.io.savemat, compressed, in the layout of SVHN
* cifar-python: pickle, in the layout of CIFAR-100's Python version (protocol 4)
"""

import pathlib
import pickle

import numpy as np
import scipy.io

here = pathlib.Path(__file__).parent
row, column, channel, image = np.indices((4, 5, 3, 6))
values = np.moveaxis(40 * image + 7 * row + 3 * column + 11 * channel, -1, 0)
np.savez_compressed(
    here / "numpy.npz",
    x_train=np.asfortranarray(values.astype(np.uint8)),
    y_train=np.array([0, 1, 2, 0, 1, 2], ">i4"),
    x_test=(values[:2] / 255).astype(">f4"),
    y_test=np.array([[2], [1]], np.int64),
)

row, column, channel, image = np.indices((32, 32, 3, 3))
images = (2 * row + 3 * column + 50 * channel + 7 * image).astype(np.uint8)
labels = np.array([[1], [10], [9]], np.uint8)
scipy.io.savemat(here / "svhn.mat", {"X": images, "y": labels}, do_compression=True)

planes = np.moveaxis(images, (3, 2), (0, 1)).reshape(3, -1)
batch = {"data": planes, "fine_labels": [0, 99, 7], "coarse_labels": [19, 0, 3], "filenames": ["a", "b", "c"]}
(here / "cifar-python").write_bytes(pickle.dumps(batch, protocol=4))
