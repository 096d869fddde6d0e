"""The Python side of python.so: loads a class from a file, and calls it for the plugin.

The plugin runs this text once, in a module with `address`, the place of a `Start`. It calls `dispatch` for
everything afterwards. A call has an object (a number), a text, and tensors; its result goes back
through the functions of `Start`.
"""

import ctypes
import importlib.util
import inspect
import json
import os
import sys
import threading
import traceback
import weakref

# Standard output belongs to the host.
sys.stdout = sys.stderr
# Nothing is written beside the user's files.
sys.dont_write_bytecode = True
# A program that embeds Python has no arguments; some libraries read them.
if not hasattr(sys, "argv") or not sys.argv:
    sys.argv = [""]

import torch

POINTERS = ctypes.POINTER(ctypes.c_void_p)
DISPATCH = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_char_p, POINTERS, ctypes.c_size_t, ctypes.c_void_p
)


class Start(ctypes.Structure):
    """What the plugin gives, and where it finds `dispatch`. The order is that of the plugin."""

    _fields_ = [
        ("give", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)),
        ("answer", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t)),
        ("fail", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t)),
        (
            "ask",
            ctypes.CFUNCTYPE(
                ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, POINTERS, ctypes.c_size_t,
                POINTERS
            ),
        ),
        ("forget", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)),
        ("dispatch", DISPATCH),
    ]


start = Start.from_address(address)

# A new Python tensor for the `at::Tensor` at an address: its autograd graph, its memory.
wrap = ctypes.PyDLL(os.path.join(os.path.dirname(torch.__file__), "lib", "libtorch_python.so"))[
    "_Z16THPVariable_WrapRKN2at10TensorBaseE"
]
wrap.restype, wrap.argtypes = ctypes.py_object, [ctypes.c_void_p]


class Refused(Exception):
    """An error whose message is complete."""


# ------------------------------------------------------------------ what classes of users are given


class Threat:
    """The threat model: `norm` ("linf", "l2" or "l1"), `epsilon`, `domain` (low, high). The methods are
    those of `ThreatModel` in plugin-api, computed there; they exist during a step or an attack."""

    def __init__(self, norm, epsilon, domain, call=None):
        self.norm, self.epsilon, self.domain, self._call = norm, epsilon, tuple(domain), call

    def project(self, candidate, natural):
        """The nearest allowed point: onto the ball around `natural`, then onto the domain."""
        return ask(self._call, PROJECT, [candidate, natural])

    def random_start(self, natural):
        """A uniform draw from the ball around `natural`, cut to the domain."""
        return ask(self._call, RANDOM_START, [natural])

    def steepest_ascent(self, gradient):
        """The direction of unit length along which the loss rises fastest: the sign for linf."""
        return ask(self._call, STEEPEST_ASCENT, [gradient])

    def distance(self, one, other):
        """The distance of each row of `one` from the same row of `other`, [N]."""
        return ask(self._call, DISTANCE, [one, other])

    def contains(self, candidate, natural):
        """Whether each row of `candidate` lies in ball and domain, [N]."""
        return ask(self._call, CONTAINS, [candidate, natural])


class Task:
    """The task of a model: `channels`, `height`, `width`, `classes`."""

    def __init__(self, channels, height, width, classes):
        self.channels, self.height, self.width, self.classes = channels, height, width, classes


class Random:
    """The host's random numbers, in the shape, dtype and device of `like` ([N, ...])."""

    def __init__(self, call):
        self._call = call

    def normal(self, like):
        """Standard normal numbers."""
        return ask(self._call, NORMAL, [like])

    def uniform(self, like):
        """Numbers uniform on [0, 1)."""
        return ask(self._call, UNIFORM, [like])


class Step:
    """The inputs of a step; see `Step` of plugin-api."""

    def __init__(self, call, tensors, values):
        self.natural, self.labels, self.particles, self.loss, self.gradient, self.points = tensors[:6]
        self.state = tensors[6:]
        self.particles_per_point = values["particles_per_point"]
        self.number, self.of = values["number"], values["of"]
        self.threat, self.random = Threat(**values["threat"], call=call), Random(call)


class Call:
    """A call of the plugin, which ends: what was kept from it cannot be used afterwards."""

    def __init__(self, address):
        self.address, self.thread = address, threading.get_ident()


class Evaluation:
    """Differentiable logits of a batch of images."""

    def __init__(self, call, tracked, number):
        self._call, self._tracked, self._number = call, tracked, number
        self.logits = tracked.detach()

    def gradient(self, loss):
        """The value ([M]) and the input gradient ([M, C, H, W]) of `loss(logits)`, a loss per row."""
        with torch.enable_grad():
            value = loss(self._tracked)
        gradient = ask(self._call, GRADIENT, [tensor(value, "the loss")], self._number)
        return value.detach(), gradient

    def __del__(self):
        # The graph of a batch is large: the plugin keeps it no longer than this object.
        if self._call.address is not None:
            start.forget(self._call.address, self._number)


class Victim:
    """The model under attack. Each call is one pass per row, which the host counts."""

    def __init__(self, call):
        self._call, self._evaluations = call, 0

    def logits(self, images):
        """Logits [M, classes] without a graph."""
        return ask(self._call, LOGITS, [images])

    def forward(self, images):
        """An `Evaluation` of images [M, C, H, W]."""
        tracked = ask(self._call, TRACKED, [images])
        self._evaluations += 1
        return Evaluation(self._call, tracked, self._evaluations - 1)


class Target:
    """The inputs of an attack; see `Target` of plugin-api."""

    def __init__(self, call, tensors, values):
        self.natural, self.labels, self.points = tensors
        self.classes, self.threat = values["classes"], Threat(**values["threat"], call=call)
        self.victim, self.random = Victim(call), Random(call)


# What can be asked for, in the order of the plugin: random numbers; logits, logits with a graph, and
# the gradient of a loss that was computed from the latter; what the threat model computes.
(
    NORMAL, UNIFORM, LOGITS, TRACKED, GRADIENT, PROJECT, RANDOM_START, STEEPEST_ASCENT, DISTANCE, CONTAINS
) = range(10)


def ask(call, what, tensors, number=0):
    """The tensor that the plugin or the host answers with."""
    if call is None or call.address is None:
        raise Refused("what the host gives to a step or an attack can be used until it returns")
    if call.thread != threading.get_ident():
        raise Refused("the host was asked from another thread than that of the call")
    given = (ctypes.c_void_p * len(tensors))(*(tensor(one, "the argument")._cdata for one in tensors))
    answer = (ctypes.c_void_p * 1)()
    why = start.ask(call.address, what, number, given, len(tensors), answer)
    if why is not None:
        raise Refused(why.decode(errors="replace"))
    return wrap(answer[0])


def tensor(value, what):
    if not isinstance(value, torch.Tensor):
        kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
        raise Refused(f"{what} is a {kind}; expected a torch.Tensor")
    return value


def give(call, value, what):
    """Gives the plugin a reference to a tensor, which must live until the plugin has taken it."""
    start.give(call.address, tensor(value, what)._cdata)


# ------------------------------------------------------------------------------- loading a class

# Loaded files by path, the objects that were made by number, the folders of the files.
modules, objects, folders = {}, {}, set()

# The tensors of a module that the host has, with their places in the module.
held = weakref.WeakKeyDictionary()


def load(path):
    if path in modules:
        return modules[path]
    folder, file = os.path.split(path)
    folders.add(folder)
    name = os.path.splitext(file)[0]
    while name in sys.modules:
        name += "_"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise Refused(f"{file} is no Python file; expected a name that ends with .py")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    modules[path] = module
    return module


def is_model(one):
    return issubclass(one, torch.nn.Module)


# What a class of each kind has.
KINDS = {
    "model": ("a torch.nn.Module", is_model),
    "sampler": ("a class with a method `step`", lambda one: not is_model(one) and hasattr(one, "step")),
    "attack": ("a class with a method `run`", lambda one: not is_model(one) and hasattr(one, "run")),
}


def chosen(kind, module, path, name):
    """The class (or function that makes an object) that the options name, or the only one."""
    file = os.path.basename(path)
    expected, fits = KINDS[kind]
    own = [one for one in vars(module).values() if inspect.isclass(one) and one.__module__ == module.__name__]
    fitting = [one for one in own if fits(one)]
    listed = ", ".join(one.__name__ for one in fitting) or "none"
    if name is None:
        if len(fitting) != 1:
            found = f"{len(fitting)} classes that are {expected}" if fitting else f"no class that is {expected}"
            fix = f"; choose one with class=NAME among: {listed}" if fitting else ""
            raise Refused(f"{file} has {found}; expected one{fix}")
        return fitting[0]
    one = getattr(module, name, None)
    if one is None:
        raise Refused(f"{file} has no class `{name}`; classes that are {expected}: {listed}")
    if not callable(one) or inspect.isclass(one) and not fits(one):
        raise Refused(f"`{name}` of {file} is not {expected}")
    return one


def construct(one, task, options):
    """Calls a class with the options, and the task if it takes one."""
    parameters = inspect.signature(one).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    by_name = [
        name
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    known = [name for name in by_name if name != "task" or task is None]
    for option in options:
        if option not in known and not takes_any:
            expected = f"expected one of: {', '.join(sorted(known))}" if known else "it takes none"
            raise Refused(f"unknown option `{option}` of {one.__name__}; {expected}")
    missing = [name for name in known if parameters[name].default is inspect.Parameter.empty and name not in options]
    if missing:
        raise Refused(f"{one.__name__} needs the option `{missing[0]}`: give {missing[0]}=VALUE")
    given = dict(options, task=task) if task is not None and "task" in by_name else options
    return one(**given)


DTYPES = {"Float": torch.float32, "Double": torch.float64}


def create(_, call, text, tensors):
    values = json.loads(text)
    kind, path = values["kind"], os.path.abspath(values["file"])
    file = os.path.basename(path)
    module = load(path)
    one = chosen(kind, module, path, values["class"])
    task = Task(**values["task"]) if kind == "model" else None
    value = construct(one, task, values["options"])
    if kind == "model":
        if not isinstance(value, torch.nn.Module):
            raise Refused(f"`{one.__name__}` of {file} returned a {type(value).__name__}; expected a torch.nn.Module")
        value = value.to(device=tensors[0].device, dtype=DTYPES[values["dtype"]])
        answer = {"state": state(value, file, call)}
        answer["train_differs"] = bool(getattr(value, "train_differs", True))
    else:
        answer = declared(value, kind)
    number = max(objects, default=0) + 1
    objects[number] = value
    reply(call, dict(answer, object=number))


def state(module, file, call):
    """Gives every parameter and every buffer of `state_dict`; returns names, and which train."""
    names, given = [], set()
    for name, value in module.state_dict(keep_vars=True).items():
        if not isinstance(value, torch.Tensor):
            raise Refused(f"`{name}` in the state_dict of {file} is a {type(value).__name__}; expected a tensor")
        if torch.nn.parameter.is_lazy(value):
            raise Refused(f"`{name}` of {file} has no shape yet; run the network once in __init__ to give it one")
        give(call, value, name)
        given.add(id(value))
        names.append([name, value.requires_grad])
    held[module] = [
        (place, key, value, name)
        for prefix, part in module.named_modules()
        for place in (part._parameters, part._buffers, part._modules)
        for key, value in place.items()
        for name in [f"{prefix}.{key}" if prefix else key]
        if value is not None and (place is part._modules or id(value) in given)
    ]
    return names


def check_held(module):
    """Refuses a tensor or a part of the module that was replaced: the host has the one before."""
    for place, key, value, name in held[module]:
        if place.get(key) is not value:
            is_tensor = isinstance(value, torch.Tensor)
            fix = f"write into it, as in self.{key}.copy_(...)" if is_tensor else "make it in __init__ only"
            raise Refused(f"`{name}` was replaced; the host trains and saves the one that was there: {fix}")


# Declarations of samplers and attacks, which are attributes or methods without arguments.
DECLARATIONS = {
    "sampler": (
        "start default_steps projection law state_tensors numbers figures visit_tensors uses_gradient "
        "judges_last_proposal judges_by_gradient ascends begins reach interacts"
    ).split(),
    "attack": ["query_budget"],
}


def declared(value, kind):
    found = {}
    for name in DECLARATIONS[kind]:
        if hasattr(value, name):
            stated = getattr(value, name)
            found[name] = stated() if callable(stated) else stated
    return found


# ------------------------------------------------------------------------------------ the calls


def forward(number, call, text, tensors):
    module, train = objects[number], text == b"train"
    if module.training != train:
        module.train(train)
    logits = module(tensors[0])
    check_held(module)
    give(call, logits, "its result")


def moved(number, call, text, tensors):
    values = json.loads(text)
    step = Step(call, tensors, values)
    result = getattr(objects[number], values["method"])(step)
    particles, state = result if isinstance(result, tuple) else (result, [])
    give(call, particles, "its result")
    for one in state:
        give(call, one, "a state that it returned")


def run(number, call, text, tensors):
    target = Target(call, tensors, json.loads(text))
    give(call, objects[number].run(target), "its result")


def supports(number, call, text, tensors):
    values = json.loads(text)
    check = getattr(objects[number], values["method"], None)
    if check is not None:
        argument = Threat(**values["threat"]) if "threat" in values else Task(**values["task"])
        if check(argument) is False:
            raise Refused(f"{values['method']} is false")


def drop(number, call, text, tensors):
    objects.pop(number, None)


def where(number, call, text, tensors):
    """Where another thread is in the user's files: for a call that does not end."""
    own = threading.get_ident()
    frames = [frame for thread, frame in sys._current_frames().items() if thread != own]
    found = [places(traceback.extract_stack(frame)) for frame in frames]
    reply(call, {"at": next(filter(None, found), "")})


# In the order of the plugin.
CALLS = [create, forward, moved, run, supports, drop, where]


def dispatch(what, number, text, pointers, count, call):
    seed, threads = torch.initial_seed(), threading.active_count()
    call = Call(call)
    try:
        tensors = [wrap(pointers[index]) for index in range(count)]
        CALLS[what](number, call, text, tensors)
        if torch.initial_seed() != seed:
            raise Refused("set torch's seed; expected the seed of the host, from which runs are reproducible")
        if threading.active_count() > threads and CALLS[what] is not where:
            names = ", ".join(one.name for one in threading.enumerate()[threads:])
            raise Refused(f"started a thread ({names}) that is still running; expected none")
        return 0
    except BaseException as error:
        text = message(error).encode(errors="replace")
        start.fail(call.address, text, len(text))
        return 1
    finally:
        call.address = None


def reply(call, value):
    text = json.dumps(value).encode()
    start.answer(call.address, text, len(text))


def message(error):
    """An error in one line: the frames of the user's files, the deepest one last, and what it says."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{os.path.basename(error.filename)}:{error.lineno}: {type(error).__name__}: {error.msg}"
    said = str(error).strip().splitlines()
    said = said[0] if said else ""
    if isinstance(error, SystemExit):
        said = f"it called sys.exit({said}); expected a class that leaves the process alone"
    elif not isinstance(error, Refused):
        said = f"{type(error).__name__}: {said}" if said else type(error).__name__
    at = places(traceback.extract_tb(error.__traceback__))
    return f"{at}: {said}" if at else said


def places(frames):
    """The frames in the users' folders: the outermost and the two innermost ones."""
    def is_own(path):
        return "site-packages" not in path and any(path.startswith(folder + os.sep) for folder in folders)

    own = [frame for frame in frames if is_own(frame.filename)]
    shown = own if len(own) <= 3 else [own[0], *own[-2:]]
    return " > ".join(f"{os.path.basename(frame.filename)}:{frame.lineno} in {frame.name}" for frame in shown)


# It stays alive as long as the process.
kept = DISPATCH(dispatch)
start.dispatch = kept
