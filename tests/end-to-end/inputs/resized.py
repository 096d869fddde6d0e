"""Writes resized.bin: 50 images as torchvision's Resize and CenterCrop make them of images of Pillow;
and five JPEG files, resized-N.jpg, with what becomes of them in resized-jpeg.bin.

    .setup/python/bin/python tests/end-to-end/inputs/resized.py

host/src/data/images/resize.rs makes the same 50 images and compares its own result. Each image is
three planes of 12 x 12 bytes. Recorded with torchvision 0.28.0 and Pillow; see the versions below.
"""

import math
import pathlib
import sys

import PIL
import torchvision
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

SIDE = 12
SIZES = [(5, 7), (12, 12), (64, 48), (13, 100), (31, 30), (12, 40), (200, 9), (25, 12), (1, 3), (77, 78)]


def plane(number, channel, height, width):
    state, pixels = 1 + 3 * number + channel, bytearray()
    for row in range(height):
        for column in range(width):
            state = (state * 1_664_525 + 1_013_904_223) % 2**32
            noise = state >> 24
            smooth = (row * (3 + channel) + column * (5 + number % 7)) % 256
            stripes = 255 * ((row // 3 + column // 2) % 2)
            pixels.append([noise, smooth, stripes, (noise + smooth) // 2][number % 4])
    return Image.frombytes("L", (width, height), bytes(pixels))


transform = Compose([Resize(SIDE, InterpolationMode.BILINEAR, antialias=True), CenterCrop(SIDE)])
recorded = bytearray()
for number in range(50):
    more = number // 10 * (number % 3)
    height, width = (size + more for size in SIZES[number % 10])
    image = Image.merge("RGB", [plane(number, channel, height, width) for channel in range(3)])
    for band in transform(image).split():
        recorded += band.tobytes()
pathlib.Path(__file__).with_suffix(".bin").write_bytes(recorded)


def photograph(number, height, width):
    """Soft gradients, an edge and a little noise, as of a photograph."""
    state, pixels = number, bytearray()
    for row in range(height):
        for column in range(width):
            for channel in range(3):
                state = (state * 1_664_525 + 1_013_904_223) % 2**32
                wave = math.sin(row / (5 + number) + channel) + math.cos(column / (7 + number) - channel)
                edge = 40 if (row - height / 2) ** 2 + (column - width / 2) ** 2 < (height / 3) ** 2 else 0
                pixels.append(int(min(255, max(0, 110 + 40 * wave + edge + (state >> 24) / 16))))
    return Image.frombytes("RGB", (width, height), bytes(pixels))


recorded = bytearray()
for number, (height, width) in enumerate([(64, 48), (50, 80), (33, 33), (120, 90), (40, 41)]):
    path = pathlib.Path(__file__).with_name(f"resized-{number}.jpg")
    photograph(number, height, width).save(path, quality=90)
    for band in transform(Image.open(path).convert("RGB")).split():
        recorded += band.tobytes()
pathlib.Path(__file__).with_name("resized-jpeg.bin").write_bytes(recorded)
print(f"torchvision {torchvision.__version__}, Pillow {PIL.__version__}", file=sys.stderr)
