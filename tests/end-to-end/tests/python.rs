//! Models, samplers and attacks that are written in Python. Most tests need an environment with the
//! host's torch: `make python`, then `make python-test`.

use crate::harness::{Outcome, Place, built, profile_of_host, repository, sha256};
use safetensors::SafeTensors;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

const TRAIN: &str = "train --recipe algorithm-1 --data digits --threads 1 --batch 20 --epochs 2";

/// A network with all that has a state: batch normalisation, dropout, a buffer, a tied weight.
const NET: &str = "
import torch
from torch import nn

class Double(torch.autograd.Function):
    @staticmethod
    def forward(context, values):
        return values * 2

    @staticmethod
    def backward(context, gradient):
        return gradient * 2

class Net(nn.Module):
    def __init__(self, task, width=8, function=False, dropout=0.25):
        super().__init__()
        self.first = nn.Conv2d(task.channels, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.third = nn.Conv2d(width, width, 3, padding=1)
        self.third.weight = self.second.weight
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Linear(width * task.height * task.width, task.classes)
        self.register_buffer('scale', torch.tensor(2.0))
        self.function = function

    def forward(self, images):
        hidden = self.norm(self.first(images)).relu()
        hidden = Double.apply(hidden) if self.function else hidden * self.scale
        hidden = self.third(self.second(hidden).relu()).relu()
        return self.last(self.dropout(hidden.flatten(1)))
";

/// The shipped sampler, line by line.
const SAMPLER: &str = "
class Langevin:
    def __init__(self, step_size=0.2, noise=0.2):
        self.step_size, self.noise = step_size, noise

    def step(self, step):
        moved = step.particles + step.gradient.sign() * self.step_size
        return moved + step.random.normal(step.particles) * self.noise
";

/// Projected gradient descent from the natural example.
const ATTACK: &str = "
import torch

class Pgd:
    def __init__(self, steps=5, step_size=0.1):
        self.steps, self.step_size = steps, step_size

    def supports(self, threat):
        if threat.norm != 'linf':
            raise ValueError(f'expected the norm linf, got {threat.norm}')

    def run(self, target):
        images = target.natural
        for _ in range(self.steps):
            evaluation = target.victim.forward(images)
            _, gradient = evaluation.gradient(
                lambda logits: torch.nn.functional.cross_entropy(logits, target.labels, reduction='none'))
            images = target.threat.project(images + gradient.sign() * self.step_size, target.natural)
        return images
";

fn place(files: &[(&str, &str)]) -> Place {
    let place = Place::with_digits(12, 60);
    for (name, text) in files {
        fs::write(place.path(name), text).expect("written");
    }
    place
}

/// Whether two runs ended with the same weights.
fn have_same_weights(place: &Place, one: &str, other: &str) -> bool {
    let weights = |run: &str| sha256(&place.run(run).newest("weights.safetensors"));
    weights(one) == weights(other)
}

#[test]
#[ignore = "needs Python's torch: make python-test"]
fn a_sampler_in_python_gives_the_weights_of_the_same_one_in_rust() {
    let place = place(&[("my_sampler.py", SAMPLER)]);
    for (run, sampler) in [
        ("rust", "langevin.so"),
        ("python", "python.so,file=my_sampler.py"),
        ("other", "python.so,file=my_sampler.py,noise=0.1"),
    ] {
        place.host(&format!("{TRAIN} --particles 2 --sampler {sampler} --out {run}")).succeeds();
    }
    assert!(have_same_weights(&place, "rust", "python"));
    assert!(!have_same_weights(&place, "rust", "other"));
}

#[test]
#[ignore = "needs Python's torch: make python-test"]
fn a_function_written_in_python_is_differentiated() {
    let place = place(&[("net.py", NET)]);
    for (run, option) in [("operator", ""), ("function", ",function=true")] {
        place.host(&format!("{TRAIN} --model python.so,file=net.py{option} --out {run}")).succeeds();
    }
    assert!(have_same_weights(&place, "operator", "function"));
}

#[test]
#[ignore = "needs Python's torch: make python-test"]
fn a_network_in_python_is_resumed_averaged_and_evaluated_like_any_other() {
    let place = place(&[("net.py", NET), ("my_attack.py", ATTACK)]);
    let train = format!("{TRAIN} --model python.so,file=net.py,width=4 --average 0.9 --checkpoint-every 1");
    place.host(&format!("{train} --out whole")).succeeds();
    place.host(&format!("{train} --out run")).succeeds();
    let (_, newest) = place.run("run").checkpoints().pop_last().expect("a checkpoint");
    // As if the process had been stopped before the end.
    fs::remove_dir_all(newest).expect("removed");
    place.host("train --resume run").ended_with(0);
    place.run("run").assert_same_as(&place.run("whole"));
    let weights = fs::read(place.run("run").newest("weights.safetensors")).expect("weights");
    let weights = SafeTensors::deserialize(&weights).expect("tensors");
    let names: Vec<_> = weights.names();
    for name in ["first.weight", "norm.running_mean", "norm.num_batches_tracked", "scale", "third.weight"] {
        assert!(names.contains(&name), "{name}: {names:?}");
    }
    let attack = "--attack python.so,file=my_attack.py,steps=3 --attack fgsm.so";
    place.host(&format!("eval run {attack}")).ended_with(0);
    place
        .refuses(&format!("eval run {attack} --norm l2 --epsilon 1"), &["expected the norm linf, got l2"])
        .explains(&["choose other attacks"]);
}

#[test]
#[ignore = "needs Python's torch: make python-test"]
fn the_checks_of_conformance_judge_python_too() {
    let place = place(&[("net.py", NET), ("my_sampler.py", SAMPLER), ("my_attack.py", ATTACK)]);
    for (kind, file) in [("model", "net"), ("sampler", "my_sampler"), ("attack", "my_attack")] {
        let printed = place.host(&format!("conform python.so,plugin=python-{kind},file={file}.py"));
        assert!(printed.ended_with(0).words().contains(", 0 failed"));
    }
    fs::write(
        place.path("bad.py"),
        "class Bad:\n  def step(self, step):\n    return step.particles.add_(1)\n",
    )
    .expect("written");
    let outcome = place.host("conform python.so,plugin=python-sampler,file=bad.py --include tensors-inputs");
    assert!(outcome.ended_with(1).words().contains("tensors-inputs"));
}

/// A file, what is asked of it, and what the refusal must say.
const REFUSED: [(&str, &str, &[&str]); 19] = [
    (
        "import nothing_like_this",
        "",
        &["net.py:1", "ModuleNotFoundError: No module named 'nothing_like_this'"],
    ),
    ("class Net(:", "", &["net.py:1: SyntaxError"]),
    ("x = 1", "", &["net.py has no class that is a torch.nn.Module"]),
    (NET, ",class=Other", &["net.py has no class `Other`", "Net"]),
    (NET, ",depth=3", &["unknown option `depth` of Net", "dropout, function, width"]),
    (
        "import torch\nclass Net(torch.nn.Linear):\n  def forward(self, x): return x",
        "",
        &["Net needs the option `in_features`"],
    ),
    (
        "from torch import nn\nclass A(nn.Module): pass\nclass B(nn.Module): pass",
        "",
        &["2 classes that are a torch.nn.Module", "class=NAME among: A, B"],
    ),
    ("import sys\nsys.exit(3)", "", &["net.py:2", "called sys.exit(3)"]),
    (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(9,), daemon=True).start()",
        "",
        &["no class that is"],
    ),
    ("NUMPY", "", &["its result is a numpy.ndarray; expected a torch.Tensor"]),
    ("DOUBLE", "", &["returned a tensor of dtype Double; expected Float"]),
    ("SHAPE", "", &["returned a tensor of shape [2, 3]; expected [2, 10]"]),
    ("NO_GRADIENT", "", &["forward returned logits without a gradient"]),
    ("REPLACED", "", &["`last` was replaced", "make it in __init__ only"]),
    (
        "import torch\nclass Net(torch.nn.Linear):\n  def __init__(self):\n    super().__init__(144, 10)\n    \
         self.register_buffer('mean', torch.zeros(1))\n  def forward(self, x):\n    \
         self.mean = self.mean + x.mean()\n    return super().forward(x.flatten(1))\n",
        "",
        &["`mean` was replaced", "self.mean.copy_(...)"],
    ),
    ("SEED", "", &["set torch's seed"]),
    ("FOLDER", "", &["the working directory"]),
    ("DTYPE", "", &["the default dtype"]),
    ("RAISES", "", &["net.py:7 in forward > net.py:8 in helper: ValueError: no such thing"]),
];

/// A network whose forward pass does something that it must not do.
fn forward_that(does: &str) -> String {
    let line = match does {
        "NUMPY" => "return self.last(x.flatten(1)).detach().numpy()",
        "DOUBLE" => "return self.last(x.flatten(1)).double()",
        "SHAPE" => "return self.last(x.flatten(1))[:, :3]",
        "NO_GRADIENT" => "with torch.no_grad(): return self.last(x.flatten(1))",
        "REPLACED" => "self.last = torch.nn.Linear(144, 10); return self.last(x.flatten(1))",
        "SEED" => "torch.manual_seed(1); return self.last(x.flatten(1))",
        "FOLDER" => "import os; os.chdir('/'); return self.last(x.flatten(1))",
        "DTYPE" => "torch.set_default_dtype(torch.float64); return self.last(x.flatten(1))",
        "RAISES" => "return helper(x)\ndef helper(x): raise ValueError('no such thing')",
        text => return text.to_owned(),
    };
    format!(
        "import torch\nclass Net(torch.nn.Module):\n  def __init__(self):\n    super().__init__(); \
         self.last = torch.nn.Linear(144, 10)\n  def forward(self, x):\n    {line}\n"
    )
    .replace("self.last = ", "\n    self.last = ")
    .replace("super().__init__(); \n", "super().__init__()\n")
}

#[test]
#[ignore = "needs Python's torch: make python-test"]
fn files_that_cannot_be_used_are_refused_before_any_work() {
    for (text, options, expected) in REFUSED {
        let place = place(&[("net.py", &forward_that(text))]);
        place.refuses(&format!("{TRAIN} --model python.so,file=net.py{options} --out run"), expected);
    }
}

#[test]
#[ignore = "needs Python's torch: make python-test"]
fn a_file_that_waits_for_ever_is_ended_with_its_place() {
    let place = place(&[("net.py", "import time\ntime.sleep(1000)\n")]);
    let mut command = place.command(&format!("{TRAIN} --model python.so,file=net.py --out run"));
    command.env("DRO_PYTHON_SECONDS", "1");
    place
        .outcome(&mut command)
        .fails(2, &["net.py did not load within 1 s; it is at net.py:2 in <module>"])
        .explains(&["DRO_PYTHON_SECONDS"]);
    assert!(!place.path("run").exists());
}

#[test]
#[ignore = "needs Python's torch: make python-test"]
fn the_code_of_a_run_is_recorded_compared_and_trusted() {
    let place = place(&[("net.py", NET)]);
    place.host(&format!("{TRAIN} --model python.so,file=net.py --out run")).succeeds();
    let file = &place.run("run").record()["plugins"]["model"]["files"]["file"];
    assert_eq!(file["sha256"].as_str(), Some(&*sha256(&place.path("net.py"))), "{file}");
    let another = |arguments: &str| -> Outcome<'_> {
        let mut command = place.command(arguments);
        command.env("XDG_DATA_HOME", place.path("another"));
        place.outcome(&mut command)
    };
    another("eval run --attack fgsm.so").fails(2, &["net.py, which is not trusted here"]);
    another("trust net.py").succeeds();
    another("eval run --attack fgsm.so").ended_with(0);
    // Another text is other code.
    fs::write(place.path("net.py"), format!("{NET}\n")).expect("written");
    place.refuses("train --resume run", &["net.py has changed since the run began"]);
    place.refuses("eval run --attack fgsm.so --allow-changed", &["net.py, which is not trusted here"]);
    // Moved files are found in the folder of plugins.
    fs::create_dir(place.path("moved")).expect("a folder");
    fs::write(place.path("moved/net.py"), NET).expect("written");
    fs::remove_file(place.path("net.py")).expect("removed");
    place.refuses("eval run --attack fgsm.so", &["net.py, which the run's plugin reads, is missing"]);
    fs::copy(built("libpython.so"), place.path("moved/libpython.so")).expect("copied");
    place.host("trust moved/libpython.so").succeeds();
    place.host("eval run --attack fgsm.so --plugins moved").ended_with(0);
}

/// A program that describes itself as this Python.
fn pretended(place: &Place, torch: &str) -> Command {
    let text = format!(
        "#!/bin/sh\necho '{{\"program\": \"/env/python\", \"version\": \"3.12.1\", \"library\": null, \
         \"torch\": {torch}}}'\n"
    );
    fs::write(place.path("python"), text).expect("written");
    fs::set_permissions(place.path("python"), fs::Permissions::from_mode(0o755)).expect("set");
    let mut command = place.command(&format!("{TRAIN} --model python.so,file=net.py --out run"));
    command.env("DRO_PYTHON", place.path("python"));
    command
}

#[test]
fn another_torch_than_the_hosts_is_refused_with_both_versions() {
    let place = place(&[("net.py", NET)]);
    let other = &mut pretended(&place, "\"2.0.1+cpu\"");
    place.outcome(other).fails(2, &["the torch of /env/python is 2.0.1+cpu; expected 2.", "make python"]);
    let none = &mut pretended(&place, "null");
    place.outcome(none).fails(2, &["/env/python has no torch; expected torch 2.", "DRO_PYTHON"]);
    let mut missing = place.command(&format!("{TRAIN} --model python.so,file=net.py --out run"));
    place
        .outcome(missing.env("DRO_PYTHON", "/nowhere/python"))
        .fails(2, &["DRO_PYTHON: there is no Python interpreter /nowhere/python"]);
    let mut broken = place.command(&format!("{TRAIN} --model python.so,file=net.py --out run"));
    place.outcome(broken.env("DRO_PYTHON", "/bin/false")).fails(2, &["/bin/false is no Python"]);
    assert!(!place.path("run").exists());
}

#[test]
fn a_file_that_is_missing_is_named() {
    let place = place(&[]);
    let refused = place.refuses(
        &format!("{TRAIN} --model python.so,file=gone.py --out run"),
        &["option `file`: there is no file gone.py"],
    );
    refused.explains(&["python.so,file=gone.py"]);
    place.refuses(&format!("{TRAIN} --model python.so --out run"), &["give file=MY_FILE.py"]);
}

/// Runs a recipe of `examples/pytorch` as its text says, on small data.
fn follow<'a>(place: &'a Place, recipe: &str, settings: &[(&str, &str)]) -> Outcome<'a> {
    let script = repository().join("examples/pytorch").join(recipe);
    let host = built("host");
    let folder = host.parent().expect("a folder").display();
    let path = format!("{folder}:{}", std::env::var("PATH").unwrap_or_default());
    let mut command = place.any_command("sh", [&script]);
    let python = repository().join(".setup/python/bin/python");
    command.env("PATH", path).env("PROFILE", profile_of_host()).env("DATA", "digits").env("POINTS", "10");
    if python.is_file() {
        command.env("DRO_PYTHON", python);
    }
    place.outcome(command.envs(settings.iter().copied())).ended_with(0)
}

#[test]
#[ignore = "needs Python's torch: make python-test"]
fn the_recipes_train_a_module_take_its_weights_back_and_judge_them() {
    let place = Place::with_digits(28, 200);
    let trained = follow(&place, "train_my_module.sh", &[("EPOCHS", "1")]);
    assert!(trained.words().contains("worst case"), "{}", trained.report());
    let compared = follow(&place, "take_weights_back.sh", &[]);
    assert!(compared.words().contains("largest difference of the logits"), "{}", compared.report());
    let judged = follow(&place, "judge_a_checkpoint.sh", &[("WEIGHTS", "runs/weights.pt")]);
    assert!(judged.words().contains("worst case"), "{}", judged.report());
    // The same weights have the same verdicts, whether they are a run's or from elsewhere.
    let verdicts = |run: &str| {
        let evaluations = place.run(run).evaluations();
        let at = evaluations.iter().find(|one| one["threat"]["epsilon"] == 0.1 || run == "runs/my-net");
        at.expect("an evaluation")["clean"].clone()
    };
    assert_eq!(verdicts("runs/my-net"), verdicts("runs/theirs"));
}

#[test]
#[ignore = "needs Python's torch: make python-test"]
fn the_recipe_ports_a_sampler_bit_for_bit() {
    follow(&Place::with_digits(12, 60), "port_a_sampler.sh", &[]);
}

#[test]
#[ignore = "needs Python's torch: make python-test"]
fn the_recipe_uses_a_dataset() {
    let place = Place::empty();
    let used = follow(&place, "use_my_dataset.sh", &[("EPOCHS", "1")]);
    assert!(used.words().contains("worst case"), "{}", used.report());
}
