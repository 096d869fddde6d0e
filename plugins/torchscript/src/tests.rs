//! Tests with files that PyTorch wrote (`tests/fixtures.py`), and with its logits.

use super::*;
use plugin_api::tch::{self, nn::VarStore};

/// What the networks of the files are made for.
const TASK: Task = Task { channels: 1, height: 8, width: 8, classes: 3 };

/// PyTorch's logits of `scripted.pt` and `traced.pt` for two images, in evaluation mode.
const LOGITS: [[f64; 3]; 2] = [
    [0.06322522461414337, -0.04885894060134888, 0.15133580565452576],
    [0.07296289503574371, -0.05172261595726013, 0.14051835238933563],
];

fn fixture(name: &str) -> String {
    format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn options(name: &str) -> Options {
    Options { file: Some(fixture(name)), ..Options::default() }
}

fn built(options: Options) -> Result<(VarStore, TorchScript)> {
    let variables = VarStore::new(Device::Cpu);
    let network = TorchScript::new(options, TASK, &variables.root())?;
    Ok((variables, network))
}

fn refusal(options: Options) -> String {
    built(options).err().expect("refused").to_string()
}

fn images(count: i64) -> Tensor {
    let numbers = Tensor::arange(count * 64, (Kind::Double, Device::Cpu));
    (numbers.sin() * 0.5 + 0.5).reshape([count, 1, 8, 8]).to_kind(Kind::Float)
}

fn names(variables: &VarStore) -> Vec<String> {
    let mut names: Vec<_> = variables.variables().into_keys().collect();
    names.sort();
    names
}

#[test]
fn scripted_and_traced_networks_compute_what_pytorch_computes() {
    for file in ["scripted.pt", "traced.pt"] {
        let (variables, network) = built(options(file)).expect("a network");
        let logits = network.forward(&images(2), false).expect("logits");
        let off = (logits - Tensor::from_slice2(&LOGITS)).abs().max().double_value(&[]);
        assert!(off < 1e-6, "{file}: {off}");
        let expected = [
            "features.0.weight",
            "features.1.bias",
            "features.1.num_batches_tracked",
            "features.1.running_mean",
            "features.1.running_var",
            "features.1.weight",
            "output.bias",
            "output.weight",
        ];
        assert_eq!(names(&variables), expected, "{file}: PyTorch's names");
        assert_eq!(variables.trainable_variables().len(), 5, "{file}");
    }
}

#[test]
fn a_scripted_network_has_two_modes_and_a_traced_one_says_that_it_has_not() {
    let (variables, network) = built(options("scripted.pt")).expect("a network");
    assert!(network.train_differs());
    assert!(network.notes().is_empty());
    let counted = || variables.variables()["features.1.num_batches_tracked"].int64_value(&[]);
    let mean = || variables.variables()["features.1.running_mean"].copy();
    let (trained, before) = (counted(), mean());
    assert_eq!(trained, 20, "the trial leaves no trace");
    let _ = network.forward(&images(3), false).expect("logits");
    assert_eq!((counted(), mean()), (20, before.copy()), "evaluation changes no statistics");
    // Two passes may see the same draws: a test beside this one sets the generator of libtorch back.
    let passes = [(); 8].map(|()| network.forward(&images(3), true).expect("logits"));
    assert!(passes.iter().any(|logits| *logits != passes[0]), "dropout");
    assert_eq!(counted(), 28);
    assert_ne!(mean(), before);

    let (_, traced) = built(options("traced.pt")).expect("a network");
    assert!(!traced.train_differs());
    let [evaluated, trained] = [false, true].map(|train| traced.forward(&images(3), train).expect("logits"));
    assert_eq!(evaluated, trained);
    assert!(traced.notes()[0].contains("was traced: its dropout and normalisation"), "{:?}", traced.notes());
}

#[test]
fn forward_uses_the_listed_tensors_wherever_their_memory_is() {
    let (variables, network) = built(options("scripted.pt")).expect("a network");
    let listed = variables.variables();
    tch::no_grad(|| {
        let _ = listed["output.weight"].shallow_clone().zero_();
        // The host gives tensors another memory, for another layout.
        listed["output.bias"].shallow_clone().set_data(&Tensor::from_slice(&[1.0f32, 2.0, 3.0]));
    });
    let logits = network.forward(&images(1), false).expect("logits");
    assert_eq!(Vec::<f32>::try_from(logits.view([-1])).expect("three"), [1.0, 2.0, 3.0]);
}

#[test]
fn gradients_reach_images_and_parameters() {
    let (variables, network) = built(options("scripted.pt")).expect("a network");
    let leaf = images(2).set_requires_grad(true);
    let mut inputs = variables.trainable_variables();
    inputs.push(leaf.shallow_clone());
    let loss = network.forward(&leaf, true).expect("logits").square().sum(Kind::Float);
    for gradient in Tensor::run_backward(&[loss], &inputs, false, false) {
        assert!(gradient.abs().max().double_value(&[]) > 0.0);
    }
}

#[test]
fn every_call_rounds_alike() {
    let gradient = |network: &TorchScript| {
        let leaf = images(3).set_requires_grad(true);
        let loss = network.forward(&leaf, false).expect("logits").square().sum(Kind::Float);
        Tensor::run_backward(&[loss], &[leaf], false, false).remove(0)
    };
    let (_variables, network) = built(options("scripted.pt")).expect("a network");
    let first = gradient(&network);
    for call in 0..5 {
        assert_eq!(gradient(&network), first, "call {call}");
    }
}

#[test]
fn in_f64_the_network_is_the_same() {
    let mut variables = VarStore::new(Device::Cpu);
    variables.set_kind(Kind::Double);
    let network = TorchScript::new(options("scripted.pt"), TASK, &variables.root()).expect("a network");
    let logits = network.forward(&images(2).to_kind(Kind::Double), false).expect("logits");
    assert_eq!(logits.kind(), Kind::Double);
    assert!((logits - Tensor::from_slice2(&LOGITS)).abs().max().double_value(&[]) < 1e-6);
}

#[test]
fn a_tied_weight_is_one_tensor_under_both_names() {
    let (variables, network) = built(options("tied.pt")).expect("a network");
    assert_eq!(names(&variables), ["first.weight", "output.bias", "output.weight", "second.weight"]);
    let listed = variables.variables();
    tch::no_grad(|| {
        listed["first.weight"].shallow_clone().set_data(&Tensor::zeros([64, 64], (Kind::Float, Device::Cpu)))
    });
    assert_eq!(listed["second.weight"].abs().max().double_value(&[]), 0.0);
    let logits = network.forward(&images(1), false).expect("logits");
    assert_eq!(logits, listed["output.bias"].reshape([1, 3]));
}

#[test]
fn an_element_of_the_result_can_be_chosen() {
    let of = |name: &str, output: &str| Options { output: Some(output.to_owned()), ..options(name) };
    for (name, output) in [("tuple.pt", "0"), ("dictionary.pt", "logits")] {
        let (_, network) = built(of(name, output)).expect("a network");
        assert_eq!(network.forward(&images(2), true).expect("logits").size(), [2, 3]);
    }
    let (_, of_one) = built(options("dictionary.pt")).expect("a network: there is only one element");
    assert_eq!(of_one.forward(&images(2), false).expect("logits").size(), [2, 3]);
    let refused = refusal(options("tuple.pt"));
    assert!(refused.contains("returns a tuple with the elements 0, 1; expected one tensor"), "{refused}");
    assert!(refused.contains("output=NAME"), "{refused}");
    let refused = refusal(of("dictionary.pt", "scores"));
    assert!(refused.contains("a dictionary with the elements logits, and no tensor `scores`"), "{refused}");
    let refused = refusal(of("small.pt", "0"));
    assert!(refused.contains("its result is one tensor"), "{refused}");
}

#[test]
fn probabilities_are_refused_or_turned_into_logarithms() {
    let refused = refusal(options("probabilities.pt"));
    assert!(refused.contains("returns probabilities, not logits"), "{refused}");
    for name in ["probabilities.pt", "saturated.pt"] {
        let (_, network) = built(Options { probabilities: true, ..options(name) }).expect("a network");
        let leaf = images(2).set_requires_grad(true);
        let logits = network.forward(&leaf, false).expect("logits");
        let off = (logits.softmax(1, Kind::Double).sum_dim_intlist([1i64].as_slice(), false, Kind::Double)
            - 1.0)
            .abs()
            .max();
        assert!(off.double_value(&[]) < 1e-6);
        assert!(logits.isfinite().all().int64_value(&[]) == 1, "{name}");
        let gradient = Tensor::run_backward(&[logits.sum(Kind::Float)], &[leaf], false, false).remove(0);
        assert!(gradient.isfinite().all().int64_value(&[]) == 1, "{name}");
    }
    let refused = refusal(Options { probabilities: true, ..options("small.pt") });
    assert!(refused.contains("probabilities=true, but") && refused.contains("returns none"), "{refused}");
}

#[test]
fn a_network_traced_in_training_mode_is_refused_by_name() {
    let refused = refusal(options("traced-dropout.pt"));
    for part in
        ["other logits for the same images in evaluation mode", "keeps its dropout for ever", "random=true"]
    {
        assert!(refused.contains(part), "{refused}");
    }
    let (_, network) = built(Options { random: true, ..options("traced-dropout.pt") }).expect("accepted");
    assert!(network.train_differs());
    let refused = refusal(options("traced-norm.pt"));
    assert!(refused.contains("changes `1.") && refused.contains("traced in training mode"), "{refused}");
}

#[test]
fn a_network_that_cannot_be_trained_is_refused_and_says_why() {
    for (name, parts) in [
        ("one-batch.pt", ["takes batches of 2 images and not of 1 and 3", "traced for one size of batch"]),
        ("on-gpu.pt", ["names the device cuda:0 in its code", "export it on the CPU"]),
        ("frozen.pt", ["has no parameters: its weights are constants", "torch.jit.freeze"]),
        ("no-weights.pt", ["has no parameters", "nothing to train"]),
        ("double.pt", ["is Double; expected Float (f32)", ".float().save("]),
        ("double-logits.pt", ["logits are Double on Cpu", "expected Float"]),
        ("detached.pt", ["no gradient with respect to the images", "detaches them"]),
        ("detached-images.pt", ["no gradient with respect to the images", "torch.no_grad"]),
        ("counting.pt", ["changes `calls` in evaluation mode", "keeps a state"]),
        ("not-trainable.pt", ["requires_grad is false for all 5", "train_all=true"]),
    ] {
        let refused = refusal(options(name));
        for part in parts.into_iter().chain([name]) {
            assert!(refused.contains(part), "{name}: {refused}");
        }
        assert!(!refused.contains('\n'), "one line: {refused}");
    }
    let (variables, _) =
        built(Options { train_all: true, ..options("not-trainable.pt") }).expect("a network");
    assert_eq!(variables.trainable_variables().len(), 5);
}

#[test]
fn a_network_for_other_images_or_classes_is_refused_with_both_shapes() {
    let refused = |task: Task| {
        let variables = VarStore::new(Device::Cpu);
        let refused = TorchScript::new(options("scripted.pt"), task, &variables.root());
        refused.err().expect("refused").to_string()
    };
    let classes = refused(Task { classes: 10, ..TASK });
    assert!(
        classes.contains("logits of shape [1, 3] for 1 images and 10 classes; expected [1, 10]"),
        "{classes}"
    );
    let wide = refused(Task { height: 28, width: 28, ..TASK });
    assert!(wide.contains("fails on images of 1 x 28 x 28") && wide.contains("mat1 and mat2"), "{wide}");
    let colour = refused(Task { channels: 3, ..TASK });
    assert!(colour.contains("fails on images of 3 x 8 x 8") && colour.contains("channels"), "{colour}");
}

#[test]
fn a_file_that_is_not_torchscript_is_refused_by_what_it_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).expect("written");
        Options { file: Some(path.display().to_string()), ..Options::default() }
    };
    for name in ["weights.pt", "old-weights.pt"] {
        let refused = refusal(options(name));
        assert!(
            refused.contains("is a pickle of torch.save") && refused.contains("load_state_dict"),
            "{refused}"
        );
    }
    let refused = refusal(options("exported.pt2"));
    assert!(refused.contains("is a program of torch.export"), "{refused}");
    let whole = std::fs::read(fixture("scripted.pt")).expect("a file");
    for length in [100, whole.len() / 2, whole.len() - 1] {
        let refused = refusal(write("half.pt", &whole[..length]));
        assert!(refused.contains("is damaged, or was cut short"), "{refused}");
        assert!(refused.contains(&format!("({length} bytes)")), "{refused}");
    }
    let header = br#"{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    let safetensors = [&(header.len() as u64).to_le_bytes()[..], header].concat();
    let refused = refusal(write("net.safetensors", &safetensors));
    assert!(refused.contains("has weights in the format safetensors"), "{refused}");
    assert!(refusal(write("text.pt", b"import torch")).contains("is no TorchScript file"));
    assert!(refusal(write("empty.pt", b"")).contains("is empty"));
    let missing =
        Options { file: Some(folder.path().join("gone.pt").display().to_string()), ..Options::default() };
    assert!(refusal(missing).contains("cannot read"));
    assert!(refusal(Options::default()).contains("the option `file` is missing"));
}

#[test]
fn damaged_files_are_errors_and_no_crashes() {
    let whole = std::fs::read(fixture("small.pt")).expect("a file");
    for place in (0..whole.len()).step_by(37) {
        let mut damaged = whole.clone();
        damaged[place] ^= 0x55;
        // What a damaged byte changes may be a weight, or unused.
        let _ = trial::check_format("damaged.pt", &damaged)
            .and_then(|()| Module::load(&damaged, Device::Cpu).map(drop));
    }
}
