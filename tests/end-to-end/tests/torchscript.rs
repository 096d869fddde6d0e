//! Networks from TorchScript files through the host. The files are those of the plugin's own tests,
//! which also has a test for every mistake that it names.

use crate::data;
use crate::harness::{Place, repository};
use libc::SIGINT;
use std::fs;

/// 60 points in batches of 10.
const UPDATES_PER_EPOCH: u64 = 6;

const TRAIN: &str = "train --recipe algorithm-1 --data digits --threads 1 --batch 10 --epsilon 0.1 --epochs 3 --sampler langevin.so";

/// Images of 8x8 pixels in three classes, and a copy of one of the plugin's files as `net.pt`.
fn place(file: &str) -> Place {
    let place = Place::empty();
    data::write_classes(&place.path("digits"), 8, 10 * UPDATES_PER_EPOCH as usize, 3);
    let fixture = repository().join("plugins/torchscript/tests/fixtures").join(file);
    fs::copy(fixture, place.path("net.pt")).expect("copied");
    place
}

const NET: &str = "--model torchscript.so,file=net.pt";

#[test]
fn a_scripted_network_trains_and_resumes_bit_for_bit_with_its_statistics() {
    let place = place("scripted.pt");
    place.host(&format!("{TRAIN} {NET} --average 0.9 --out whole")).ended_with(0);
    let command = format!("{TRAIN} {NET} --average 0.9 --checkpoint-every 2 --out run");
    let inside_epoch = |update: u64| update > 0 && !update.is_multiple_of(UPDATES_PER_EPOCH);
    place.interrupt(&command, "run", SIGINT, inside_epoch).was_interrupted(&["host train --resume run"]);
    place.host("train --resume run").ended_with(0);
    let (whole, run) = (place.run("whole"), place.run("run"));
    run.assert_same_as(&whole);

    let names: Vec<_> = whole
        .checkpoints()
        .into_values()
        .next_back()
        .map(|folder| {
            let bytes = fs::read(folder.join("weights.safetensors")).expect("weights");
            let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("whole");
            let mut names: Vec<_> = tensors.names().into_iter().map(str::to_owned).collect();
            names.sort();
            names
        })
        .expect("a checkpoint");
    let statistics = ["features.1.num_batches_tracked", "features.1.running_mean", "features.1.running_var"];
    assert!(statistics.iter().all(|name| names.contains(&(*name).to_owned())), "PyTorch's names: {names:?}");
    place.host("eval whole --attack pgd.so,steps=5").ended_with(0);
}

#[test]
fn a_traced_network_says_that_it_has_one_mode_and_trains_in_bf16() {
    let place = place("traced.pt");
    let trained = place.host(&format!("{TRAIN} {NET} --precision bf16 --out run")).ended_with(0);
    assert!(
        trained.first_line().contains("was traced: its dropout and normalisation"),
        "{}",
        trained.report()
    );
}

#[test]
fn files_that_cannot_be_trained_are_refused_before_work() {
    for (file, parts) in [
        ("traced-dropout.pt", ["other logits for the same images", "keeps its dropout for ever"]),
        ("traced-norm.pt", ["in evaluation mode", "traced in training mode"]),
        ("one-batch.pt", ["takes batches of 2 images and not of 1 and 3", "one size of batch"]),
        ("on-gpu.pt", ["names the device cuda:0", "export it on the CPU"]),
        ("probabilities.pt", ["returns probabilities, not logits", "without its softmax"]),
        ("frozen.pt", ["has no parameters", "torch.jit.freeze"]),
        ("no-weights.pt", ["has no parameters", "nothing to train"]),
        ("double.pt", ["is Double", "expected Float"]),
        ("double-logits.pt", ["logits are Double", "expected Float"]),
        ("tuple.pt", ["returns a tuple", "output=NAME"]),
        ("weights.pt", ["is a pickle of torch.save", "not TorchScript"]),
        ("exported.pt2", ["torch.export", "not TorchScript"]),
    ] {
        place(file).refuses(&format!("{TRAIN} {NET} --out run"), &parts);
    }
    let place = place("scripted.pt");
    place.refuses(&format!("{TRAIN} --model torchscript.so,file=gone.pt"), &["there is no file gone.pt"]);
    place.refuses(&format!("{TRAIN} --model torchscript.so"), &["the option `file` is missing"]);
    let bytes = fs::read(place.path("net.pt")).expect("a file");
    fs::write(place.path("net.pt"), &bytes[..bytes.len() / 2]).expect("cut");
    place.refuses(&format!("{TRAIN} {NET}"), &["is damaged, or was cut short"]);
    data::write_classes(&place.path("ten"), 8, 60, 10);
    fs::write(place.path("net.pt"), &bytes).expect("whole");
    let ten = TRAIN.replace("--data digits", "--data ten");
    place.refuses(&format!("{ten} {NET}"), &["logits of shape [1, 3] for 1 images and 10 classes"]);
}

#[test]
fn the_plugin_conforms_with_its_example_and_with_a_file_for_such_images() {
    let place = Place::empty();
    place.host("conform torchscript.so").succeeds();
}
