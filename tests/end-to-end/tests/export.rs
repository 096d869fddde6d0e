//! Weights and networks that leave for PyTorch.

use crate::harness::{Place, read_tensors, sha256};
use std::fs;
use std::io::Read;

const TRAIN: &str =
    "train --recipe algorithm-1 --data digits --threads 1 --batch 10 --epochs 1 --epsilon 0.1";

const MODELS: [(&str, &str); 5] = [
    ("a", "cnn.so,arch=A"),
    ("b", "cnn.so,arch=B"),
    ("linear", "linear.so"),
    ("resnet", "resnet.so,width=8,mean=[0.5],std=[0.25]"),
    ("wide", "wide_resnet.so,depth=10,width=1,std=[0.5]"),
];

/// The files in a zip archive without compression, by name.
fn archive(path: &std::path::Path) -> Vec<(String, Vec<u8>)> {
    let mut zip = zip::ZipArchive::new(fs::File::open(path).expect("open")).expect("a zip archive");
    let entries = zip.len();
    let read = |number| {
        let mut entry = zip.by_index(number).expect("an entry");
        let (mut contents, name) = (Vec::new(), entry.name().expect("UTF-8").into_owned());
        entry.read_to_end(&mut contents).expect("readable");
        (name, contents)
    };
    (0..entries).map(read).collect()
}

#[test]
fn each_architecture_is_exported_in_each_format() {
    let place = Place::with_digits(12, 20);
    for (name, model) in MODELS {
        place.host(&format!("{TRAIN} --model {model} --out {name}")).succeeds();
        let weights = place.run(name).weights();
        let count = weights.len();

        let export = format!("export {name} --out {name}.safetensors --format safetensors");
        let said = place.host(&export).succeeds().words();
        assert!(said.starts_with(&format!("{name}.safetensors: {count} tensors, ")), "{said}");
        assert!(said.trim_end().ends_with("the weights at update 2"), "{said}");
        assert!(read_tensors(&place.path(&format!("{name}.safetensors"))) == weights, "{name}");

        place.host(&format!("export {name} --out {name}.pt --format state-dict")).succeeds();
        let files = archive(&place.path(&format!("{name}.pt")));
        let pickle = &files.iter().find(|(name, _)| name == "archive/data.pkl").expect("a pickle").1;
        for (tensor, (shape, numbers)) in &weights {
            assert!(pickle.windows(tensor.len()).any(|part| part == tensor.as_bytes()), "{name}: {tensor}");
            let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
            assert!(files.iter().any(|(_, contents)| *contents == bytes), "{name}: {tensor} {shape:?}");
        }

        place.host(&format!("export {name} --out {name}.script.pt --format torchscript")).succeeds();
        let files = archive(&place.path(&format!("{name}.script.pt")));
        assert!(files.iter().any(|(name, _)| name.contains("/code/")), "{name}: TorchScript");
    }
}

#[test]
fn the_weights_are_chosen() {
    let place = Place::with_digits(8, 40);
    let averaged = "--model linear.so --average 0.9 --validation-points 10 --select best";
    let train = TRAIN.replace("--epochs 1", "--epochs 3");
    place.host(&format!("{train} {averaged} --out averaged")).succeeds();
    let export = |flags: &str, name: &str| {
        place.host(&format!("export averaged --format safetensors --out {name} {flags}")).succeeds();
        read_tensors(&place.path(name))
    };
    let (last, raw) = (export("--select last", "last"), export("--select last --no-average", "raw"));
    assert!(last == place.run("averaged").tensors("average.safetensors"));
    assert!(raw == place.run("averaged").weights());
    assert!(last != raw);
    let best = fs::read_dir(place.path("averaged/best")).expect("a folder").flatten();
    let best = best.map(|entry| entry.path()).max().expect("a checkpoint").join("weights.safetensors");
    assert!(export("", "best") == read_tensors(&best));
    place
        .refuses(
            "export averaged --format safetensors --out other --select best --no-average",
            &["the best weights of averaged are an average"],
        )
        .explains(&["--select last"]);
    place.host(&format!("{TRAIN} --model linear.so --out plain")).succeeds();
    place
        .refuses(
            "export plain --format state-dict --out other --select best",
            &["plain does not keep its best weights"],
        )
        .explains(&["--select last"]);
}

#[test]
fn nothing_is_overwritten_and_mistakes_are_found_before_work() {
    let place = Place::with_digits(8, 20);
    place.host(&format!("{TRAIN} --model linear.so --out run")).succeeds();
    fs::write(place.path("mine.pt"), "mine").expect("written");
    for format in ["state-dict", "torchscript", "safetensors"] {
        let export = format!("export run --format {format} --out mine.pt");
        place.refuses(&export, &["mine.pt already exists"]).explains(&["--force"]);
        place.refuses(&format!("export run --format {format} --out run"), &["got the folder run"]);
        place.refuses(&format!("export run --format {format} --out run --force"), &["got the folder run"]);
        place
            .refuses(&format!("export run --format {format} --out none/x.pt"), &["there is no folder none"])
            .explains(&["create it"]);
        place.refuses(&format!("export digits --format {format} --out x.pt"), &["digits holds no run"]);
        let before = sha256(&place.path("mine.pt"));
        place.host(&format!("{export} --force")).succeeds();
        assert_ne!(sha256(&place.path("mine.pt")), before);
    }
    place.refuses("export run --format onnx --out x.pt", &["'onnx'"]);
    place.refuses("export run --out x.pt", &["required arguments"]).explains(&["--format"]);
    // The data are needed for the network alone.
    fs::rename(place.path("digits"), place.path("moved")).expect("moved");
    place.host("export run --format state-dict --out weights.pt").succeeds();
    place
        .refuses("export run --format torchscript --out net.pt", &["the recorded data", "digits are missing"])
        .explains(&["--data-folder"]);
    place.host("export run --format torchscript --out net.pt --data-folder moved").succeeds();
    for file in fs::read_dir(place.path("run/checkpoints")).expect("a folder").flatten() {
        fs::write(file.path().join("weights.safetensors"), "x").expect("written");
    }
    place.refuses("export run --format state-dict --out other.pt", &["no checkpoint in", "is whole"]);
}
