//! Looks after the other processes while this one works: one that failed, was killed or does not
//! move ends all of them, with one message.

use super::place::Place;
use crate::Result;
use crate::plugin::running;
use crate::torch::c10d::Store;
use crate::util::console;
use crate::util::pulse;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// The time between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// A process that gives no sign for this long is gone: it was killed, stopped, or its machine
/// cannot be reached.
pub(super) const SILENCE: Duration = Duration::from_secs(10);

/// The longest time in which processes are told of a failure.
pub(super) const FAREWELL: Duration = Duration::from_secs(3);

/// The key of the failure that ends all processes.
pub(super) const FAILED: &str = "failed";

/// The key that is set once the user has stopped a process: the others leave the update under way.
pub(super) const STOPS: &str = "stops";

/// A failure that ends all processes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Failure {
    /// The process that it is about.
    pub rank: usize,
    /// What happened, for people; empty if the process prints it itself.
    pub message: String,
    /// The exit code of all processes.
    pub code: u8,
}

/// A sign of life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Sign {
    /// A number that every sign raises.
    number: u64,
    /// Pieces of work so far.
    steps: u64,
    /// Whether it waits for another process.
    waits: bool,
    /// The plugin that is running, and what it does; otherwise what the process does.
    running: Option<String>,
}

/// All processes that wait for one another for this long will wait for ever: what they wait for would
/// come at once.
const DEADLOCK: Duration = Duration::from_secs(60);

/// What the threads share with the process.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// The process ends by itself, well or with an error of its own.
    pub ends: AtomicBool,
    /// The user has stopped this process or another one.
    pub stops: AtomicBool,
    /// The clock: looks since the beginning. It stands while this process is suspended.
    looks: AtomicU64,
    /// The look at which the store last answered.
    answered: AtomicU64,
}

impl Watch {
    fn now(&self) -> u64 {
        self.looks.load(Ordering::SeqCst)
    }

    /// The time since a look in which this process was not suspended.
    fn since(&self, look: u64) -> Duration {
        LOOK_EVERY * self.now().saturating_sub(look) as u32
    }
}

/// What was seen of another process.
struct Seen {
    sign: Sign,
    /// The look at which its last sign came.
    heard: u64,
    /// The look at which it last moved, or waited for another process.
    moved: u64,
}

/// The name of a process, for people.
pub(super) fn named(rank: usize, who: &[String]) -> String {
    match who.get(rank) {
        Some(who) => format!("process {rank} ({who})"),
        None => format!("process {rank}"),
    }
}

impl Watch {
    /// Begins to look after the other processes, called `who`, until [`Watch::ends`] is set.
    pub fn begin(place: &Place, store: Store, patience: Duration, who: Vec<String>) -> Arc<Self> {
        let watch = Arc::new(Self::default());
        let server = if place.is_served { "the launcher".to_owned() } else { named(0, &who) };
        let (rank, size, watched) = (place.rank, place.size, Arc::clone(&watch));
        let looking = Looking { rank, size, store, patience, who, watch: Arc::clone(&watch) };
        thread::spawn(move || looking.look());
        // The store may stop answering for ever: this thread does not ask it.
        thread::spawn(move || {
            while !watched.ends.load(Ordering::SeqCst) {
                thread::sleep(LOOK_EVERY);
                watched.looks.fetch_add(1, Ordering::SeqCst);
                if watched.since(watched.answered.load(Ordering::SeqCst)) > SILENCE + FAREWELL {
                    end(&format!("{server} has not answered for {} s", SILENCE.as_secs()), 1);
                }
            }
        });
        watch
    }
}

struct Looking {
    rank: usize,
    size: usize,
    store: Store,
    patience: Duration,
    who: Vec<String>,
    watch: Arc<Watch>,
}

impl Looking {
    fn look(self) {
        let sign = Sign { number: 0, steps: 0, waits: false, running: None };
        let mut seen: Vec<_> =
            (0..self.size).map(|_| Seen { sign: sign.clone(), heard: 0, moved: 0 }).collect();
        let (mut number, mut all, mut changed) = (0, Vec::new(), 0);
        while !self.watch.ends.load(Ordering::SeqCst) {
            number += 1;
            if self.look_once(number, &mut seen).is_err() {
                // The process that serves the store may just have ended well.
                thread::sleep(FAREWELL);
                if !self.watch.ends.load(Ordering::SeqCst) {
                    end(&format!("{} is gone", named(0, &self.who)), 1);
                }
            }
            self.watch.answered.store(self.watch.now(), Ordering::SeqCst);
            let present: Vec<_> = seen.iter().map(|seen| (seen.sign.steps, seen.sign.waits)).collect();
            if present != all || present.iter().any(|(_, waits)| !waits) {
                (all, changed) = (present, self.watch.now());
            }
            if self.rank == 0 && self.watch.since(changed) > DEADLOCK {
                let message = format!(
                    "all processes have waited for one another for {} s: they do not do the same work\n  fix      start \
                     all with the same command and the same version of this program",
                    DEADLOCK.as_secs()
                );
                let failure = Failure { rank: 0, message, code: 1 };
                let _ = self.store.set(FAILED, &serde_json::to_vec(&failure).unwrap_or_default());
                self.obey(Some(failure));
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    fn look_once(&self, number: u64, seen: &mut [Seen]) -> Result<()> {
        let (steps, waits) = pulse::read();
        let sign = Sign { number, steps, waits, running: what_is_running() };
        self.store.set(&key("sign", self.rank), &serde_json::to_vec(&sign).unwrap_or_default())?;
        seen[self.rank].sign = sign;
        if !self.watch.stops.load(Ordering::SeqCst) && self.store.get(STOPS)?.is_some() {
            self.watch.stops.store(true, Ordering::SeqCst);
        }
        if let Some(failure) = self.store.get(FAILED)? {
            self.obey(serde_json::from_slice(&failure).ok());
        }
        // The first process looks after all others, the second one after the first.
        let others = match self.rank {
            0 => 1..self.size,
            1 => 0..1,
            _ => 0..0,
        };
        for rank in others {
            if let Some(what) = self.fault_of(rank, &mut seen[rank])? {
                let failure = Failure { rank, message: what, code: 1 };
                self.store.set(FAILED, &serde_json::to_vec(&failure).unwrap_or_default())?;
                self.obey(Some(failure));
            }
        }
        Ok(())
    }

    /// What is wrong with another process, if anything.
    fn fault_of(&self, rank: usize, seen: &mut Seen) -> Result<Option<String>> {
        let now = self.watch.now();
        if let Some(sign) = self.store.get(&key("sign", rank))?
            && let Ok(sign) = serde_json::from_slice::<Sign>(&sign)
            && sign != seen.sign
        {
            seen.heard = now;
            if sign.steps != seen.sign.steps || sign.waits {
                seen.moved = now;
            }
            seen.sign = sign;
        }
        if self.watch.since(seen.heard) > SILENCE && self.store.get(&key("done", rank))?.is_none() {
            return Ok(Some(format!(
                "{} has given no sign for {} s: it was killed or stopped, or its machine is unreachable",
                named(rank, &self.who),
                SILENCE.as_secs()
            )));
        }
        if self.watch.since(seen.moved) > self.patience {
            let place = seen.sign.running.as_ref().map(|what| format!(", {what}")).unwrap_or_default();
            return Ok(Some(format!(
                "{} has not moved for {} s{place}\n  fix      mend it, or allow more time with --rank-timeout",
                named(rank, &self.who),
                self.patience.as_secs()
            )));
        }
        Ok(None)
    }

    /// Ends this process because of a failure somewhere.
    fn obey(&self, failure: Option<Failure>) {
        // Its own error is on its way.
        if !self.watch.ends.load(Ordering::SeqCst) {
            obey(&self.store, (self.rank, self.size), failure);
        }
    }
}

/// Ends this process, number `own` of `size`, because of a failure somewhere.
pub(super) fn obey(store: &Store, (own, size): (usize, usize), failure: Option<Failure>) -> ! {
    let _ = store.set(&key("heard", own), b"");
    let Failure { rank, message, code } =
        failure.unwrap_or(Failure { rank: 0, message: "another process failed".to_owned(), code: 1 });
    let prints = own == 0 || (rank == 0 && own == 1 && !message.is_empty());
    if own == 0 {
        // The others ask this process's store, as long as it lives.
        let name = |other| if other == rank { key("ended", other) } else { key("heard", other) };
        wait_for_all(store, &(1..size).map(name).collect::<Vec<_>>(), FAREWELL);
    }
    end(if prints { &message } else { "" }, code)
}

/// What takes this process's time, for people.
fn what_is_running() -> Option<String> {
    let of_plugin = running::running().map(|call| format!("in {call}"));
    of_plugin.or_else(|| console::doing().map(|what| format!("which was at: {what}")))
}

/// Waits until all of these keys are set, at most this long. Returns whether they are.
pub(super) fn wait_for_all(store: &Store, keys: &[String], patience: Duration) -> bool {
    let begun = Instant::now();
    let is_set = |key: &String| store.get(key).is_ok_and(|value| value.is_some());
    loop {
        if keys.iter().all(is_set) {
            return true;
        }
        if begun.elapsed() > patience {
            return false;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// The key of a process.
pub(super) fn key(what: &str, rank: usize) -> String {
    format!("{what}/{rank}")
}

/// Ends the process at once: its main thread may wait for ever.
pub(super) fn end(message: &str, code: u8) -> ! {
    if !message.is_empty() {
        console::be_heard();
        console::report(message);
    }
    // SAFETY: `_exit` ends the process at once.
    unsafe { libc::_exit(code.into()) }
}
