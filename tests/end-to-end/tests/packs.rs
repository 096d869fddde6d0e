//! Packs: data sets that need not fit into memory.

use crate::data::{TEST_POINTS, digits, write_image_tree, write_rectangles};
use crate::harness::{Place, edit, json_file, sha256, write_sealed};
use crate::ranks::has_gloo;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Ordinary training of one epoch on these data.
fn train(data: &str, out: &str) -> String {
    format!(
        "train --recipe algorithm-1 --data {data} --model bad_plugins.so,plugin=linear --sampler none --threads 1 \
         --batch 20 --epochs 2 --out {out}"
    )
}

/// The digests of the files of a folder.
fn digests(folder: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry"));
    entries.map(|entry| (entry.file_name().to_string_lossy().into_owned(), sha256(&entry.path()))).collect()
}

#[test]
fn a_run_on_a_pack_is_that_on_its_source_bit_for_bit() {
    let place = Place::with_digits(8, 90);
    let packed = place.host("data pack digits --out pack --json").succeeds().json();
    assert_eq!(packed["pack"]["image"], json!([1, 8, 8]));
    assert_eq!(packed["pack"]["splits"]["train"]["images"], 90);
    let names: Vec<_> = digests(&place.path("pack")).into_keys().collect();
    assert_eq!(
        names,
        ["pack.json", "test_images.npy", "test_labels.npy", "train_images.npy", "train_labels.npy"]
    );
    // Particles, crops, validation points and several minibatches in an epoch.
    let options =
        "--sampler langevin.so,steps=1 --epsilon 0.1 --crop 1 --flip --validation-points 20 --probe fgsm.so";
    for data in ["digits", "pack"] {
        let command = train(data, &format!("on-{data}")).replace("--sampler none", options);
        place.host(&command).ended_with(0);
        place.host(&format!("eval on-{data} --attack pgd.so,steps=2 --points 50")).ended_with(0);
    }
    place.run("on-pack").assert_same_as(&place.run("on-digits"));
    let verdicts = ["pack", "digits"].map(|data| {
        let [evaluation] = place.run(&format!("on-{data}")).evaluations().try_into().expect("one");
        [&evaluation["result"]["clean"], &evaluation["result"]["attacks"][0]["robust"]].map(Value::clone)
    });
    assert_eq!(verdicts[0], verdicts[1]);
    let checksums = &place.run("on-pack").record()["data"]["checksums"];
    let recorded = json_file(&place.path("pack/pack.json"));
    assert_eq!(checksums["train_images"], recorded["splits"]["train"]["files"][0][1]);
}

#[test]
fn a_tree_of_images_is_packed_in_any_size() {
    let place = Place::empty();
    write_image_tree(&place.path("tree"), 8, 60);
    for (size, resize) in [("", ""), (" --size 5", " --resize 5")] {
        let pack = format!("pack{}", size.len());
        place.host(&format!("data pack tree --out {pack}{size}")).succeeds();
        place.host(&train(&pack, &format!("on-{pack}"))).succeeds();
        place.host(&format!("{}{resize}", train("tree", &format!("on-tree{}", size.len())))).succeeds();
        place.run(&format!("on-{pack}")).assert_same_as(&place.run(&format!("on-tree{}", size.len())));
    }
    let record = json_file(&place.path("pack0/pack.json"));
    assert_eq!(record["class_names"][3], "digit-3");
    place.refuses("data pack tree --out pack0", &["pack0 already exists"]);
    place.refuses("data pack tree --out a/b", &["there is no folder a"]);
    place.refuses("data pack pack0 --out other", &["pack0 is a pack already"]);
    place.refuses(
        "data pack tree --out other --size 5000",
        &["--size: expected a size from 1 to 4096, got 5000"],
    );
    place.refuses("data pack tree,resize=4 --out other --size 5", &["say the same"]);
    image::save_buffer(place.path("tree/test/digit-3/odd.png"), &[0; 6], 3, 2, image::ExtendedColorType::L8)
        .expect("saved");
    place.refuses("data pack tree --out other", &["odd.png is 2 x 3 pixels"]).explains(&["--size N"]);
}

#[test]
fn images_that_cannot_be_decoded_are_named_or_left_out() {
    let place = Place::empty();
    write_image_tree(&place.path("tree"), 8, 60);
    // One is no image, the other one breaks off after its header.
    fs::write(place.path("tree/train/digit-1/21.png"), "no image").expect("written");
    edit(&place.path("tree/train/digit-2/32.png"), |bytes| bytes.truncate(bytes.len() / 2));
    let refused = ["cannot decode", "tree/train/digit-"];
    place.refuses("data pack tree --out pack", &refused);
    place.host("data pack tree --out pack --skip-bad").ended_with(0).explains(&[
        "digit-1/21.png is left out: cannot decode",
        "digit-2/32.png is left out: cannot decode",
    ]);
    let record = json_file(&place.path("pack/pack.json"));
    let left_out = record["splits"]["train"]["left_out"].as_array().expect("a list");
    assert_eq!(left_out.iter().map(|one| &one[0]).collect::<Vec<_>>(), ["digit-1/21.png", "digit-2/32.png"]);
    assert_eq!(
        (&record["splits"]["train"]["images"], &record["splits"]["test"]["images"]),
        (&json!(58), &json!(100))
    );
    place
        .host(&train("pack", "run"))
        .succeeds_with_warning(&["2 training images cannot be decoded and are left out"]);
    // What is left is what a tree without them holds.
    for name in ["digit-1/21.png", "digit-2/32.png"] {
        fs::remove_file(place.path("tree/train").join(name)).expect("removed");
    }
    place.host(&train("tree", "without")).succeeds();
    place.run("run").assert_same_as(&place.run("without"));
}

/// A data set of three blocks, the last of which is not full.
fn many(place: &Place) {
    let [train, test] = [(2500, 1), (TEST_POINTS, 2)].map(|(points, seed)| digits(3, points, 10, seed));
    write_rectangles(&place.path("many"), [3, 3], &train, &test);
}

#[test]
fn a_pack_that_was_killed_goes_on_and_becomes_the_same() {
    let place = Place::empty();
    many(&place);
    place.host("data pack many --out whole").succeeds();
    let whole = digests(&place.path("whole"));
    let (mut killed, mut resumed) = (0, 0);
    for fault in ["kill", "full"] {
        for at in (1..).step_by(3) {
            let mut command = place.command("data pack many --out pack");
            let outcome = place.outcome(command.env("DRO_FAULT", format!("{fault}:data:{at}")));
            let is_done = outcome.code() == Some(0);
            if !is_done {
                killed += 1;
                if fault == "full" {
                    assert!(outcome.first_line().starts_with("error: "), "{}", outcome.report());
                }
            }
            if place.path("pack").exists() {
                assert!(is_done || fault == "kill");
            } else {
                let packed = place.host("data pack many --out pack --json").succeeds().json();
                resumed = resumed.max(packed["pack"]["resumed"].as_u64().expect("a number"));
            }
            let mut got = digests(&place.path("pack"));
            // What a process that was killed at its very end leaves.
            got.retain(|name, _| name != "packing.json" && name != "lock");
            assert_eq!(got, whole, "{fault} at {at}");
            fs::remove_dir_all(place.path("pack")).expect("removed");
            if is_done {
                break;
            }
        }
    }
    assert!(killed > 15, "{killed} were disturbed");
    assert_eq!(resumed, 2600, "the last of them had nothing left to decode");
}

#[test]
fn the_beginning_of_another_pack_is_not_continued() {
    let place = Place::empty();
    many(&place);
    let kill = |arguments: &str| {
        let mut command = place.command(arguments);
        place.outcome(command.env("DRO_FAULT", "kill:data:20")).was_killed(libc::SIGKILL);
    };
    kill("data pack many --out pack");
    place
        .refuses("data pack many --out pack --size 2", &["pack.packing holds the beginning of another pack"])
        .explains(&["size none", "size 2"]);
    // A block that was changed meanwhile.
    edit(&place.path("pack.packing/train_images.npy"), |bytes| bytes[200] ^= 1);
    place.host("data pack many --out pack").ended_with(2).explains(&["train_images.npy is damaged: block 0"]);
}

#[test]
fn a_disk_without_room_is_known_before_anything_is_written() {
    let place = Place::empty();
    many(&place);
    let before = place.contents();
    let room = |arguments: &str, bytes: u64| {
        let (command, mut host) = (arguments.split(' ').next().expect("a word"), place.command(arguments));
        place
            .outcome(host.env("DRO_FAULT", format!("room:{command}:{bytes}")))
            .fails(2, &["not enough room in"])
    };
    // 2600 images of 9 bytes with labels of 8, two headers of 128 bytes for each split, and 1 MiB.
    let needed = 2600 * 17 + 4 * 128 + (1 << 20);
    room("data pack many --out pack", needed - 1).explains(&[
        &format!("expected {needed} bytes"),
        &format!("got {} free", needed - 1),
        "a smaller --size",
    ]);
    assert!(place.contents() == before, "files have changed");
    let mut enough = place.command("data pack many --out pack");
    place.outcome(enough.env("DRO_FAULT", format!("room:data:{needed}"))).succeeds();
    // A store in a file: three slots of 2500 points of 9 numbers.
    let before = place.contents();
    let store = train("pack", "run").replace("--sampler none", "--sampler langevin.so --store-file");
    room(&store, 269_999).explains(&[
        "for the particles: expected 270000 bytes",
        "got 269999 free",
        "--store u8",
    ]);
    assert!(place.contents() == before, "files have changed");
}

#[test]
fn packs_that_are_damaged_or_of_another_version_are_refused() {
    let place = Place::empty();
    many(&place);
    place.host("data pack many --out whole").succeeds();
    let copy = || {
        let _ = fs::remove_dir_all(place.path("pack"));
        fs::create_dir(place.path("pack")).expect("made");
        for name in digests(&place.path("whole")).into_keys() {
            fs::copy(place.path("whole").join(&name), place.path("pack").join(&name)).expect("copied");
        }
    };
    let file = |name: &str| place.path("pack").join(name);
    let refuses = |parts: &[&str]| place.refuses(&train("pack", "run"), parts);

    copy();
    edit(&file("train_images.npy"), |bytes| bytes.truncate(22_627));
    refuses(&["train_images.npy has changed: it is truncated"]).explains(&["22628 bytes", "22627 bytes"]);
    edit(&file("train_images.npy"), |bytes| bytes.extend([0; 3]));
    refuses(&["train_images.npy has changed: it has more bytes"]);
    copy();
    edit(&file("train_images.npy"), |bytes| bytes[128 + 9 * 2048] ^= 4);
    refuses(&["train_images.npy has changed: images 2048 to 2499 are not those that were packed"])
        .explains(&["CRC-32C", "from byte 18560"]);
    copy();
    edit(&file("test_labels.npy"), |bytes| bytes[130] ^= 1);
    refuses(&["test_labels.npy has changed: its labels"]).explains(&["packed   MD5", "found    MD5"]);
    copy();
    fs::remove_file(file("test_images.npy")).expect("removed");
    refuses(&["cannot read", "test_images.npy"]);
    copy();
    edit(&file("pack.json"), |bytes| bytes[20] ^= 1);
    refuses(&["pack.json is damaged"]);
    let mut record = json_file(&place.path("whole/pack.json"));
    record["version"] = json!(2);
    write_sealed(&file("pack.json"), &record.to_string());
    refuses(&["pack.json is of version 2 of packs: expected version 1"]);
    for (key, value) in [("image", json!([1, 0, 3])), ("image", json!([1, 3, 4])), ("classes", json!(1))] {
        let mut record = json_file(&place.path("whole/pack.json"));
        record[key] = value;
        write_sealed(&file("pack.json"), &record.to_string());
        refuses(&["cannot understand"]);
    }
    copy();
    place.host(&train("pack", "run")).ended_with(0);
}

#[test]
fn processes_compare_a_part_of_a_pack_each() {
    let place = Place::empty();
    if !has_gloo(&place) {
        return;
    }
    many(&place);
    place.host("data pack many --out pack").succeeds();
    let images = place.path("pack/train_images.npy");
    let command = format!("launch -n 2 -- {} --shards 2", train("pack", "run"));
    // Three blocks of 1024 images: process 1 compares the second one, process 0 the others.
    for (image, is_of_the_second) in [(7, false), (1100, true), (2100, false)] {
        edit(&images, |bytes| bytes[128 + 9 * image] ^= 4);
        let outcome = place.host(&command).fails(2, &["train_images.npy has changed: images"]);
        assert_eq!(
            outcome.first_line().contains("process 1 (pid "),
            is_of_the_second,
            "{}",
            outcome.report()
        );
        assert_eq!(outcome.errors().matches("error: ").count(), 1, "{}", outcome.report());
        edit(&images, |bytes| bytes[128 + 9 * image] ^= 4);
    }
    assert!(!place.path("run").exists());
    place.host(&command).ended_with(0);
    place.host("launch -n 2 -- eval run --attack fgsm.so --points 20 --threads 1").ended_with(0);
}

#[test]
fn a_pack_that_changed_since_a_run_began_is_found() {
    let place = Place::empty();
    many(&place);
    place.host("data pack many --out pack").succeeds();
    place.host(&train("pack", "run")).ended_with(0);
    // Packed anew of other images: a whole pack, and not the recorded one.
    fs::remove_dir_all(place.path("pack")).expect("removed");
    let [train_split, test] = [(2500, 3), (TEST_POINTS, 2)].map(|(points, seed)| digits(3, points, 10, seed));
    write_rectangles(&place.path("many"), [3, 3], &train_split, &test);
    place.host("data pack many --out pack").succeeds();
    let changed = ["data file train_images is not the recorded one"];
    place.refuses("train --resume run --epochs 3", &changed);
    place.refuses("eval run --attack fgsm.so", &changed);
    // Written to while a run trains.
    let run = train("pack", "other").replace("--epochs 2", "--epochs 400");
    let is_begun = || place.run("other").newest_update().is_some();
    let images = fs::File::options().write(true).open(place.path("pack/train_images.npy")).expect("opened");
    let outcome = place.meanwhile(&run, is_begun, || images.write_all_at(&[1], 200).expect("written"));
    outcome
        .fails(1, &["train_images.npy has changed: it was written to since the run began"])
        .explains(&["packed   22628 bytes, of 20", "found    22628 bytes, of 20"]);
    assert!(place.run("other").newest_update().is_some(), "the last checkpoint stays");
}

/// Writes a pack of version 1 by hand, of black images in a file without blocks on the disk.
fn write_sparse(folder: &Path, side: usize, train: usize) {
    fs::create_dir(folder).expect("made");
    let per_block = 1024;
    let per_image = 3 * side * side;
    let header = |descr: &str, shape: &str| {
        let text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape}), }}");
        format!("\u{1}\0\u{76}\0{text:<117}\n").into_bytes()
    };
    let magic = b"\x93NUMPY";
    let mut splits = serde_json::Map::new();
    for (name, count) in [("train", train), ("test", per_block)] {
        assert_eq!(count % per_block, 0, "whole blocks");
        let images = fs::File::create(folder.join(format!("{name}_images.npy"))).expect("created");
        std::io::Write::write_all(&mut &images, magic).expect("written");
        let of_images = header("|u1", &format!("{count}, 3, {side}, {side}, "));
        std::io::Write::write_all(&mut &images, &of_images).expect("written");
        let bytes = 128 + count * per_image;
        images.set_len(bytes as u64).expect("a sparse file");
        let labels = (0..count).flat_map(|point| (point as i64 % 2).to_le_bytes());
        let labels: Vec<u8> =
            magic.iter().copied().chain(header("<i8", &format!("{count}, "))).chain(labels).collect();
        fs::write(folder.join(format!("{name}_labels.npy")), &labels).expect("written");
        let digest = crate::harness::hexadecimal(&<md5::Md5 as md5::Digest>::digest(&labels));
        splits.insert(
            name.to_owned(),
            json!({
                "images": count,
                "left_out": [],
                "images_per_block": per_block,
                "blocks": vec![crc32c_of_zeros(per_block * per_image); count / per_block],
                "files": [[bytes, "0".repeat(32)], [labels.len(), digest]],
            }),
        );
    }
    let record = json!({
        "version": 1, "source": "/sparse", "source_checksums": {}, "size": null, "image": [3, side, side],
        "classes": 2, "class_names": [], "findings": [], "splits": splits,
    });
    write_sealed(&folder.join("pack.json"), &record.to_string());
}

/// CRC-32C of so many zeros, bit by bit (the polynomial of Castagnoli, reflected).
fn crc32c_of_zeros(bytes: usize) -> u32 {
    let mut crc = u32::MAX;
    let mut table = [0u32; 256];
    for (byte, entry) in table.iter_mut().enumerate() {
        *entry =
            (0..8).fold(byte as u32, |value, _| (value >> 1) ^ if value & 1 == 1 { 0x82f6_3b78 } else { 0 });
    }
    for _ in 0..bytes {
        crc = (crc >> 8) ^ table[(crc & 255) as usize];
    }
    !crc
}

/// The largest memory that the host had resident, in bytes. Mapped files count where they were read.
#[expect(clippy::zombie_processes, reason = "wait4 waits for it, and tells its memory")]
fn peak(place: &Place, arguments: &str) -> usize {
    let child =
        place.command(arguments).stdout(std::process::Stdio::null()).spawn().expect("the host starts");
    let mut status = 0;
    // SAFETY: zeros are a valid `rusage`; the child was not waited for, and nothing else waits for it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::wait4(child.id() as i32, &raw mut status, 0, &raw mut usage), child.id() as i32);
        usage
    };
    assert_eq!(status, 0, "{arguments}");
    usage.ru_maxrss as usize * 1024
}

#[test]
fn memory_stays_flat_whatever_the_size_of_a_pack() {
    let place = Place::empty();
    // 302 MB of images, and 25 MB.
    let (large, small) = (24 * 1024, 1024);
    write_sparse(&place.path("large"), 64, large);
    write_sparse(&place.path("small"), 64, small);
    let train = |data: &str| {
        train(data, &format!("on-{data}"))
            .replace("--epochs 2", "--epochs 1")
            .replace("--batch 20", "--batch 128")
    };
    let eval = |data: &str| format!("eval on-{data} --attack fgsm.so");
    for command in [&train as &dyn Fn(&str) -> String, &eval] {
        let [of_large, of_small] = ["large", "small"].map(|data| peak(&place, &command(data)));
        let more = of_large.saturating_sub(of_small);
        assert!(more < 60 << 20, "{more} bytes more for 277 MB more of images: {}", command("large"));
    }
}

#[test]
fn a_damaged_store_falls_back_to_the_checkpoint_before() {
    let place = Place::with_digits(8, 100);
    let train =
        train("digits", "run").replace("--sampler none", "--sampler langevin.so --epsilon 0.1 --store-file");
    place.host(&train).ended_with(0);
    let (run, whole) = (place.run("run"), place.path("whole"));
    let copied = std::process::Command::new("cp").arg("-r").arg(place.path("run")).arg(&whole).status();
    assert!(copied.expect("cp runs").success());
    // Reports read the chains from the file, as `host diagnose` does.
    place.host("eval run --attack fgsm.so --points 20").ended_with(0);
    place.host("report run --out page.html").ended_with(0);
    // Every point was visited in the last epoch: its chains are in a slot of their own.
    let index = fs::read(run.newest("particles.safetensors")).expect("readable");
    let tensors = safetensors::SafeTensors::deserialize(&index).expect("safetensors");
    let slot = usize::from(tensors.tensor("slots").expect("slots").data()[7]);
    edit(&place.path("run/particles"), |bytes| bytes[4 * 64 * (100 * slot + 7)] ^= 1);
    place.host("train --resume run").ended_with(0).explains(&[
        "particles is damaged: the chains of point 7 are not those of the checkpoint (CRC-32C",
        "going back to the checkpoint before it",
    ]);
    run.assert_same_as(&place.run("whole"));
    fs::remove_file(place.path("run/particles")).expect("removed");
    place
        .refuses("train --resume run", &["no checkpoint in run/checkpoints is whole"])
        .explains(&["there is no file"]);
}

#[test]
fn random_resized_crops_train_where_no_particle_must_come_back() {
    let place = Place::empty();
    write_image_tree(&place.path("tree"), 8, 60);
    place.host("data pack tree --out pack").succeeds();
    for data in ["tree", "pack"] {
        place.host(&format!("{} --scale 0.25,1 --flip", train(data, &format!("on-{data}")))).succeeds();
    }
    place.run("on-pack").assert_same_as(&place.run("on-tree"));
    place.host(&train("tree", "plain")).succeeds();
    assert_ne!(place.run("plain").weights(), place.run("on-tree").weights());
    let sampler = "--sampler langevin.so,steps=1 --epsilon 0.1 --scale 0.25,1";
    let adversarial =
        |more: &str| train("pack", "other").replace("--sampler none", &format!("{sampler} {more}"));
    place
        .refuses(&adversarial(""), &["train.scale: a resized window has no inverse"])
        .explains(&["--start natural or uniform"]);
    place.refuses(&adversarial("--start natural --crop 1"), &["train.crop and train.scale"]);
    for wrong in ["0,1", "0.5", "0.5,0.25", "0.5,1.5", "0.1,0.2,0.3"] {
        let command = adversarial("--start natural").replace("0.25,1", wrong);
        place.refuses(&command, &["train.scale: expected two shares of the area"]);
    }
    place.host(&adversarial("--start natural")).succeeds();
}
