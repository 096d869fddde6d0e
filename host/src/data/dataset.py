"""Writes the items of data sets in a Python file as arrays that the host reads.

Called by the host as `python -c SCRIPT FOLDER FILE ROLE=NAME...`, in a process of its own. FOLDER gets
ROLE-images.npy and ROLE-labels.npy for each data set, a file `state` that says what is being done and
changes whenever there is progress, and at the end `result.json`: what was found, or an error.
"""

import inspect
import json
import os
import random
import sys
import threading
import time
import traceback

FOLDER, FILE, *WANTED = sys.argv[1:]
PARENT = os.getppid()
HEADER = 128
# Items that are read twice.
CHECKED = 8
# struct's codes of numbers, and NumPy's.
CODES = {"?": "|b1", "B": "|u1", "b": "|i1", "e": "f2", "f": "f4", "d": "f8"}
WHOLE = "hHiIlLqQnN"


class Refusal(Exception):
    """A mistake in the data set: what happened, and what to do."""

    def __init__(self, message, fix=None):
        super().__init__(message)
        self.fix = fix


def end_with_parent():
    """A host that was killed leaves no process behind."""
    while os.getppid() == PARENT:
        time.sleep(0.5)
    os._exit(1)


def state(text):
    path = os.path.join(FOLDER, "state")
    with open(path + "-new", "w", encoding="utf-8", errors="replace") as file:
        file.write(text)
    os.replace(path + "-new", path)


def result(**values):
    path = os.path.join(FOLDER, "result.json")
    with open(path + "-new", "w", encoding="utf-8", errors="replace") as file:
        json.dump(values, file)
    os.replace(path + "-new", path)


def kind(value):
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")


def numbers(value):
    """The type (as NumPy writes it), the shape and the bytes of a tensor or an array; None for others."""
    if hasattr(value, "detach") and hasattr(value, "cpu"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            value = value.float()
        value = value.resolve_conj().resolve_neg().contiguous().numpy()
    try:
        view = memoryview(value)
    except TypeError:
        return None
    order = {"<": "<", ">": ">", "=": "", "@": "", "!": ">"}.get(view.format[:1])
    code = view.format if order is None else view.format[1:]
    order = order or ("<" if sys.byteorder == "little" else ">")
    if code in WHOLE:
        code = f"{'u' if code.isupper() else 'i'}{view.itemsize}"
    elif code in CODES:
        code = CODES[code]
    else:
        raise Refusal(f"has values of type {view.format!r}: expected uint8, or floats from 0 to 1")
    return (code if code[0] == "|" else order + code), list(view.shape), view.tobytes()


def picture(image):
    """The type, the shape, the bytes and the layout of an image."""
    if hasattr(image, "getbands") and hasattr(image, "tobytes"):
        bands = image.getbands()
        if image.mode not in ("L", "RGB"):
            raise Refusal(
                f"is a PIL image of mode {image.mode}: expected L or RGB", "convert it: image.convert('RGB')"
            )
        width, height = image.size
        return "|u1", [height, width, len(bands)], image.tobytes(), "NHWC"
    found = numbers(image)
    if found is None:
        raise Refusal(f"is {kind(image)}: expected a tensor, an array or a PIL image")
    descr, shape, data = found
    if len(shape) not in (2, 3):
        raise Refusal(f"has the shape {tuple(shape)}: expected (channels, height, width) or (height, width)")
    first = "NCHW" if hasattr(image, "detach") else None
    return descr, shape, data, "NHW" if len(shape) == 2 else first


def number(label):
    """A label as a whole number."""
    if isinstance(label, (str, bytes)):
        raise Refusal(
            f"is the text {label!r:.60}: expected a whole number",
            "number the classes: classes.index(label), for example in a target_transform",
        )
    try:
        return label.__index__()
    except (AttributeError, TypeError, ValueError):
        pass
    shape = getattr(label, "shape", None)
    size = len(label) if shape is None and hasattr(label, "__len__") else None
    if (shape is not None and len(shape) > 0) or size is not None:
        of = tuple(shape) if shape is not None else (size,)
        raise Refusal(
            f"has the shape {tuple(of)}, as a one-hot label does: expected a whole number",
            "take the number of the class: label.argmax()",
        )
    raise Refusal(f"is {kind(label)} {label!r:.60}: expected a whole number", "convert it: int(label)")


def pair(item, place):
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        of = f" of {len(item)}" if isinstance(item, (tuple, list)) else ""
        raise Refusal(f"{place} is a {kind(item)}{of}: expected a pair (image, label)")
    try:
        found = picture(item[0])
    except Refusal as refusal:
        raise Refusal(f"the image of {place} {refusal}", refusal.fix) from None
    try:
        return found, number(item[1])
    except Refusal as refusal:
        raise Refusal(f"the label of {place} {refusal}", refusal.fix) from None


def make(module, name):
    """The data set of this name: an object, or what a function or class without arguments gives."""
    value = getattr(module, name)
    is_data = not isinstance(value, type) and (hasattr(value, "__getitem__") or hasattr(value, "__iter__"))
    if not is_data and callable(value):
        state(f"calls {name}()")
        value = value()
    if not hasattr(value, "__getitem__") and not hasattr(value, "__iter__"):
        raise Refusal(
            f"{name} is {kind(value)}: expected a torch.utils.data.Dataset, or a function that returns one"
        )
    return value


def is_other(value):
    """Whether a value is plainly no data set, though it has the name of one: a function that trains."""
    if hasattr(value, "__getitem__") and not isinstance(value, type):
        return False
    if not callable(value):
        return not hasattr(value, "__iter__")
    try:
        inspect.signature(value).bind()
    except (TypeError, ValueError):
        return True
    return False


def items(data, name):
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        count = len(data)
        step = max(1, count // CHECKED)
        for index in range(0, count, step):
            state(f"reads item {index} of {name} twice")
            place = f"item {index} of {name}"
            if pair(data[index], place) != pair(data[index], place):
                raise Refusal(
                    f"item {index} of {name} differs when it is read again: expected the same image and label",
                    "leave out random transforms; `host train` augments with --crop and --flip",
                )
        for index in range(count):
            yield data[index]
    else:
        yield from data


def write(path, descr, shape, data):
    """The header of a .npy file, always of the same length."""
    text = str({"descr": descr, "fortran_order": False, "shape": tuple(shape)})
    header = text.ljust(HEADER - 11).encode("latin1") + b"\n"
    with open(path, "r+b") as file:
        file.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data)


def convert(role, name, module):
    data = make(module, name)
    images, labels, first, told = os.path.join(FOLDER, f"{role}-images.npy"), [], None, 0
    with open(images, "wb") as file:
        file.write(bytes(HEADER))
        for index, item in enumerate(items(data, name)):
            (descr, shape, pixels, layout), label = pair(item, f"item {index} of {name}")
            if first is None:
                first = descr, shape, layout
            elif (descr, shape, layout) != first:
                raise Refusal(
                    f"item {index} of {name} is of shape {tuple(shape)} and type {descr}: expected "
                    f"{tuple(first[1])} and {first[0]}, as item 0 is",
                    "give all images one size and type: Resize and CenterCrop of torchvision",
                )
            if not 0 <= label + 2**63 < 2**64:
                raise Refusal(f"the label of item {index} of {name} is {label}: expected a class")
            file.write(pixels)
            labels.append(label)
            if time.monotonic() - told > 0.2:
                told = time.monotonic()
                state(f"has read {index + 1} items of {name}")
    if first is None:
        raise Refusal(f"{name} is empty: expected at least one item")
    descr, shape, layout = first
    write(images, descr, [len(labels), *shape], b"")
    path = os.path.join(FOLDER, f"{role}-labels.npy")
    open(path, "wb").close()
    write(path, "<i8", [len(labels)], b"".join(label.to_bytes(8, "little", signed=True) for label in labels))
    classes = getattr(data, "classes", None)
    is_named = isinstance(classes, (list, tuple)) and all(isinstance(name, str) for name in classes)
    return {"name": name, "layout": layout, "classes": list(classes) if is_named else []}


def where(error):
    """The places in the user's files and the last one, outermost first."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != "<string>"]
    frames = [frame for frame in frames if "importlib" not in frame.filename]
    inside = os.path.dirname(FILE)
    own = [frame for frame in frames if os.path.abspath(frame.filename).startswith(inside + os.sep)]
    shown = own[-3:] + (frames[-1:] if frames and frames[-1] not in own else [])
    lines = [f"{frame.filename}:{frame.lineno} in {frame.name}: {frame.line or ''}" for frame in shown]
    if isinstance(error, SyntaxError) and error.filename:
        lines.append(f"{error.filename}:{error.lineno}: {(error.text or '').strip()}")
    return lines


def seed():
    random.seed(0)
    for name in ("numpy.random", "torch"):
        if name in sys.modules:
            module = sys.modules[name]
            (module.manual_seed if name == "torch" else module.seed)(0)


def main():
    threading.Thread(target=end_with_parent, daemon=True).start()
    state(f"imports {os.path.basename(FILE)}")
    sys.path.insert(0, os.path.dirname(FILE))
    sys.argv = [FILE]
    seed()
    import importlib.util

    name = os.path.splitext(os.path.basename(FILE))[0]
    spec = importlib.util.spec_from_file_location(name, FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    doing = "does not import"
    try:
        spec.loader.exec_module(module)
        seed()
        wanted = dict(part.split("=", 1) for part in WANTED)
        names = sorted(name for name in vars(module) if not name.startswith("_"))
        found = {}
        for role, name in wanted.items():
            optional, name = name.startswith("?"), name.removeprefix("?")
            if hasattr(module, name) and not (optional and is_other(getattr(module, name))):
                doing = f"fails in {name}"
                found[role] = convert(role, name, module)
            elif not optional:
                raise Refusal(
                    f"there is no {name} in the file",
                    "define it, or name what the file has after a colon: --data FILE.py:NAME; it has "
                    + (", ".join(names[:20]) or "no names"),
                )
        result(found=found)
    except Refusal as refusal:
        result(error=str(refusal), fix=refusal.fix, where=[])
    except SystemExit as leaving:
        result(error=f"calls sys.exit({leaving.code!r:.60})", fix="let it go on", where=where(leaving))
    except BaseException as error:
        text = traceback.format_exception_only(type(error), error)[-1].strip().splitlines()
        result(error=f"{doing}: {text[0][:300] if text else kind(error)}", fix=None, where=where(error))
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of the user's do not hold the process.
    os._exit(0)


main()
