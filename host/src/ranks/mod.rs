//! Processes that work on one run together. Each has a number, its rank; the first one, rank 0, writes
//! the run's files and prints. A process that is alone is the first one of one.

mod meeting;
mod place;
mod watch;

pub use place::Place;

use crate::data::Split;
use crate::data::examples::Examples;
use crate::torch::c10d::{Group, Meeting, Reducer, Store, Sum, has_groups};
use crate::torch::device::load_cuda;
use crate::torch::nccl::Nccl;
use crate::util::console::warn;
use crate::util::interrupt::{interrupted, refuse_if_stopped};
use crate::util::{console, pulse};
use crate::{Error, Result};
use meeting::{address_of_way_to, address_that_others_reach, arrive, open_store, tell_failure};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZero;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};
use watch::{FAILED, FAREWELL, SILENCE, STOPS, Watch, end, key, named};

/// The time between two questions whether another process has said something.
const ASK_EVERY: Duration = Duration::from_millis(5);

/// The variable that names the interfaces of the network, as for PyTorch.
const INTERFACES: &str = "GLOO_SOCKET_IFNAME";

/// The key that is set once the user has stopped one of the processes in the middle of its own part.
const STOPPED: &str = "stopped";

/// All processes that work on one run.
pub struct Ranks {
    rank: usize,
    size: usize,
    local_rank: usize,
    together: Option<Together>,
}

/// What a process needs to work with the others.
struct Together {
    place: Place,
    store: Store,
    group: Group,
    /// The one that sums through NCCL, if there is one.
    of_gpus: OnceCell<Group>,
    watch: Arc<Watch>,
    /// The names of the processes, for people.
    who: Vec<String>,
    /// The number of messages so far: the same in all processes.
    messages: Cell<usize>,
    /// The vote that is counted.
    vote: RefCell<Option<Sum>>,
}

impl Ranks {
    /// This process alone.
    pub fn alone() -> Rc<Self> {
        Rc::new(Self { rank: 0, size: 1, local_rank: 0, together: None })
    }

    /// Joins the processes of which this is one according to its environment, and waits until all
    /// have arrived. `task` is what all of them do. From then on, each looks after the others: if one
    /// fails, or does not move for as long as `patience`, all of them end.
    ///
    /// # Errors
    /// If the environment is incomplete, this program was built without Gloo, or processes do not
    /// arrive in this time.
    pub fn join(task: &str, patience: Duration) -> Result<Rc<Self>> {
        let Some(place) = Place::from_environment()? else { return Ok(Self::alone()) };
        let _part = console::part(format!("waiting for all {} processes", place.size));
        let Place { rank, size, local_rank, .. } = place;
        let together = Together::new(place, task, patience)?;
        if rank > 0 {
            console::be_quiet();
        }
        Ok(Rc::new(Self { rank, size, local_rank, together: Some(together) }))
    }

    /// Tells the processes that wait for this one, if there are any, that it ends before it has joined
    /// them: `message` is printed already. It ends well if none of them can be reached soon.
    pub fn turn_down(message: &str, code: u8) {
        let Ok(Some(place)) = Place::from_environment() else { return };
        if has_groups()
            && let Ok(store) = open_store(&place, place.serves(), SILENCE)
        {
            tell_failure(&store, &place, message, code);
        }
    }

    /// The number of this process, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many processes there are.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The threads of this process: `given` ones, otherwise its share of the machine's. None leaves
    /// the choice to libtorch.
    pub fn threads(&self, given: Option<usize>) -> Option<usize> {
        let share = || place::threads(thread::available_parallelism().map_or(1, NonZero::get));
        given.or_else(|| (!self.is_alone()).then(share))
    }

    /// The device of this process: a GPU of its own, unless one is named.
    ///
    /// # Errors
    /// If libtorch's CUDA half cannot be loaded.
    pub fn device(&self, device: Device) -> Result<Device> {
        if self.is_alone() || device != Device::Cuda(0) {
            return Ok(device);
        }
        load_cuda()?;
        // A launcher may show each process one GPU alone.
        Ok(Device::Cuda(self.local_rank % (tch::Cuda::device_count() as usize).max(1)))
    }

    /// Whether this process writes the run's files and prints.
    pub fn is_first(&self) -> bool {
        self.rank == 0
    }

    /// Whether there is no other process.
    pub fn is_alone(&self) -> bool {
        self.together.is_none()
    }

    /// Sums numbers over all processes.
    ///
    /// # Errors
    /// If another process is gone.
    pub fn sum(&self, values: &[f64]) -> Result<Vec<f64>> {
        let Some(together) = &self.together else { return Ok(values.to_vec()) };
        let sum = self.finished(together.group.begin_sum(Tensor::from_slice(values))?)?;
        Ok(Vec::try_from(sum)?)
    }

    /// Waits for a sum.
    fn finished(&self, sum: Sum) -> Result<Tensor> {
        pulse::waiting(|| sum.wait()).map_err(|error| self.explained(error))
    }

    /// Gives all processes the numbers of the first one, in place.
    ///
    /// # Errors
    /// If another process is gone.
    pub fn copy_from_first(&self, tensors: &[&Tensor]) -> Result<()> {
        let Some(together) = self.together.as_ref().filter(|_| !tensors.is_empty()) else { return Ok(()) };
        let flat: Vec<_> = tensors.iter().map(|tensor| tensor.to_kind(Kind::Double).flatten(0, -1)).collect();
        let flat = Tensor::f_cat(&flat, 0)?;
        // A sum with zeros is exact.
        let own = if self.is_first() { flat } else { flat.zeros_like() };
        let sum = self.finished(together.group.begin_sum(own)?)?;
        if self.is_first() {
            return Ok(());
        }
        let sizes: Vec<_> = tensors.iter().map(|tensor| tensor.numel() as i64).collect();
        for (tensor, numbers) in tensors.iter().zip(sum.f_split_with_sizes(&sizes, 0)?) {
            tensor.shallow_clone().f_copy_(&numbers.f_reshape(tensor.size())?)?;
        }
        Ok(())
    }

    /// What the first process says, given to all: `say` is called there alone.
    ///
    /// # Errors
    /// That of `say`, in the first process.
    pub fn from_first<T: Serialize + DeserializeOwned>(&self, say: impl FnOnce() -> Result<T>) -> Result<T> {
        let Some(together) = &self.together else { return say() };
        let key = together.next_message("said");
        if self.is_first() {
            let said = say()?;
            let text = serde_json::to_vec(&said).map_err(|why| Error::new(why).on_the_way())?;
            together.store.set(&key, &text)?;
            return Ok(said);
        }
        let said = together.wait_for(&key)?;
        serde_json::from_slice(&said).map_err(|why| Error::new(why).on_the_way())
    }

    /// What each process says, in the order of their ranks; empty in all but the first one.
    ///
    /// # Errors
    /// If another process is gone.
    pub fn to_first<T: Serialize + DeserializeOwned>(&self, said: T) -> Result<Vec<T>> {
        let Some(together) = &self.together else { return Ok(vec![said]) };
        let message = together.next_message("told");
        if !self.is_first() {
            let text = serde_json::to_vec(&said).map_err(|why| Error::new(why).on_the_way())?;
            together.store.set(&key(&message, self.rank), &text)?;
            return Ok(Vec::new());
        }
        let others = (1..self.size).map(|rank| {
            let text = together.wait_for(&key(&message, rank))?;
            serde_json::from_slice(&text).map_err(|why| Error::new(why).on_the_way())
        });
        std::iter::once(Ok(said)).chain(others).collect()
    }

    /// Waits until all processes are here.
    ///
    /// # Errors
    /// If another process is gone.
    pub fn meet(&self) -> Result<()> {
        self.to_first(())?;
        self.from_first(|| Ok(()))
    }

    /// Compares what must be the same in all processes, by name.
    ///
    /// # Errors
    /// In the first process: what differs, where, and both values.
    pub fn agree(&self, facts: &BTreeMap<String, String>) -> Result<()> {
        let Some(together) = &self.together else { return Ok(()) };
        let said = self.to_first(facts.clone())?;
        self.from_first(|| {
            let value =
                |of: &BTreeMap<String, String>, name| of.get(name).map_or("none", String::as_str).to_owned();
            for (rank, other) in said.iter().enumerate().skip(1) {
                let mut names = facts.keys().chain(other.keys());
                if let Some(name) = names.find(|name| facts.get(*name) != other.get(*name)) {
                    let who = named(rank, &together.who);
                    return Err(Error::new(format!("{who} has another {name} than process 0"))
                        .note("process 0", value(facts, name))
                        .note("there", value(other, name))
                        .fix("start all processes with the same command, files and data"));
                }
            }
            Ok(())
        })
    }

    /// Points `first..first + count` of a split, on `device`, as [`Examples::new`] gives them, in all
    /// processes. Those that see the same file of a pack compare a part of it each.
    ///
    /// # Errors
    /// If the device has too little memory, a pack was changed, or another process is gone.
    pub fn examples(
        &self,
        split: &Split,
        (first, count): (usize, usize),
        device: Device,
    ) -> Result<Examples> {
        let examples = Examples::unchecked(split, first, count, device)?;
        let seen = self.to_first(examples.file()?)?;
        let seen = self.from_first(|| Ok(seen))?;
        let mine = (0..self.size).filter(|rank| seen[*rank] == seen[self.rank]);
        let (before, rest): (Vec<_>, Vec<_>) = mine.partition(|rank| *rank < self.rank);
        examples.check((before.len(), before.len() + rest.len()))?;
        // The file is whole only where all have found their parts to be.
        self.meet()?;
        Ok(examples)
    }

    /// Says after an update whether this process was asked to stop, and returns whether any process
    /// was after the update before: the votes are counted while the next update runs. Alone, its own
    /// counts at once.
    ///
    /// # Errors
    /// If another process is gone.
    pub fn vote_to_stop(&self, stop: bool) -> Result<bool> {
        let Some(together) = &self.together else { return Ok(stop) };
        let counted = self.count_votes()?;
        let ballot = Tensor::from_slice(&[i32::from(stop)]);
        together.vote.replace(Some(together.group.begin_sum(ballot)?));
        Ok(counted)
    }

    /// An error that is an interruption if the user has stopped this process or another one. Where it
    /// makes a process leave what all of them do, [`Ranks::leave_together`] must follow.
    ///
    /// # Errors
    /// If so, or if another process is gone.
    pub fn refuse_if_stopped(&self, stop: &AtomicBool) -> Result<()> {
        if let Some(Together { store, watch, .. }) = &self.together {
            if stop.load(Ordering::Relaxed) && !watch.stops.swap(true, Ordering::SeqCst) {
                store.set(STOPS, b"")?;
            }
            return refuse_if_stopped(&watch.stops);
        }
        refuse_if_stopped(stop)
    }

    /// Makes all processes leave what they do if one has left it since it was to stop: `ending` is how it
    /// ended here. All processes call this at the same place.
    ///
    /// # Errors
    /// That of `ending`, an interruption if another process has left, or if one is gone.
    pub fn leave_together(&self, ending: Result<()>) -> Result<()> {
        let has_left = ending.as_ref().is_err_and(Error::is_interrupted);
        if self.is_alone() || (ending.is_err() && !has_left) {
            return ending;
        }
        let left = self.sum(&[f64::from(u8::from(has_left))])?[0];
        if left > 0.0 { Err(interrupted()) } else { Ok(()) }
    }

    /// Waits for the votes that are counted, if there are any.
    ///
    /// # Errors
    /// If another process is gone.
    pub fn count_votes(&self) -> Result<bool> {
        let vote = self.together.as_ref().and_then(|together| together.vote.take());
        Ok(vote.map(|vote| self.finished(vote)).transpose()?.is_some_and(|sum| sum.int64_value(&[0]) > 0))
    }

    /// Sums the gradients of these parameters over all processes from now on: on GPUs through NCCL, if
    /// all processes can. None if this process is alone.
    ///
    /// # Errors
    /// If libtorch refuses, or another process is gone.
    pub(crate) fn reducer(&self, parameters: &[Tensor]) -> Result<Option<Reducer>> {
        let Some(together) = &self.together else { return Ok(None) };
        let is_on_gpu = parameters.iter().any(|parameter| parameter.device().is_cuda());
        let nccl = if is_on_gpu { Nccl::find() } else { Err(Error::new("its network is on the CPU")) };
        let said = self.to_first(nccl.as_ref().err().map(|why| why.first_line().to_owned()))?;
        let refused = said.into_iter().enumerate().find_map(|(rank, why)| Some((rank, why?)));
        let group = match (self.from_first(|| Ok(refused))?, nccl) {
            (None, Ok(nccl)) => {
                let group = Group::open_nccl(&together.store, (self.rank, self.size), nccl)?;
                together.of_gpus.get_or_init(|| group)
            }
            (refused, _) => {
                if let Some((rank, why)) = refused.filter(|_| is_on_gpu) {
                    warn(format_args!(
                        "gradients are summed through Gloo, by way of the CPU, since {} cannot use NCCL: {why}",
                        named(rank, &together.who)
                    ));
                }
                &together.group
            }
        };
        group.reducer(parameters).map(Some)
    }

    /// An error that another process may be the cause of: if it is, it ends this process with a
    /// message of its own soon.
    pub(crate) fn explained(&self, error: Error) -> Error {
        let is_lost = ["gloo", "NCCL", "Connection", "Broken pipe"]
            .iter()
            .any(|word| error.first_line().contains(word));
        if self.together.is_some() && is_lost {
            thread::sleep(SILENCE + 2 * FAREWELL);
            return error.fix("look at the messages of the other processes");
        }
        error
    }

    /// Ends this process's part. If it failed, all processes end, and the first one prints the
    /// error.
    ///
    /// # Errors
    /// The error, where this process prints it.
    pub fn end(&self, ending: Result<u8>) -> Result<u8> {
        let Some(together) = &self.together else { return ending };
        match ending {
            Ok(code) => {
                self.leave(together)?;
                Ok(code)
            }
            // The user stopped this process while it worked on its own part. All of them stop, and
            // each keeps what it has.
            Err(error) if error.is_interrupted() => {
                together.store.set(STOPPED, b"")?;
                self.leave(together)?;
                Err(error)
            }
            Err(error) => self.fail(together, error),
        }
    }

    /// Ends well. The first process may serve the store: it waits for the others.
    fn leave(&self, together: &Together) -> Result<()> {
        // Its threads would outlive what they need.
        together.of_gpus.get().into_iter().for_each(Group::shut_down);
        together.store.set(&key("done", self.rank), b"")?;
        for rank in (1..self.size).filter(|_| self.is_first()) {
            pulse::waiting(|| together.poll(&key("done", rank), || Ok(())))?;
        }
        together.watch.ends.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn fail(&self, together: &Together, error: Error) -> Result<u8> {
        let Together { place, store, watch, .. } = together;
        if store.get(FAILED).is_ok_and(|failed| failed.is_some()) {
            // Another process failed before: its message is the one.
            thread::sleep(SILENCE);
        }
        watch.ends.store(true, Ordering::SeqCst);
        if tell_failure(store, place, &error.to_string(), error.exit_code()) {
            return Ok(error.exit_code());
        }
        console::be_heard();
        Err(error)
    }
}

impl Together {
    fn new(place: Place, task: &str, patience: Duration) -> Result<Self> {
        if !has_groups() {
            return Err(Error::new(format!(
                "there are {} processes, but this program was built without Gloo, which they speak through",
                place.size
            ))
            .note("missing", "Gloo's headers when it was built (gloo/algorithm.h), or c10d in this libtorch")
            .fix(
                "install Debian's libgloo-dev, or name the headers' folder with GLOO_INCLUDE; build again",
            ));
        }
        let own = address_of_way_to(&place.address, place.port).map_err(|why| {
            Error::new(format!("MASTER_ADDR: there is no machine `{}`: {why}", place.address))
                .fix("give the name or the address of the machine of process 0")
        })?;
        let begun = Instant::now();
        let store = open_store(&place, place.serves(), patience)?;
        let joined = arrive(&place, (task, own), &store, (begun, patience)).and_then(|arrived| {
            let (who, addresses): (Vec<String>, Vec<IpAddr>) = arrived.into_iter().unzip();
            let group = join_group(&place, &store, address_that_others_reach(own, &addresses))?;
            let watch = Watch::begin(&place, open_store(&place, false, patience)?, patience, who.clone());
            Ok((who, group, watch))
        });
        match joined {
            Ok((who, group, watch)) => {
                let (of_gpus, messages, vote) = (OnceCell::new(), Cell::new(0), RefCell::default());
                Ok(Self { place, store, group, of_gpus, watch, who, messages, vote })
            }
            Err(error) => {
                if tell_failure(&store, &place, &error.to_string(), error.exit_code()) {
                    end("", error.exit_code());
                }
                Err(error)
            }
        }
    }

    /// The key of the next message. All processes exchange the same messages in the same order.
    fn next_message(&self, what: &str) -> String {
        self.messages.set(self.messages.get() + 1);
        format!("{what}/{}", self.messages.get())
    }

    /// Waits for a key. The watch ends the process if it cannot come any more.
    fn wait_for(&self, key: &str) -> Result<Vec<u8>> {
        let refuse_if_stopped =
            || if self.store.get(STOPPED)?.is_some() { Err(interrupted()) } else { Ok(()) };
        pulse::waiting(|| self.poll(key, refuse_if_stopped))
    }

    /// Asks for a key until it is there; in between, `refuse` may end that.
    fn poll(&self, key: &str, refuse: impl Fn() -> Result<()>) -> Result<Vec<u8>> {
        loop {
            if let Some(value) = self.store.get(key)? {
                return Ok(value);
            }
            refuse()?;
            thread::sleep(ASK_EVERY);
        }
    }
}

/// Joins the group of these processes, whose connections come to this process at this address, unless
/// the user names interfaces of the network.
fn join_group(place: &Place, store: &Store, own: IpAddr) -> Result<Group> {
    let (at, own) = ((place.rank, place.size), own.to_string());
    let Some(names) = std::env::var(INTERFACES).ok().filter(|names| !names.is_empty()) else {
        return Group::open(store, at, Meeting::Address(&own)).map_err(|error| {
            error
                .note("address", &own)
                .fix(format!("name another interface of this machine with {INTERFACES}"))
        });
    };
    let is_missing = |name: &&str| !Path::new("/sys/class/net").join(name).exists();
    match names.split(',').find(is_missing) {
        None => Group::open(store, at, Meeting::Interfaces(&names)),
        Some(name) => Err(Error::new(format!("{INTERFACES}: there is no network interface `{name}` here"))
            .fix("give one that `ip link` lists, or unset the variable")),
    }
}
