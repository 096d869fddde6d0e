//! Event files that TensorBoard reads: records (`TFRecord`) of protocol buffers (`event.proto`).

use crate::run::progress::{EpochMetrics, TracePoint};
use crate::util::files;
use crate::{Error, Result};
use prost::Message;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The event file of one session; there is no file before there is an event.
pub struct EventFile {
    folder: PathBuf,
    /// Steps from here on are this session's.
    first_step: u64,
    file: Option<(PathBuf, File)>,
}

/// A point of a curve, or what a file begins with.
#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<SummaryMessage>,
    #[prost(message, optional, tag = "7")]
    session_log: Option<SessionLog>,
}

#[derive(Clone, PartialEq, Message)]
struct SummaryMessage {
    #[prost(message, repeated, tag = "1")]
    values: Vec<Scalar>,
}

#[derive(Clone, PartialEq, Message)]
struct Scalar {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, tag = "2")]
    value: f32,
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// The status of a session that starts: TensorBoard then forgets this and later steps of the
/// files before.
const START: i32 = 1;

impl EventFile {
    /// A file in a run's folder for the events from step `first_step` on. What other files in
    /// the folder say of these steps is taken back.
    pub fn new(folder: &Path, first_step: u64) -> Self {
        Self { folder: folder.to_owned(), first_step, file: None }
    }

    /// Writes what an epoch measured. Steps are updates.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn epoch(&mut self, metrics: &EpochMetrics) -> Result<()> {
        let measured = [
            ("learning_rate", Some(metrics.learning_rate)),
            ("train_loss", Some(metrics.train_loss)),
            ("train_accuracy", Some(metrics.train_accuracy)),
            ("gradient_mean", metrics.gradient.map(|gradient| gradient.mean)),
            ("gradient_longest", metrics.gradient.map(|gradient| gradient.longest)),
            ("validation_accuracy", metrics.validation_accuracy),
            ("probe_accuracy", metrics.probe_accuracy),
        ];
        self.scalars(metrics.updates, measured.into_iter().filter_map(|(tag, value)| Some((tag, value?))))
    }

    /// Writes a point of the trace. Steps are updates.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn trace(&mut self, point: &TracePoint) -> Result<()> {
        let TracePoint { clean_accuracy, attack_accuracy, passes_per_sample, .. } = *point;
        let measured = [
            ("trace/clean_accuracy", clean_accuracy),
            ("trace/attack_accuracy", attack_accuracy),
            ("trace/passes_per_sample", passes_per_sample),
        ];
        self.scalars(point.updates, measured)
    }

    fn scalars<'a>(&mut self, step: u64, scalars: impl IntoIterator<Item = (&'a str, f64)>) -> Result<()> {
        let scalar = |(tag, value): (&str, f64)| Scalar { tag: tag.to_owned(), value: value as f32 };
        let values = scalars.into_iter().map(scalar).collect();
        let event = Event { step: step as i64, summary: Some(SummaryMessage { values }), ..now()? };
        let (path, mut file) = match self.file.take() {
            Some(open) => open,
            None => self.begin()?,
        };
        write(&path, &mut file, &event)?;
        self.file = Some((path, file));
        Ok(())
    }

    fn begin(&self) -> Result<(PathBuf, File)> {
        let now = now()?;
        // TensorBoard reads files in the order of their names.
        let path = self.folder.join(format!("events.out.tfevents.{:020.9}", now.wall_time));
        let mut file = files::create_new(&path).map_err(|why| Error::file("create", &path, why))?;
        write(&path, &mut file, &Event { file_version: Some("brain.Event:2".to_owned()), ..now.clone() })?;
        let session_log = Some(SessionLog { status: START });
        write(&path, &mut file, &Event { step: self.first_step as i64, session_log, ..now })?;
        Ok((path, file))
    }
}

fn now() -> Result<Event> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let since = since.map_err(|why| Error::new(format!("the clock is before 1970: {why}")))?;
    Ok(Event { wall_time: since.as_secs_f64(), ..Event::default() })
}

fn write(path: &Path, file: &mut File, event: &Event) -> Result<()> {
    let written = files::append(file, &record(&event.encode_to_vec()));
    written.map_err(|why| Error::file("write", path, why).on_the_way())
}

/// A record: its length and a checksum of it, the contents and a checksum of them.
fn record(contents: &[u8]) -> Vec<u8> {
    let length = (contents.len() as u64).to_le_bytes();
    let checksums = [&length, contents].map(|bytes| masked(crc32c::crc32c(bytes)).to_le_bytes());
    [&length, &checksums[0][..], contents, &checksums[1]].concat()
}

/// A checksum that may itself be among contents that have one.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::util::files::hexadecimal;

    /// What TensorBoard 2.21's own writer makes of the same events.
    #[test]
    fn records_are_those_of_tensorboard() {
        let at = Event { wall_time: 1.5, ..Event::default() };
        let scalar = Scalar { tag: "train_loss".to_owned(), value: 0.25 };
        let summary = Some(SummaryMessage { values: vec![scalar] });
        for (event, expected) in [
            (
                Event { file_version: Some("brain.Event:2".to_owned()), ..at.clone() },
                "1800000000000000a37f4b2209000000000000f83f1a0d627261696e2e4576656e743a322a28646c",
            ),
            (
                Event { step: 7, session_log: Some(SessionLog { status: START }), ..at.clone() },
                "0f000000000000006d532b0909000000000000f83f10073a020801774771c7",
            ),
            (
                Event { step: 300, summary, ..at },
                "2100000000000000017becf609000000000000f83f10ac022a130a110a0a747261696e5f6c6f7373150000803ece1b1db2",
            ),
        ] {
            assert_eq!(hexadecimal(&record(&event.encode_to_vec())), expected);
        }
    }

    #[test]
    fn a_session_without_events_leaves_no_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = || std::fs::read_dir(folder.path()).expect("a folder").count();
        let mut events = EventFile::new(folder.path(), 0);
        assert_eq!(files(), 0);
        events.scalars(1, [("loss", 1.0)]).expect("written");
        events.scalars(2, [("loss", 0.5)]).expect("written");
        assert_eq!(files(), 1);
    }
}
