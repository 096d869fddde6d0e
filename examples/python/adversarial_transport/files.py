"""Files with digests, as the host writes them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

Path_ = str | os.PathLike[str]

# The last key of an object: the SHA-256 of all bytes of the file before its value.
_DIGEST = re.compile(rb'"sha256":\s?"([0-9a-f]{64})"\s*\}\s*$')


class Damaged(ValueError):
    """A file whose contents are not those that the host wrote."""


def _objects(path: Path, parts: list[bytes]) -> list[dict[str, Any]]:
    """The JSON objects of a file, which these parts make up, compared with their digests."""
    digest, objects, sealed = hashlib.sha256(), [], 0
    for part in parts:
        found = _DIGEST.search(part)
        if found:
            before = found.start(1) - 1
            digest.update(part[:before])
            if digest.hexdigest() != found[1].decode():
                raise Damaged(f"{path} is damaged: its contents are not those that were written (SHA-256)")
            digest.update(part[before:])
            sealed += 1
        value = json.loads(part)
        if found:
            del value["sha256"]
        objects.append(value)
    if 0 < sealed < len(objects):
        raise Damaged(f"{path} is damaged: some of its lines have no digest")
    if objects and not sealed:
        warnings.warn(f"{path} has no digest: an older version wrote it", stacklevel=3)
    return objects


def read_json(path: Path) -> dict[str, Any]:
    """The object of a JSON file of the host.

    Raises:
        FileNotFoundError: if there is no such file.
        Damaged: if its digest is not that of its contents.
    """
    return _objects(path, [path.read_bytes()])[0]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines of the host; none if there is no such file.

    Raises:
        Damaged: if a digest is not that of the contents before it.
    """
    if not path.exists():
        return []
    return _objects(path, [line for line in path.read_bytes().splitlines(keepends=True) if line.strip()])


def read_tensors(path: Path, digest: str | None = None, size: int | None = None) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, on the CPU, compared with the digest and size if given.

    Raises:
        FileNotFoundError: if there is no such file.
        Damaged: if the file is another one.
    """
    found = path.stat().st_size
    if size is not None and found != size:
        raise Damaged(f"{path} is damaged: expected {size} bytes, got {found}")
    if digest is not None:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise Damaged(f"{path} is damaged: its contents are not those that were written (SHA-256)")
    return load_file(path)
