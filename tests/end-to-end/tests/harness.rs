//! Runs the host in a new folder for each test, and reads the folders of its runs.

use crate::data;
use safetensors::SafeTensors;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};
use std::{env, fs, thread};
use tempfile::TempDir;

/// The longest time that a test waits for the host.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Sends a signal to a process that this one has started and not waited for yet.
pub fn send(process: &Child, signal: i32) {
    // SAFETY: the process is a child that was not waited for, so its number is not of another one.
    assert_eq!(unsafe { libc::kill(process.id() as i32, signal) }, 0, "the signal is sent");
}

/// The time between two looks at what is awaited.
const POLL: Duration = Duration::from_millis(1);

/// The folder of the host and all plugins, built once per test process.
static PROGRAMS: LazyLock<PathBuf> = LazyLock::new(|| {
    let test = env::current_exe().expect("this test has a path");
    let folder = test.ancestors().nth(2).expect("tests lie in the target folder's deps").to_owned();
    cargo_build(&repository(), ["--workspace"].into_iter().chain(profile(&folder)));
    folder
});

/// The flag that makes cargo build into this folder.
fn profile(folder: &Path) -> Option<&'static str> {
    folder.ends_with("release").then_some("--release")
}

/// The root of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the repository exists")
}

/// `cargo build` in a folder, as a user would call it.
fn cargo_build<'a>(folder: &Path, arguments: impl IntoIterator<Item = &'a str>) {
    let output = cargo(folder, ["build", "--quiet"].into_iter().chain(arguments));
    assert!(output.status.success(), "cargo build in {folder:?}:\n{}", text(&output.stderr));
}

fn cargo<'a>(folder: &Path, arguments: impl IntoIterator<Item = &'a str>) -> Output {
    let mut command = Command::new(env!("CARGO"));
    command.args(arguments).current_dir(folder);
    as_a_user_would(&mut command).output().expect("cargo starts")
}

/// The flag that makes cargo build beside the host; empty for the usual profile.
pub fn profile_of_host() -> &'static str {
    profile(&PROGRAMS).unwrap_or_default()
}

/// Builds a crate outside the workspace; its library is then beside the host.
pub fn build_beside_host<'a>(folder: &Path, arguments: impl IntoIterator<Item = &'a str>) {
    cargo_build(folder, arguments.into_iter().chain(profile(&PROGRAMS)));
}

/// `cargo test` in the folder of a crate outside the workspace. Returns whether all tests passed,
/// and the output.
pub fn cargo_test<'a>(folder: &Path, arguments: impl IntoIterator<Item = &'a str>) -> (bool, String) {
    let output = cargo(folder, ["test"].into_iter().chain(profile(&PROGRAMS)).chain(arguments));
    (output.status.success(), text(&output.stdout) + &text(&output.stderr))
}

/// Removes the variables that cargo sets for this test, and those that would change the host's
/// defaults.
fn as_a_user_would(command: &mut Command) -> &mut Command {
    let foreign = ["CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_BIN_EXE_", "LD_LIBRARY_PATH", "DRO_"];
    for (name, _) in env::vars_os() {
        if foreign.iter().any(|start| name.to_string_lossy().starts_with(start)) {
            command.env_remove(name);
        }
    }
    command
}

/// A file that the workspace's build made: the host, or a plugin's library.
pub fn built(name: &str) -> PathBuf {
    PROGRAMS.join(name)
}

/// A fresh folder in which the host is run.
pub struct Place {
    folder: TempDir,
    /// The folder of the user's own files.
    home: TempDir,
}

impl Place {
    /// An empty folder.
    pub fn empty() -> Self {
        let [folder, home] = [(); 2].map(|()| tempfile::tempdir().expect("a temporary folder"));
        Self { folder, home }
    }

    /// A folder with a data set `digits` of square images that are easy to classify.
    pub fn with_digits(side: usize, train_points: usize) -> Self {
        let place = Self::empty();
        data::write_digits(&place.path("digits"), side, train_points);
        place
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Copies a built file into the folder.
    pub fn copy_built(&self, name: &str) -> PathBuf {
        let copy = self.path(name);
        fs::copy(built(name), &copy).expect("copied");
        copy
    }

    /// The host with these arguments (split at spaces), to be run in the folder.
    pub fn command(&self, arguments: &str) -> Command {
        self.any_command(built("host"), arguments.split_whitespace())
    }

    /// Any other program with these arguments, to be run in the folder.
    pub fn any_command<S: AsRef<OsStr>>(
        &self,
        program: impl AsRef<OsStr>,
        arguments: impl IntoIterator<Item = S>,
    ) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(self.folder.path()).stdin(Stdio::null());
        as_a_user_would(&mut command).env("XDG_DATA_HOME", self.home.path());
        command
    }

    /// The user's list of trusted libraries.
    pub fn trusted(&self) -> PathBuf {
        self.home.path().join("host/trusted")
    }

    /// Runs the host.
    pub fn host(&self, arguments: &str) -> Outcome<'_> {
        self.outcome(&mut self.command(arguments))
    }

    /// Runs the host with a limit on the size of files, in blocks of 512 bytes.
    pub fn host_on_a_full_disk(&self, blocks: u32, arguments: &str) -> Outcome<'_> {
        // The host ignores SIGXFSZ, so the limit causes a write error, like a full disk.
        let script = format!("ulimit -f {blocks}; exec \"$0\" \"$@\"");
        let host = built("host");
        let arguments = ["-c".as_ref(), script.as_ref(), host.as_os_str()]
            .into_iter()
            .chain(arguments.split_whitespace().map(OsStr::new));
        self.outcome(&mut self.any_command("sh", arguments))
    }

    /// Runs a command to its end.
    pub fn outcome(&self, command: &mut Command) -> Outcome<'_> {
        let output = loop {
            match command.output() {
                // A process that another test is starting still holds the program open for writing.
                Err(why) if why.kind() == ErrorKind::ExecutableFileBusy => thread::sleep(POLL),
                output => break output.expect("the program starts"),
            }
        };
        Outcome { place: self, command: written(command), output }
    }

    /// Starts a training run and sends it a signal as soon as `ready` is true for the update of its
    /// newest checkpoint. Its files are slow, so that training is not over before the signal arrives.
    pub fn interrupt(
        &self,
        arguments: &str,
        run: &str,
        signal: i32,
        ready: impl Fn(u64) -> bool,
    ) -> Outcome<'_> {
        let run = self.run(run);
        let mut command = self.command(arguments);
        command.env("DRO_FAULT", "slow:train:4");
        self.when(command, || run.newest_update().is_some_and(&ready), |host| send(host, signal))
    }

    /// Starts the host and sends it a signal as soon as `ready` is true.
    pub fn signal_when(&self, arguments: &str, signal: i32, ready: impl Fn() -> bool) -> Outcome<'_> {
        self.when(self.command(arguments), ready, |host| send(host, signal))
    }

    /// Starts the host and does something as soon as `ready` is true, while the host runs.
    pub fn meanwhile(&self, arguments: &str, ready: impl Fn() -> bool, act: impl FnOnce()) -> Outcome<'_> {
        self.when(self.command(arguments), ready, |_| act())
    }

    fn when(&self, mut command: Command, ready: impl Fn() -> bool, act: impl FnOnce(&Child)) -> Outcome<'_> {
        let mut host =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the host starts");
        let started = Instant::now();
        while !ready() {
            if started.elapsed() >= PATIENCE {
                // It would slow down the tests that follow.
                let _ = host.kill();
                panic!("not ready after {PATIENCE:?}: {command:?}");
            }
            if host.try_wait().expect("a child").is_some() {
                break;
            }
            thread::sleep(POLL);
        }
        if host.try_wait().expect("a child").is_none() {
            act(&host);
        }
        let output = host.wait_with_output().expect("the host ends");
        Outcome { place: self, command: written(&command), output }
    }

    /// Runs the host, which must refuse before any work: the exit code is 2, the first line of
    /// standard error has the parts, and no file changes.
    #[track_caller]
    pub fn refuses(&self, arguments: &str, parts: &[&str]) -> Outcome<'_> {
        let before = self.contents();
        let outcome = self.host(arguments).fails(2, parts);
        assert!(self.contents() == before, "files have changed\n{}", outcome.report());
        outcome
    }

    /// The folder of a run.
    pub fn run(&self, name: &str) -> Run {
        Run { folder: self.path(name) }
    }

    /// Every file by its path, with a digest of its contents.
    pub fn contents(&self) -> BTreeMap<PathBuf, String> {
        let mut contents = BTreeMap::new();
        let mut folders = vec![self.folder.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).expect("a folder").map(|entry| entry.expect("an entry")) {
                let kind = entry.file_type().expect("a type");
                let digest = if kind.is_file() { sha256(&entry.path()) } else { format!("{kind:?}") };
                contents.insert(entry.path(), digest);
                if kind.is_dir() {
                    folders.push(entry.path());
                }
            }
        }
        contents
    }
}

fn written(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

/// The output and the exit status of a program.
pub struct Outcome<'a> {
    place: &'a Place,
    command: String,
    output: Output,
}

impl Outcome<'_> {
    /// It must have succeeded with nothing on standard error.
    #[track_caller]
    pub fn succeeds(self) -> Self {
        self.succeeds_with_warning(&[])
    }

    /// It must have succeeded, with a warning that has these parts; without parts, no warning is
    /// allowed.
    #[track_caller]
    pub fn succeeds_with_warning(self, parts: &[&str]) -> Self {
        self.ends_with(0);
        assert_eq!(self.errors().is_empty(), parts.is_empty(), "warnings\n{}", self.report());
        self.first_line_has(if parts.is_empty() { "" } else { "warning: " }, parts)
    }

    /// It must have ended with this code, and with the parts in the first line of standard error.
    #[track_caller]
    pub fn fails(self, code: i32, parts: &[&str]) -> Self {
        self.ends_with(code);
        assert!(!self.errors().contains("stack backtrace"), "a backtrace\n{}", self.report());
        self.first_line_has("error: ", parts)
    }

    /// It must have been stopped by Ctrl-C, with a warning.
    #[track_caller]
    pub fn was_interrupted(self, parts: &[&str]) -> Self {
        self.ends_with(130);
        self.first_line_has("warning: stopped ", parts)
    }

    /// It must have ended with this code; warnings are allowed.
    #[track_caller]
    pub fn ended_with(self, code: i32) -> Self {
        self.ends_with(code);
        self
    }

    #[track_caller]
    fn ends_with(&self, code: i32) {
        assert_eq!(self.output.status.code(), Some(code), "exit code\n{}", self.report());
    }

    /// Its exit code; none if it was killed.
    pub fn code(&self) -> Option<i32> {
        self.output.status.code()
    }

    /// The first line of standard error.
    pub fn first_line(&self) -> String {
        self.errors().lines().next().unwrap_or_default().to_owned()
    }

    #[track_caller]
    fn first_line_has(self, start: &str, parts: &[&str]) -> Self {
        let line = self.first_line();
        assert!(line.starts_with(start), "first line without {start:?}\n{}", self.report());
        for part in parts {
            assert!(line.contains(part), "first line without {part:?}\n{}", self.report());
        }
        self
    }

    /// Standard error must have these parts somewhere.
    #[track_caller]
    pub fn explains(self, parts: &[&str]) -> Self {
        for part in parts {
            assert!(
                text(&self.output.stderr).contains(part),
                "standard error without {part:?}\n{}",
                self.report()
            );
        }
        self
    }

    /// It must have been killed by this signal.
    #[track_caller]
    pub fn was_killed(self, signal: i32) {
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(self.output.status.signal(), Some(signal), "signal\n{}", self.report());
    }

    /// Standard output.
    pub fn words(&self) -> String {
        text(&self.output.stdout)
    }

    /// Standard error, without the lines of progress that a slow command prints there.
    pub fn errors(&self) -> String {
        let errors = text(&self.output.stderr);
        errors
            .lines()
            .filter(|line| !line.starts_with("progress: "))
            .map(|line| format!("{line}\n"))
            .collect()
    }

    /// Standard output as one JSON object per line.
    pub fn json_lines(&self) -> Vec<Value> {
        let parse = |line: &str| {
            serde_json::from_str(line)
                .unwrap_or_else(|error| panic!("not JSON ({error}): {line}\n{}", self.report()))
        };
        self.words().lines().map(parse).collect()
    }

    /// Standard output, which must be one JSON object.
    pub fn json(&self) -> Value {
        let mut lines = self.json_lines();
        assert_eq!(lines.len(), 1, "JSON objects on standard output\n{}", self.report());
        lines.remove(0)
    }

    /// The details of the command and its output, for a failed assertion.
    pub fn report(&self) -> String {
        let files = self.place.contents().into_keys();
        let files: Vec<_> = files.map(|path| path.display().to_string()).collect();
        let rule = "-".repeat(60);
        format!(
            "{rule}\n{}\n\nfolder:\n{}\n\nstatus: {}\n\nstdout:\n{}\nstderr:\n{}{rule}",
            self.command,
            files.join("\n"),
            self.output.status,
            self.words(),
            self.errors()
        )
    }
}

/// The folder of a run.
pub struct Run {
    folder: PathBuf,
}

/// Shape and values of each tensor, by name.
pub type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

impl Run {
    /// `run.json`.
    pub fn record(&self) -> Value {
        json_file(&self.folder.join("run.json"))
    }

    /// The evaluations in `eval.json`.
    pub fn evaluations(&self) -> Vec<Value> {
        let file = json_file(&self.folder.join("eval.json"));
        file["evaluations"].as_array().expect("a list of evaluations").clone()
    }

    /// The lines of `metrics.jsonl`.
    pub fn metrics(&self) -> Vec<Value> {
        self.json_lines("metrics.jsonl").expect("metrics.jsonl")
    }

    /// The lines of `trace.jsonl`; none if there is no such file.
    pub fn trace(&self) -> Option<Vec<Value>> {
        self.json_lines("trace.jsonl")
    }

    /// The events in each event file for TensorBoard, in the order of their names.
    pub fn event_files(&self) -> Vec<Vec<Vec<u8>>> {
        let entries = fs::read_dir(&self.folder).expect("a folder").flatten().map(|entry| entry.path());
        let mut files: Vec<_> =
            entries.filter(|path| path.to_string_lossy().contains("/events.out.tfevents.")).collect();
        files.sort();
        files.iter().map(|path| records(&fs::read(path).expect("readable"))).collect()
    }

    fn json_lines(&self, file: &str) -> Option<Vec<Value>> {
        let lines = fs::read_to_string(self.folder.join(file)).ok()?;
        Some(lines.lines().map(|line| without_digest(serde_json::from_str(line).expect("JSON"))).collect())
    }

    /// Folders of the checkpoints, by the number of their update.
    pub fn checkpoints(&self) -> BTreeMap<u64, PathBuf> {
        let entries = fs::read_dir(self.folder.join("checkpoints")).into_iter().flatten().flatten();
        let numbered = |path: PathBuf| Some((path.file_name()?.to_str()?.parse().ok()?, path));
        entries.filter_map(|entry| numbered(entry.path())).collect()
    }

    /// The update of the newest checkpoint.
    pub fn newest_update(&self) -> Option<u64> {
        self.checkpoints().into_keys().next_back()
    }

    /// A file of the newest checkpoint.
    pub fn newest(&self, file: &str) -> PathBuf {
        let (_, folder) = self.checkpoints().pop_last().expect("a checkpoint");
        folder.join(file)
    }

    /// The tensors (f32) in a file of the newest checkpoint.
    pub fn tensors(&self, file: &str) -> Tensors {
        read_tensors(&self.newest(file))
    }

    /// The weights of the newest checkpoint.
    pub fn weights(&self) -> Tensors {
        self.tensors("weights.safetensors")
    }

    /// The other run must have ended in the same state, bit for bit, and must have the same metrics
    /// except for times.
    #[track_caller]
    pub fn assert_same_as(&self, other: &Self) {
        assert_eq!(self.newest_update(), other.newest_update());
        assert!(
            self.particles() == other.particles(),
            "particles of {:?} and {:?} differ",
            self.folder,
            other.folder
        );
        for file in ["weights", "optimizer", "average"].map(|group| format!("{group}.safetensors")) {
            let [ours, theirs] = [self, other].map(|run| fs::read(run.newest(&file)).ok());
            assert!(ours == theirs, "{file} of {:?} and {:?} differ", self.folder, other.folder);
        }
        let timeless = |mut lines: Vec<Value>| {
            for line in &mut lines {
                for key in ["seconds", "communication_seconds", "peak_memory"] {
                    line[key] = Value::Null;
                }
            }
            lines
        };
        assert_eq!(timeless(self.metrics()), timeless(other.metrics()));
        assert_eq!(self.trace().map(timeless), other.trace().map(timeless));
    }
}

impl Run {
    /// The bytes of the particles and state tensors of the newest checkpoint, by name; none without a
    /// store. In a file, each point has three slots, of which the checkpoint names one.
    fn particles(&self) -> Option<BTreeMap<String, Vec<u8>>> {
        let bytes = fs::read(self.newest("particles.safetensors")).ok()?;
        let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
        let Ok(slots) = tensors.tensor("slots") else {
            return Some(
                tensors.iter().map(|(name, view)| (name.to_owned(), view.data().to_vec())).collect(),
            );
        };
        let record = self.record();
        let named = record["experiment"]["train"]["store_file"].as_str().expect("a file");
        let file = if named == "run" { self.folder.join("particles") } else { PathBuf::from(named) };
        let files = tensors.tensor("digests").expect("digests").shape()[0];
        let read = |number: usize| {
            let (name, path) = match number {
                0 => ("particles".to_owned(), file.clone()),
                _ => (format!("state.{number}"), PathBuf::from(format!("{}.state-{number}", file.display()))),
            };
            let bytes = fs::read(path).expect("readable");
            let (points, row) = (slots.data().len(), bytes.len() / (3 * slots.data().len()));
            let rows = slots.data().iter().enumerate().flat_map(|(point, slot)| {
                bytes[row * (usize::from(*slot) * points + point)..][..row].to_vec()
            });
            (name, rows.collect())
        };
        Some((0..files).map(read).collect())
    }
}

/// The contents of the records in a file. A record is a length of eight bytes, a checksum of four,
/// the contents, and a checksum of four.
fn records(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<8>() {
        let end = 4 + u64::from_le_bytes(*length) as usize;
        records.push(rest[4..end].to_vec());
        bytes = &rest[end + 4..];
    }
    assert!(bytes.is_empty(), "whole records");
    records
}

/// The tensors (f32) in a file.
pub fn read_tensors(path: &Path) -> Tensors {
    let bytes = fs::read(path).expect("readable");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    let values = |bytes: &[u8]| {
        let (words, rest) = bytes.as_chunks::<4>();
        assert!(rest.is_empty());
        words.iter().map(|word| f32::from_le_bytes(*word)).collect()
    };
    let tensors = tensors.iter().map(|(name, view)| {
        assert_eq!(view.dtype(), safetensors::Dtype::F32, "{name}");
        (name.to_owned(), (view.shape().to_vec(), values(view.data())))
    });
    tensors.collect()
}

/// The object in a file of the host, without its digest.
pub fn json_file(path: &Path) -> Value {
    let bytes = fs::read(path).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
    let value = serde_json::from_slice(&bytes).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
    without_digest(value)
}

fn without_digest(mut value: Value) -> Value {
    value.as_object_mut().map(|object| object.remove("sha256"));
    value
}

/// Writes a file of JSON objects as the host would: each ends with a digest of all bytes of the file
/// before that digest (docs/architecture.md).
pub fn write_sealed(path: &Path, objects: &str) {
    let mut text = String::new();
    for object in serde_json::Deserializer::from_str(objects).into_iter::<Value>() {
        let object = without_digest(object.expect("JSON")).to_string();
        let fields = object.strip_suffix('}').expect("an object");
        text += fields;
        text += if fields == "{" { "\"sha256\":" } else { ",\"sha256\":" };
        text += &format!("\"{}\"}}\n", hexadecimal(&Sha256::digest(&text)));
    }
    fs::write(path, text).expect("writable");
}

/// The SHA-256 of a file, in hexadecimal.
pub fn sha256(path: &Path) -> String {
    hexadecimal(&Sha256::digest(fs::read(path).expect("readable")))
}

/// Bytes as lower-case hexadecimal digits.
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Changes a file's contents.
pub fn edit(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut contents = fs::read(path).expect("readable");
    change(&mut contents);
    fs::write(path, contents).expect("writable");
}

/// Replaces bytes in a file, which must occur once, by others of the same number.
pub fn patch(path: &Path, old: &str, new: &str) {
    assert_eq!(old.len(), new.len());
    edit(path, |contents| {
        let is_old = |(_, window): &(usize, &[u8])| *window == old.as_bytes();
        let found: Vec<_> =
            contents.windows(old.len()).enumerate().filter(is_old).map(|(at, _)| at).collect();
        let [at] = found.as_slice() else { panic!("{old:?} is {} times in {path:?}", found.len()) };
        let range = *at..at + old.len();
        contents[range].copy_from_slice(new.as_bytes());
    });
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
