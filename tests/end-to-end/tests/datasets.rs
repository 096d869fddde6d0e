//! Data sets in other formats: NumPy, CIFAR's Python version, resized folders, and PyTorch.

use crate::data::{Samples, TEST_POINTS, digits, write_image_tree};
use crate::harness::{Outcome, Place, repository};
use std::fs;
use std::process::Command;

const LINEAR: &str = "--model bad_plugins.so,plugin=linear";

fn train(data: &str) -> String {
    format!(
        "train --recipe algorithm-1 --data {data} {LINEAR} --sampler none --threads 1 --batch 20 --epochs 1 --out run"
    )
}

/// The contents of a `.npy` file of bytes.
fn npy(shape: &[usize], bytes: &[u8]) -> Vec<u8> {
    let sizes: String = shape.iter().map(|size| format!("{size}, ")).collect();
    let header = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': ({sizes}), }}");
    let header = format!("{header:<117}\n");
    [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], header.as_bytes(), bytes].concat()
}

fn write(place: &Place, name: &str, contents: impl AsRef<[u8]>) {
    let path = place.path(name);
    fs::create_dir_all(path.parent().expect("a folder")).expect("made");
    fs::write(path, contents).expect("written");
}

/// The digits as a folder of arrays.
fn write_arrays(place: &Place, folder: &str) {
    for (split, points, seed) in [("train", 60, 1), ("test", TEST_POINTS, 2)] {
        let Samples { pixels, labels } = digits(8, points, 10, seed);
        write(place, &format!("{folder}/x_{split}.npy"), npy(&[points, 8, 8], &pixels));
        write(place, &format!("{folder}/y_{split}.npy"), npy(&[points], &labels));
    }
}

#[test]
fn a_run_on_arrays_is_evaluated_and_resumed_where_they_are_now() {
    let place = Place::empty();
    write_arrays(&place, "arrays");
    place.host(&train("arrays")).succeeds();
    let record = place.run("run").record();
    let checksums = record["data"]["checksums"].as_object().expect("checksums");
    assert_eq!(checksums.keys().collect::<Vec<_>>(), ["x_test", "x_train", "y_test", "y_train"]);
    place.host("eval run --attack fgsm.so --points 20").ended_with(0);
    fs::create_dir(place.path("store")).expect("a folder");
    fs::rename(place.path("arrays"), place.path("store/arrays")).expect("renamed");
    place.refuses("train --resume run", &["the recorded data", "/arrays are missing"]);
    place.host("train --resume run --data-folder store").ended_with(0);
    place.host("eval run --attack fgsm.so --points 20 --data-folder store").ended_with(0);
    let pixels = digits(8, TEST_POINTS, 10, 3).pixels;
    write(&place, "store/arrays/x_test.npy", npy(&[TEST_POINTS, 8, 8], &pixels));
    let eval = "eval run --attack fgsm.so --points 20 --data-folder store";
    place.refuses(eval, &["data file x_test is not the recorded one"]);
}

#[test]
fn options_of_the_data_are_recorded() {
    let place = Place::empty();
    fs::create_dir(place.path("in, here")).expect("a folder");
    fs::copy(repository().join("tests/end-to-end/inputs/numpy.npz"), place.path("mine.npz")).expect("copied");
    let named = "mine.npz,train_images=x_train,train_labels=y_train,test_images=x_test,test_labels=y_test";
    place.host(&format!("{} --batch 2", train(named).replace("--batch 20", ""))).ended_with(0);
    let recorded =
        place.run("run").record()["experiment"]["data"]["name"].as_str().expect("a name").to_owned();
    assert!(recorded.ends_with(
        "mine.npz,test_images=x_test,test_labels=y_test,train_images=x_train,train_labels=y_train"
    ));
    assert!(recorded.starts_with('/'), "{recorded}");
    fs::rename(place.path("mine.npz"), place.path("in, here/mine.npz")).expect("renamed");
    let missing = place.refuses("eval run --attack fgsm.so", &["mine.npz are missing"]);
    missing.explains(&["--data-folder FOLDER: the folder around mine.npz"]);
    let mut command = place.command("eval run --attack fgsm.so --data-folder");
    place.outcome(command.arg("in, here")).ended_with(0);
    let other = |data: &str| train(data).replace("--out run", "--out other");
    place.refuses(&other("mine.npz,images=x"), &["mine.npz", "neither a known data set nor a folder"]);
    place.refuses(&other("in"), &["there is no such folder"]);
}

#[test]
fn data_of_one_split_are_not_trained_on() {
    let place = Place::empty();
    write_arrays(&place, "arrays");
    for split in ["x_train.npy", "y_train.npy"] {
        fs::remove_file(place.path("arrays").join(split)).expect("removed");
    }
    let only = "has no training images";
    place.host(&train("arrays")).ended_with(2).explains(&[only, "train on data that have both splits"]);
    place.refuses("data check --data arrays --epsilon 0.1", &[only]);
}

#[test]
fn nothing_in_a_pickle_is_executed() {
    let place = Place::empty();
    let touched = place.path("touched");
    let shell = format!("touch {}", touched.display());
    let payload = format!("cposix\nsystem\n(V{shell}\ntR.");
    // In the place of the whole, and in that of the images.
    let inside = format!("\u{80}\u{2}}}(V{}\ncposix\nsystem\n(V{shell}\ntRVlabels\n](K\u{1}eu.", "data");
    let inside: Vec<u8> = inside.chars().map(|letter| letter as u8).collect();
    for hostile in [payload.into_bytes(), inside] {
        for name in
            ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]
        {
            write(&place, &format!("cifar/{name}"), &hostile);
            write(&place, &format!("data/cifar-10/cifar-10-batches-py/{name}"), &hostile);
        }
        for name in ["train", "test"] {
            write(&place, &format!("cifar-100/{name}"), &hostile);
        }
        // The payload works where pickles are executed.
        let unpickle = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb'))";
        let python =
            Command::new("python3").args(["-c", unpickle]).arg(place.path("cifar/test_batch")).output();
        assert!(python.is_ok() && touched.exists(), "the payload does nothing: {python:?}");
        fs::remove_file(&touched).expect("removed");
        for data in ["cifar", "cifar-10", "cifar-100/."] {
            place.refuses(&train(data), &["is no file of CIFAR's Python version"]);
            place.refuses(&format!("data check --epsilon 0.1 --data {data}"), &["is no file of CIFAR's"]);
            assert!(!touched.exists());
        }
    }
    let object = [b"\x93NUMPY\x01\x00", &80u16.to_le_bytes()[..]].concat();
    let header = format!("{:<79}\n", "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }");
    write_arrays(&place, "arrays");
    let payload = format!("cposix\nsystem\n(V{shell}\ntR.");
    write(&place, "arrays/y_test.npy", [&object, header.as_bytes(), payload.as_bytes()].concat());
    place.refuses(&train("arrays"), &["y_test of", "holds pickled Python objects", "never unpickled"]);
    assert!(!touched.exists());
}

#[test]
fn images_of_a_folder_are_resized() {
    let place = Place::empty();
    write_image_tree(&place.path("pictures"), 8, 60);
    fs::write(
        place.path("odd.png"),
        fs::read(place.path("pictures/train/digit-0/0.png")).expect("a picture"),
    )
    .expect("written");
    image::save_buffer(
        place.path("pictures/test/digit-3/3.png"),
        &[9; 12 * 10],
        12,
        10,
        image::ExtendedColorType::L8,
    )
    .expect("saved");
    let refused = place.refuses(&train("pictures"), &["3.png is 10 x 12 pixels", "expected 8 x 8"]);
    refused.explains(&["--resize N"]);
    place.refuses(
        &format!("{} --resize 0", train("pictures")),
        &["resize: expected a size from 1 to 4096, got 0"],
    );
    place.refuses(&format!("{} --resize 6", train("mnist")), &["mnist"]);
    place.host(&format!("{} --resize 6", train("pictures"))).succeeds();
    let record = place.run("run").record();
    let recorded = record["experiment"]["data"]["name"].as_str().expect("a name");
    assert!(recorded.ends_with("/pictures,resize=6"), "{recorded}");
    place.host("eval run --attack fgsm.so --points 20").ended_with(0);
    place.host("data check --data pictures --resize 6 --epsilon 0.01").ended_with(0);
    place.refuses("train --resume run --resize 6", &["it cannot be used with --resize"]);
    write_arrays(&place, "arrays");
    let not_images = format!("{} --resize 6", train("arrays").replace("--out run", "--out other"));
    place
        .refuses(&not_images, &["there is no option resize"])
        .explains(&["only folders of images are resized"]);
}

// -------------------------------------------------------------------------------- PyTorch

/// The start of a file with data sets whose images are of 8 x 8 pixels. No package is needed: a view
/// of memory is as good an array as any.
const DATASETS: &str = "
import random

class Digits:
    classes = [f'digit {number}' for number in range(10)]

    def __init__(self, points, seed):
        self.points, self.seed = points, seed

    def __len__(self):
        return self.points

    def pixels(self, index):
        shade = random.Random(1000 * self.seed + index)
        label = index % 10
        pattern = random.Random(label)
        return bytes(int(128 + 60 * pattern.choice([-1, 1]) + shade.uniform(-40, 40)) for _ in range(64))

    def image(self, index):
        return memoryview(self.pixels(index)).cast('B', [8, 8])

    def label(self, index):
        return index % 10

    def __getitem__(self, index):
        return self.image(index), self.label(index)

train = Digits(60, 1)

def test():
    return Digits(100, 2)
";

/// The host with these arguments, and Python's interpreter.
fn with_python<'a>(place: &'a Place, arguments: &str) -> Outcome<'a> {
    place.outcome(place.command(arguments).env("DRO_PYTHON", "python3"))
}

#[test]
fn data_sets_of_a_python_file_are_trained_on_and_judged() {
    let place = Place::empty();
    write(&place, "mine.py", format!("{DATASETS}\nval = Digits(50, 3)\n"));
    with_python(&place, &train("mine.py")).succeeds();
    let record = place.run("run").record();
    assert_eq!(record["data"]["class_names"][9], "digit 9");
    assert_eq!((&record["data"]["test_points"], &record["data"]["train_points"]), (&100.into(), &60.into()));
    with_python(&place, "eval run --attack fgsm.so --points 20").ended_with(0);
    with_python(&place, &train("mine.py:val").replace("--out run", "--out other")).succeeds();
    let record = place.run("other").record();
    assert_eq!(record["data"]["test_points"], 50);
    assert!(record["experiment"]["data"]["name"].as_str().expect("a name").ends_with("/mine.py:val"));

    // What the file gives is compared with what it gave.
    write(&place, "mine.py", DATASETS.replace("Digits(100, 2)", "Digits(100, 4)"));
    let eval = "eval run --attack fgsm.so --points 20";
    with_python(&place, eval).fails(2, &["the run names the code", "mine.py, which is not trusted here"]);
    place.host("trust mine.py").succeeds();
    let outcome = with_python(&place, eval).fails(2, &["data file test is not the recorded one"]);
    drop(outcome);
    // A file without a set of training images can be judged only.
    write(&place, "mine.py", DATASETS.replace("train = ", "other = "));
    let refused = with_python(&place, &train("mine.py").replace("--out run", "--out third")).ended_with(2);
    refused.explains(&["has no training images: there is only a test split"]);
    // A function that trains is no data set.
    write(&place, "mine.py", DATASETS.replace("train = ", "def train(network): pass\nother = "));
    with_python(&place, &train("mine.py").replace("--out run", "--out third"))
        .ended_with(2)
        .explains(&["has no training images"]);
}

/// A data set like that of [`DATASETS`] with these lines instead of a method's, and the first line of
/// its refusal.
#[track_caller]
fn refuses(place: &Place, lines: &str, parts: &[&str], advice: &[&str]) {
    write(place, "mine.py", format!("{DATASETS}\nclass Odd(Digits):\n{lines}\n\ntest = Odd(20, 2)\n"));
    let before = place.contents();
    let outcome = with_python(place, &train("mine.py"));
    let outcome = outcome.fails(2, parts).explains(advice);
    assert!(place.contents() == before, "files have changed\n{}", outcome.report());
}

#[test]
fn items_that_are_no_images_with_labels_are_refused() {
    let place = Place::empty();
    let floats = |value: &str| {
        format!(
            "    def image(self, index):\n        import struct\n        return memoryview(struct.pack('64f', *[{value}] * 64)).cast('B').cast('f', [8, 8])"
        )
    };
    let label = |value: &str| format!("    def label(self, index):\n        return {value}");
    let item = |value: &str| format!("    def __getitem__(self, index):\n        return {value}");
    let cases: [(String, &[&str], &[&str]); 13] = [
        (floats("-1.5"), &["values from -1.5000", "expected floats from 0 to 1"], &["transforms.Normalize", "mean and std"]),
        (floats("float('nan')"), &["holds NaN"], &[]),
        (floats("255.0"), &["values from 255.0000"], &["divide the images by 255"]),
        (label("'cat'"), &["the label of item 0 of test is the text 'cat'"], &["number the classes"]),
        (label("[0, 1, 0]"), &["the label of item 0 of test has the shape (3,), as a one-hot label"], &["argmax"]),
        (label("0.5"), &["the label of item 0 of test is float 0.5: expected a whole number"], &["int(label)"]),
        (label("-1"), &["has labels from -1 to"], &["relabel=true"]),
        (item("self.image(index)"), &["item 0 of test is a memoryview: expected a pair (image, label)"], &[]),
        (item("('x', 1)"), &["the image of item 0 of test is str: expected a tensor"], &[]),
        (
            "    def image(self, index):\n        return memoryview(bytes(16)).cast('B', [4, 4]) if index == 7 else super().image(index)".to_owned(),
            &["item 7 of test is of shape (4, 4)", "expected (8, 8)"],
            &["Resize"],
        ),
        (
            "    def image(self, index):\n        return memoryview(random.randbytes(64)).cast('B', [8, 8])".to_owned(),
            &["item 0 of test differs when it is read again"],
            &["--crop and --flip"],
        ),
        (
            "    def label(self, index):\n        if index == 13:\n            raise KeyError('no such row')\n        return 1".to_owned(),
            &["fails in test: KeyError: 'no such row'"],
            &["in label: raise KeyError('no such row')"],
        ),
        ("    def __len__(self):\n        return 0".to_owned(), &["test is empty: expected at least one item"], &[]),
    ];
    for (lines, parts, advice) in &cases {
        refuses(&place, lines, parts, advice);
    }
}

#[test]
fn a_python_file_that_fails_leaves_or_blocks_is_refused() {
    let place = Place::empty();
    for (text, parts, advice) in [
        (
            "import no_such_module",
            &["does not import: ModuleNotFoundError: No module named 'no_such_module'"][..],
            &["mine.py:1 in <module>"][..],
        ),
        ("test = (", &["does not import: SyntaxError"], &["mine.py:1"]),
        ("import sys\nsys.exit(4)", &["calls sys.exit(4)"], &["mine.py:2"]),
        (
            "import os\nprint('farewell', flush=True)\nos._exit(5)",
            &["ends its process with exit code 5, while Python imports mine.py"],
            &["farewell"],
        ),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", &["ends its process by signal 9"], &[]),
        ("val = []", &["there is no test in the file"], &["it has val"]),
        ("test = 3", &["test is int: expected a torch.utils.data.Dataset"], &[]),
        (
            "import os\nos.chdir('/')\ndef test():\n    raise ValueError('a\\nb')",
            &["fails in test: ValueError: a"],
            &["mine.py:4 in test"],
        ),
    ] {
        write(&place, "mine.py", text);
        let before = place.contents();
        let outcome = with_python(&place, &train("mine.py")).fails(2, parts).explains(advice);
        assert!(place.contents() == before, "files have changed\n{}", outcome.report());
    }
    write(&place, "mine.py", "import time\nwhile True: time.sleep(1)");
    let mut command = place.command(&train("mine.py"));
    let blocked = place.outcome(command.env("DRO_PYTHON", "python3").env("DRO_PYTHON_SECONDS", "2"));
    blocked
        .fails(2, &["makes no progress: Python imports mine.py, and nothing more for 2 seconds"])
        .explains(&["DRO_PYTHON_SECONDS=SECONDS (now 2)"]);
    for (variable, value, part) in [
        ("DRO_PYTHON", "/no/such/python", "DRO_PYTHON: there is no Python interpreter /no/such/python"),
        ("DRO_PYTHON", "no-such-python", "DRO_PYTHON: there is no Python interpreter no-such-python"),
        ("DRO_PYTHON_SECONDS", "soon", "DRO_PYTHON_SECONDS: expected a whole number of seconds"),
    ] {
        let mut command = place.command(&train("mine.py"));
        place.outcome(command.env(variable, value)).fails(2, &[part]);
    }
    place.refuses(&train("theirs.py:test"), &["there is no Python file", "theirs.py"]);
    place.refuses(&train("mine.py,sample=3"), &["there is no option sample"]);
}
