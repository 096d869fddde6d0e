//! Bad input: a clear error (the problem, both values, a remedy), and no file is lost.

use crate::data::{Samples, digits, idx, write, write_image_tree};
use crate::harness::{Outcome, Place, built, edit, patch};
use libc::SIGINT;
use std::fs;
use std::path::{Path, PathBuf};

const TRAIN: &str = "train --recipe algorithm-1 --data digits --threads 1 --batch 20 --epochs 1 --out run";
const LINEAR: &str = "--model bad_plugins.so,plugin=linear";

/// Training with these flags is refused before anything is written.
#[track_caller]
fn train_refuses<'a>(place: &'a Place, flags: &str, parts: &[&str]) -> Outcome<'a> {
    place.refuses(&format!("{TRAIN} {flags}"), parts)
}

// ----------------------------------------------------------------------------------- plugins

#[test]
fn a_file_that_is_not_a_library_is_refused() {
    let place = Place::with_digits(8, 60);
    fs::write(place.path("notes.so"), "remember the milk").expect("written");
    train_refuses(&place, "--sampler notes.so", &["notes.so is not a shared library"]);
    let truncated = place.copy_built("liblangevin.so");
    edit(&truncated, |contents| contents.truncate(contents.len() / 2));
    train_refuses(&place, "--sampler ./langevin.so", &["liblangevin.so is not a shared library"]);
}

#[test]
fn a_library_without_a_manifest_is_refused() {
    let place = Place::with_digits(8, 60);
    let maps = fs::read_to_string("/proc/self/maps").expect("this process's libraries");
    let mut libraries = maps.lines().filter_map(|line| line.split_whitespace().last());
    let system: PathBuf = libraries.find(|path| path.contains("/libc.so")).expect("libc").into();
    fs::copy(system, place.path("other.so")).expect("copied");
    train_refuses(
        &place,
        "--sampler other.so",
        &["other.so is a shared library without a plugin's manifest"],
    )
    .explains(&["plugin_api's export macros"]);
}

#[test]
fn a_library_for_another_contract_is_refused() {
    let place = Place::with_digits(8, 60);
    patch(&place.copy_built("liblangevin.so"), r#""contract":1,"#, r#""contract":7,"#);
    train_refuses(
        &place,
        "--sampler ./langevin.so",
        &["langevin.so was built for contract 7; this host supports contract 1"],
    )
    .explains(&["liblangevin.so (langevin", "rebuild"]);
}

#[test]
fn a_library_for_another_libtorch_is_refused() {
    let place = Place::with_digits(8, 60);
    patch(&place.copy_built("liblangevin.so"), r#""libtorch":"2.13."#, r#""libtorch":"2.12."#);
    train_refuses(
        &place,
        "--sampler ./langevin.so",
        &["langevin.so was built for libtorch 2.12.", "; this host runs 2.13."],
    )
    .explains(&["liblangevin.so (langevin", "rebuild"]);
}

#[test]
fn a_manifest_with_a_plugin_that_is_not_exported_is_refused() {
    let place = Place::with_digits(8, 60);
    patch(&place.copy_built("liblangevin.so"), r#""name":"langevin""#, r#""name":"langevim""#);
    train_refuses(&place, "--sampler ./langevin.so", &["langevin.so names `langevim`", "does not export it"]);
}

#[test]
fn plugins_of_another_kind_are_refused() {
    let place = Place::with_digits(8, 60);
    train_refuses(&place, "--sampler apgd.so", &["apgd.so is an attack; expected a sampler"]);
    train_refuses(&place, "--sampler cnn.so", &["cnn.so is a model; expected a sampler"]);
    train_refuses(&place, "--model langevin.so", &["langevin.so is a sampler; expected a model"]);
    place.host(&format!("{TRAIN} {LINEAR} --sampler none")).succeeds();
    place.refuses("eval run --attack cnn.so", &["cnn.so is a model; expected an attack or a sampler"]);
}

#[test]
fn options_that_are_unknown_out_of_range_or_of_another_type_are_refused() {
    let place = Place::with_digits(8, 60);
    for (plugin, parts) in [
        ("--sampler langevin.so,size=1", ["langevin", "`size`", "noise, sign, step_size"].as_slice()),
        ("--sampler langevin.so,noise=-1", &["langevin", "`noise`", "at least 0", "got -1"]),
        ("--sampler langevin.so,sign=3", &["langevin", "`sign`", "3", "boolean"]),
        ("--sampler langevin.so,step_size=big", &["langevin", "`step_size`", "\"big\"", "f64"]),
        ("--sampler langevin.so,noise", &["option=value", "`noise`"]),
        ("--sampler langevin.so,noise=1,noise=2", &["`noise`", "twice"]),
        ("--sampler pgd.so,steps=0", &["`steps`", "1 to 65534", "`0`"]),
        ("--model cnn.so,arch=C", &["cnn", "`arch`", "`C`", "`A`", "`B`"]),
        ("--model cnn.so,steps=2", &["cnn", "`steps`"]),
    ] {
        train_refuses(&place, plugin, parts);
    }
}

#[test]
fn a_missing_plugin_is_refused_with_the_paths_that_were_tried() {
    let place = Place::with_digits(8, 60);
    let mut command = place.command(&format!("{TRAIN} --sampler nowhere.so"));
    let beside = built("libnowhere.so").display().to_string();
    place
        .outcome(command.env("DRO_PLUGIN_PATH", "/some/folder:other"))
        .fails(2, &["nowhere.so was not found"])
        .explains(&[" libnowhere.so", &beside, "/some/folder/nowhere.so", "other/libnowhere.so"]);
}

#[test]
fn a_library_of_several_plugins_needs_a_name() {
    let place = Place::with_digits(8, 60);
    train_refuses(&place, "--sampler bad_plugins.so", &["bad_plugins.so has 10 plugins", "a sampler"])
        .explains(&["plugin=NAME", "momentum", "wrong-shape"]);
    train_refuses(&place, "--sampler bad_plugins.so,plugin=x", &["bad_plugins.so", "`x`", "a sampler"])
        .explains(&["plugin=NAME", "momentum", "wrong-shape"]);
}

#[test]
fn samplers_that_break_the_contract_end_the_run() {
    for (sampler, parts) in [
        ("wrong-shape", ["wrong-shape: step", "shape [20, 64]", "expected [20, 1, 8, 8]"].as_slice()),
        ("wrong-dtype", &["wrong-dtype: step", "dtype Double", "expected Float"]),
        ("panics", &["panics: step", "panicked at", "samplers.rs:", "cannot move 20 particles"]),
        // This sampler returns NaN at its third call.
        ("nan", &["nan", "NaN", "at update 3"]),
        ("escapes", &["escapes", "left the threat model", "at update 1"]),
    ] {
        let place = Place::with_digits(8, 60);
        let command = format!("{TRAIN} {LINEAR} --sampler bad_plugins.so,plugin={sampler}");
        place.host(&command).fails(1, parts);
        let run = place.run("run");
        assert_eq!(run.record()["plugins"]["sampler"]["manifest"]["name"], sampler, "the run stays");
        assert_eq!(run.newest_update(), None, "nothing bad is saved");
    }
}

#[test]
fn models_that_break_the_contract_end_the_run() {
    train_refuses(
        &Place::with_digits(8, 60),
        "--model bad_plugins.so,plugin=wrong-logits",
        &["wrong-logits: forward", "shape [2, 11]", "expected [2, 10]"],
    );
    train_refuses(
        &Place::with_digits(8, 60),
        "--model nonconforming.so,plugin=without-a-graph",
        &["without-a-graph: forward returned logits without a gradient"],
    );
    for (model, mode, missing) in
        [("detached", "--mode fused", "images"), ("detached", "--mode faithful", "images")]
    {
        let flags = format!("{TRAIN} --model nonconforming.so,plugin={model} {mode}");
        let message = format!("model {model} has no gradient with respect to its {missing}: ");
        Place::with_digits(8, 60).host(&flags).fails(1, &[&message]);
    }
}

#[test]
fn a_loss_that_becomes_nan_ends_the_run() {
    let place = Place::with_digits(8, 60);
    // An epoch has ten updates; the model's logits become NaN after 13 calls.
    let flags = "--model bad_plugins.so,plugin=explodes --sampler none --batch 6 --epochs 3";
    let command = TRAIN.replace("--batch 20 --epochs 1", flags);
    place
        .host(&command)
        .fails(1, &["the loss became NaN or infinite at update 14"])
        .explains(&["run keeps its last checkpoint"]);
    assert_eq!(place.run("run").newest_update(), Some(10));
    assert_eq!(place.run("run").metrics().len(), 1);
    let unfinished = ["training is not finished: 1 of 3 epochs"];
    let printed = place.host("eval run --json --attack fgsm.so").succeeds_with_warning(&unfinished).json();
    assert!(printed["clean"].as_f64().is_some_and(|clean| clean > 0.2), "{printed}");
}

#[test]
fn weights_that_became_nan_in_the_last_update_are_not_saved() {
    let place = Place::with_digits(8, 60);
    let flags = "--model cnn.so,arch=B --sampler none --epochs 1 --learning-rate 1e38 --schedule constant";
    let command = TRAIN.replace("--epochs 1", flags).replace("--batch 20", "--batch 60");
    place.host(&command).fails(1, &["became NaN or infinite at update 1"]);
    assert_eq!(place.run("run").newest_update(), None);
}

#[test]
fn a_folder_in_which_another_process_trains_is_refused() {
    let place = Place::with_digits(8, 60);
    place.host(&format!("{TRAIN} {LINEAR} --sampler none")).succeeds();
    let lock = fs::File::create(place.path("run/.lock")).expect("a lock");
    lock.try_lock().expect("free");
    place.host("train --resume run").fails(2, &["another process is training in run"]);
}

// -------------------------------------------------------------------------------------- data

#[test]
fn damaged_idx_files_are_refused() {
    type Damage = fn(&mut Vec<u8>);
    let damages: [(&str, Damage, &[&str]); 6] = [
        (
            "train-images-idx3-ubyte",
            |contents| contents.truncate(1000),
            &["is truncated", "expected 3856 bytes", "got 1000"],
        ),
        ("train-labels-idx1-ubyte", |contents| contents.push(1), &["trailing", "expected 68", "got 69"]),
        (
            "train-images-idx3-ubyte",
            |contents| *contents = b"\x89PNG\r\n and so on".into(),
            &["not an IDX file", "0x00000803", "0x89504e47"],
        ),
        (
            "t10k-images-idx3-ubyte",
            |contents| *contents = idx(&[100], &[0; 100]),
            &["holds labels", "expected images"],
        ),
        ("t10k-labels-idx1-ubyte", |contents| *contents = idx(&[99], &[0; 99]), &["100 images", "99 labels"]),
        (
            "train-labels-idx1-ubyte",
            |contents| *contents = b"\x1f\x8b and so on".into(),
            &["corrupt", "gzip"],
        ),
    ];
    for (file, damage, parts) in damages {
        let place = Place::with_digits(8, 60);
        edit(&place.path("digits").join(file), damage);
        train_refuses(&place, LINEAR, &[["digits/", file].concat().as_str()]);
        train_refuses(&place, LINEAR, parts).explains(&["fix"]);
    }
}

#[test]
fn a_label_of_no_class_is_refused() {
    let place = Place::empty();
    let samples = Samples { pixels: vec![100; 4 * 64], labels: vec![0, 1, 2, 10] };
    write(&place.path("data/mnist"), 8, &samples, &samples);
    place.refuses("train --out run", &["train-labels-idx1-ubyte has label 10 at index 3", "0 to 9"]);
}

#[test]
fn missing_data_are_refused() {
    let place = Place::with_digits(8, 60);
    let train = |data: &str| format!("train --recipe algorithm-1 --data {data} --out run");
    place.refuses(&train("mnist"), &["mnist", "data/mnist"]).explains(&["host data fetch mnist"]);
    // The printed ways work.
    fs::create_dir(place.path("elsewhere")).expect("a folder");
    write(&place.path("data/mnist"), 8, &digits(8, 60, 10, 1), &digits(8, 60, 10, 2));
    let command = |text: &str| {
        let mut command = place.command(text);
        command.current_dir(place.path("elsewhere"));
        command
    };
    let train_mnist =
        format!("train --recipe algorithm-1 --data mnist {LINEAR} --sampler none --epochs 1 --out");
    place
        .outcome(&mut command(&format!("{train_mnist} run")))
        .fails(2, &["data set mnist is missing: there is no folder ", "elsewhere/data/mnist"])
        .explains(&["--data-folder FOLDER", "DRO_DATA", "host data fetch mnist --data-folder "]);
    place.outcome(&mut command(&format!("{train_mnist} run --data-folder ../data"))).ended_with(0);
    place.outcome(command(&format!("{train_mnist} other")).env("DRO_DATA", place.path("data"))).ended_with(0);
    place.refuses(&train("nowhere"), &["nowhere", "no such folder"]).explains(&["mnist, fashion-mnist"]);
    fs::remove_file(place.path("digits/t10k-labels-idx1-ubyte")).expect("removed");
    place.refuses(&train("digits"), &["digits has no file t10k-labels-idx1-ubyte"]);
}

#[test]
fn a_cifar_file_of_a_wrong_size_is_refused() {
    let place = Place::empty();
    let folder = place.path("pictures");
    fs::create_dir(&folder).expect("a folder");
    for batch in
        ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]
    {
        fs::write(folder.join(format!("{batch}.bin")), [1; 3073]).expect("written");
    }
    let train = format!("train --recipe algorithm-1 --data pictures --threads 1 {LINEAR} --epochs 1 --out");
    let equal = ["all images have the label 1: there is nothing to distinguish"];
    place.host(&format!("{train} good")).succeeds_with_warning(&equal).explains(&[
        "warning: all 5 training images are equal",
        "warning: the highest value in the training images is 1: expected pixels from 0 to 255",
    ]);
    let findings = place.run("good").record()["data"]["findings"].clone();
    assert_eq!(findings.as_array().map(Vec::len), Some(3), "{findings}");
    edit(&folder.join("data_batch_3.bin"), |contents| contents.truncate(3000));
    place.refuses(&format!("{train} run"), &["data_batch_3.bin", "multiple of 3073 bytes", "got 3000"]);
}

#[test]
fn damaged_folders_of_images_are_refused() {
    let place = Place::empty();
    let train =
        format!("train --recipe algorithm-1 --data pictures --threads 1 {LINEAR} --epochs 1 --out run");
    let fresh = || {
        let _ = fs::remove_dir_all(place.path("pictures"));
        write_image_tree(&place.path("pictures"), 8, 20);
    };
    let save = |file: &str, width: u32, height: u32, colour: image::ExtendedColorType| {
        let bytes = vec![100; (width * height) as usize * usize::from(colour.channel_count())];
        image::save_buffer(place.path(file), &bytes, width, height, colour).expect("saved");
    };
    let (grey, transparent) = (image::ExtendedColorType::L8, image::ExtendedColorType::La8);

    fresh();
    edit(&place.path("pictures/train/digit-3/3.png"), |contents| contents.truncate(60));
    place.refuses(&train, &["cannot decode", "pictures/train/digit-3/3.png"]).explains(&["fix"]);
    edit(&place.path("pictures/train/digit-3/3.png"), |contents| *contents = b"remember the milk".into());
    place.refuses(&train, &["cannot decode", "pictures/train/digit-3/3.png"]).explains(&["fix"]);
    save("pictures/train/digit-3/3.png", 9, 8, grey);
    place.refuses(
        &train,
        &["pictures/train/digit-3/3.png", "8 x 9 pixels", "expected 8 x 8", "pictures/train/"],
    );
    save("pictures/train/digit-3/3.png", 8, 8, transparent);
    place.refuses(&train, &["pictures/train/digit-3/3.png has transparent parts"]).explains(&["fix"]);

    fresh();
    fs::remove_dir_all(place.path("pictures/test/digit-7")).expect("removed");
    place
        .refuses(&train, &["class digit-7 is in", "pictures/train only", "pictures/test"])
        .explains(&["fix"]);
    fs::create_dir(place.path("pictures/test/digit-7")).expect("made");
    place.refuses(&train, &["pictures/test/digit-7 holds no images"]);
    save("pictures/test/stray.png", 8, 8, grey);
    place
        .refuses(&train, &["pictures/test/stray.png is not in the folder of a class"])
        .explains(&["SPLIT/CLASS/IMAGE"]);
    fs::remove_dir_all(place.path("pictures/test")).expect("removed");
    place.refuses(&train, &["pictures has no folder test or val"]);
    fs::remove_dir_all(place.path("pictures/train")).expect("removed");
    place.refuses(&train, &["pictures holds no data set", "images in train/CLASS"]);
    fs::create_dir(place.path("pictures/train")).expect("made");
    fs::create_dir(place.path("pictures/test")).expect("made");
    place.refuses(&train, &["has too few classes", "got 0"]);
}

#[test]
fn images_whose_header_or_colours_cannot_be_trusted_are_refused() {
    let place = Place::empty();
    let train = format!("train --recipe algorithm-1 --data pictures {LINEAR} --epochs 1 --out run");
    let inputs = Path::new(env!("CARGO_MANIFEST_DIR")).join("inputs");
    for (input, parts) in [
        ("header-60000x60000.png", ["claims 60000 x 60000 pixels", "69 bytes"]),
        ("header-65500x65500.jpg", ["claims 65500 x 65500 pixels", "347 bytes"]),
        ("plain-cmyk-no-adobe-cyan.jpg", ["has 4 components", "expected grey or RGB"]),
    ] {
        let ending = input.rsplit('.').next().expect("an ending");
        let _ = fs::remove_dir_all(place.path("pictures"));
        for class in ["train/a", "train/b", "test/a", "test/b"] {
            let folder = place.path("pictures").join(class);
            fs::create_dir_all(&folder).expect("a folder");
            fs::copy(inputs.join(input), folder.join(format!("0.{ending}"))).expect("copied");
        }
        place.refuses(&train, &parts).explains(&["pictures/train/", &format!("/0.{ending}"), "fix"]);
    }
}

#[test]
fn a_gzip_file_that_expands_to_more_than_its_header_announces_is_refused() {
    let place = Place::with_digits(8, 60);
    fs::remove_file(place.path("digits/train-images-idx3-ubyte")).expect("removed");
    let file = place.path("digits/train-images-idx3-ubyte.gz");
    // What `head -c 1000000000 /dev/zero | gzip` would give, in small.
    let bomb = |header: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        std::io::Write::write_all(&mut encoder, header).expect("compressed");
        std::io::copy(&mut std::io::Read::take(std::io::repeat(0), 50_000_000), &mut encoder)
            .expect("compressed");
        encoder.finish().expect("compressed")
    };
    fs::write(&file, bomb(&idx(&[60, 8, 8], &[]))).expect("written");
    train_refuses(&place, LINEAR, &["train-images-idx3-ubyte.gz has trailing bytes", "expected 3856"]);
    fs::write(&file, bomb(&idx(&[60_000, 60_000, 60_000], &[]))).expect("written");
    train_refuses(
        &place,
        LINEAR,
        &["train-images-idx3-ubyte.gz is too large", "announces 216000000000016 bytes"],
    );
}

#[test]
fn data_in_another_format_are_called_by_its_name() {
    let place = Place::empty();
    fs::create_dir_all(place.path("data/cifar-10/cifar-10-batches-mat")).expect("a folder");
    fs::write(place.path("data/cifar-10/cifar-10-batches-mat/data_batch_1.mat"), b"MATLAB 5.0")
        .expect("written");
    let train = |data: &str| format!("train --recipe algorithm-1 --data {data} --out run");
    for data in ["cifar-10", "data/cifar-10", "data/cifar-10/cifar-10-batches-mat"] {
        place
            .refuses(&train(data), &["data/cifar-10/cifar-10-batches-mat", "is CIFAR-10's MATLAB version"])
            .explains(&["host data fetch cifar-10"]);
    }
}

#[test]
fn text_files_that_are_not_utf_8_are_refused() {
    let place = Place::with_digits(8, 60);
    place.host(&format!("{TRAIN} {LINEAR} --sampler none")).succeeds();
    let words = "\u{feff}[train]\r\nepochs = 3\r\n".encode_utf16();
    fs::write(place.path("mine.toml"), words.flat_map(u16::to_le_bytes).collect::<Vec<_>>())
        .expect("written");
    for command in ["train --config mine.toml --out other", "sweep mine.toml", "eval run --suite mine.toml"] {
        place.refuses(command, &["mine.toml is UTF-16: expected a text in UTF-8"]).explains(&["iconv"]);
    }
}

#[test]
fn images_that_do_not_fit_the_model_are_refused() {
    let place = Place::with_digits(8, 60);
    train_refuses(&place, "--model cnn.so,arch=A", &["cnn", "at least 9x9 pixels", "got 8x8"]);
}

#[test]
fn too_many_training_points_are_refused() {
    let place = Place::with_digits(8, 60);
    train_refuses(&place, "--train-points 61", &["train_points", "1 to 60", "got 61"]);
    train_refuses(&place, "--validation-points 60", &["validation_points", "fewer than the 60", "got 60"]);
}

// ------------------------------------------------------------------------------- the command

#[test]
fn an_output_folder_that_is_not_empty_is_refused() {
    let place = Place::with_digits(8, 60);
    let command = format!("{TRAIN} {LINEAR} --sampler none");
    place.host(&command).succeeds();
    place.refuses(&command, &["run already holds a run"]).explains(&["--out", "--resume run"]);
    let elsewhere = |out: &str| command.replace("--out run", &format!("--out {out}"));
    place.refuses(&elsewhere("digits"), &["digits already exists and is not empty"]).explains(&["--out"]);
    let file = "digits/train-labels-idx1-ubyte";
    place.refuses(&elsewhere(file), &[file, "already exists"]);
    place.refuses(&elsewhere(&format!("{file}/run")), &["cannot create", file]);
    fs::create_dir(place.path("empty")).expect("a folder");
    place.host(&elsewhere("empty")).succeeds();
}

#[test]
fn invalid_values_are_refused() {
    let place = Place::with_digits(8, 60);
    for (flags, parts) in [
        ("--epsilon=-1", ["threat.epsilon", "at least 0", "got -1"].as_slice()),
        ("--epsilon x", &["--epsilon", "'x'"]),
        (
            "--channel-scale 1,1/2",
            &["threat.channel_scale", "each channel of the images, of which there are 1, got 2: 1,0.5"],
        ),
        ("--channel-scale 0.5", &["threat.channel_scale", "from 0 to 1", "the largest 1, got 0.5"]),
        ("--channel-scale 1,2", &["threat.channel_scale", "from 0 to 1", "got 1,2"]),
        ("--channel-scale 1,1,1", &["threat.channel_scale", "a channel with a smaller radius, got 1,1,1"]),
        (
            "--channel-scale 1,0 --norm l2 --epsilon 0.5",
            &["threat.channel_scale", "above 0 in norm l2, got 1,0"],
        ),
        ("--channel-scale 1,x", &["--channel-scale", "a number, or a fraction", "`x`"]),
        ("--channel-scale 1,0 --epsilon 0.6", &["threat.channel_scale", "at most 0.5", "got 0.6"]),
        (
            "--channel-scale 1,0 --epsilon 0.4 --epsilon-scale 2",
            &["threat.channel_scale", "at most 0.5", "got 0.8"],
        ),
        (
            "--channel-scale 1,0 --domain-only true --epsilon-scale 1 --warmup-epsilon 0",
            &["train.domain_only and threat.channel_scale", "channels have no radius"],
        ),
        ("--momentum 1", &["train.momentum", "below 1", "got 1"]),
        ("--learning-rate 0", &["train.learning_rate", "above 0", "got 0"]),
        ("--milestones 0.5", &["train.milestones", "only the step schedule"]),
        ("--schedule step --milestones 0.5,0.2", &["train.milestones", "got [0.5, 0.2]"]),
        (
            "--schedule one-cycle --warmup-epochs 1",
            &["train.warmup_epochs", "one-cycle", "already rises from 0"],
        ),
        ("--patience 3", &["train.patience", "the epochs are not scored"]),
        ("--patience 0 --select best", &["train.patience", "at least 1", "got 0"]),
        ("--trace-at 1", &["train.trace_at", "there is no trace"]),
        ("--trace fgsm.so --trace-at 1,0.5", &["train.trace_at", "got [1.0, 0.5]"]),
        ("--trace fgsm.so --trace-at 0", &["train.trace_at", "got [0.0]"]),
        (
            "--mode faithful --trace fgsm.so --trace-at 3",
            &["train.trace_at", "the run ends after 2 passes per sample"],
        ),
        ("--trace fgsm.so --trace-points 101", &["train.trace_points", "at most 100", "got 101"]),
        ("--trace fgsm.so --trace-points 0", &["train.trace_points", "at least 1", "got 0"]),
        ("--trace cnn.so", &["cnn.so is a model; expected an attack or a sampler"]),
        ("--particles 0", &["train.particles", "1 to 65535", "got 0"]),
        ("--checkpoint-every 0", &["train.checkpoint_every", "at least 1", "got 0"]),
        ("--optimizer lion", &["--optimizer", "'lion'"]),
        ("--device gpu", &["train.device", "cpu, cuda or cuda:N", "`gpu`"]),
        ("--surprise", &["'--surprise'"]),
    ] {
        train_refuses(&place, flags, parts);
    }
    place.refuses(
        "train --recipe algorithm-1 --data digits --threads 0 --out run",
        &["train.threads", "at least 1", "got 0"],
    );
    place.refuses(
        "train --recipe algorithm-1 --data digits --epochs 0 --out run",
        &["train.epochs", "at least 1", "got 0"],
    );
    place.refuses(
        "train --recipe algorithm-1 --data digits --batch 0 --out run",
        &["train.batch", "at least 1", "got 0"],
    );
    place.refuses("train --resume run --batch 3", &["--resume", "cannot be used with --batch"]);
    place.refuses(
        "train --recipe algorithm-1 --data digits --norm l2 --out run",
        &["threat.norm: l2 needs an epsilon of its own: 0.3 is a radius in linf"],
    );
    place
        .refuses("train --epsilon 8:255 --out run", &["invalid value '8:255' for '--epsilon <RADIUS>'"])
        .explains(&["a fraction such as 8/255"]);
}

#[test]
fn invalid_values_of_an_evaluation_are_refused() {
    let place = Place::with_digits(8, 60);
    place.host(&format!("{TRAIN} {LINEAR} --sampler none")).succeeds();
    place.refuses("eval run --attack fgsm.so --restarts 0", &["--restarts", "0"]);
    place.refuses(
        "eval run --attack fgsm.so --channel-scale 1,1/2",
        &["threat.channel_scale", "of which there are 1, got 2"],
    );
    place.refuses(
        "eval run --channel-scale 1,0 --epsilon 0.2,0.7",
        &["threat.channel_scale", "at most 0.5, half of the domain, got 0.7"],
    );
    place.refuses("eval run --attack fgsm.so --device gpu", &["cpu, cuda or cuda:N", "`gpu`"]);
    place.refuses("eval run --attack fgsm.so --threads 0", &["threads", "at least 1", "got 0"]);
}

#[test]
fn mistakes_in_a_config_file_are_named_with_their_line() {
    let place = Place::with_digits(8, 60);
    for (text, line, parts) in [
        ("[train]\nepochs = 3\nepoch = 3\n", 3, ["unknown field `epoch`"].as_slice()),
        ("\nmodell = \"cnn.so\"\n", 2, &["unknown field `modell`"]),
        ("[train]\nepochs = \"three\"\n", 2, &["string \"three\"", "expected usize"]),
        ("[threat]\nnorm = \"l7\"\n", 2, &["`l7`", "`linf`", "`l2`"]),
        ("[train\n", 1, &[]),
    ] {
        fs::write(place.path("experiment.toml"), text).expect("written");
        let place_in_file = format!("experiment.toml, line {line}: ");
        let parts: Vec<_> = parts.iter().copied().chain([place_in_file.as_str()]).collect();
        place.refuses("train --config experiment.toml --out run", &parts);
    }
    // Errors that only the plugin can detect have the line, too.
    fs::write(
        place.path("experiment.toml"),
        "model = \"cnn.so\"\nsampler = \"langevin.so,size=1\"\n[data]\nname = \"digits\"\n",
    )
    .expect("written");
    place
        .refuses("train --config experiment.toml --out run", &["langevin", "`size`", "step_size"])
        .explains(&["experiment.toml, line 2"]);
    place.refuses("train --config absent.toml --out run", &["cannot read absent.toml"]);
}

#[test]
fn a_missing_gpu_is_refused() {
    if Path::new("/dev/nvidiactl").exists() {
        return;
    }
    let place = Place::with_digits(8, 60);
    let outcome = train_refuses(&place, "--device cuda", &[]);
    let line = outcome.first_line();
    assert!(line.contains("CUDA") || line.contains("GPU"), "{}", outcome.report());
    outcome.explains(&["--device cpu"]);
}

#[test]
fn an_evaluation_without_a_run_or_a_checkpoint_is_refused() {
    let place = Place::with_digits(8, 60);
    place.refuses("eval nowhere", &["nowhere holds no run", "nowhere/run.json"]);
    place.refuses("train --resume digits", &["digits holds no run", "digits/run.json"]);

    place.host(&format!("{TRAIN} {LINEAR} --sampler none")).succeeds();
    fs::remove_dir_all(place.run("run").newest("")).expect("removed");
    place.refuses("eval run --attack fgsm.so", &["run has no checkpoint"]).explains(&["--resume run"]);

    edit(&place.path("run/run.json"), |contents| contents.truncate(100));
    place.refuses("eval run --attack fgsm.so", &["cannot understand run/run.json"]);
}

// ---------------------------------------------------------------------------------- the disk

#[test]
fn a_disk_that_is_full_at_a_checkpoint_leaves_the_last_one_intact() {
    let place = Place::with_digits(8, 200);
    let train = "train --recipe algorithm-1 --data digits --threads 1 --batch 5 --sampler langevin.so --epsilon 0.1 --epochs 2";
    place.host(&format!("{train} --out whole")).succeeds();
    let command = format!("{train} --checkpoint-every 3 --out run");
    place.interrupt(&command, "run", SIGINT, |_| true).was_interrupted(&["run"]);
    let run = place.run("run");
    let before = run.checkpoints();
    let weights = run.weights();

    let newest = run.newest("").strip_prefix(place.path("")).expect("in the folder").display().to_string();
    place
        .host_on_a_full_disk(256, "train --resume run")
        .fails(1, &["cannot write run/checkpoints/", ".safetensors", "File too large"])
        .explains(&[newest.trim_end_matches('/'), "is untouched", "--resume"]);
    assert_eq!(run.checkpoints(), before);
    assert!(run.weights() == weights);
    let names = fs::read_dir(place.path("run/checkpoints")).expect("a folder");
    assert_eq!(names.count(), before.len(), "nothing half written is left behind");

    place.host("train --resume run").succeeds();
    run.assert_same_as(&place.run("whole"));
}
