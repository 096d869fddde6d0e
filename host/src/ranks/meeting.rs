//! How processes find each other: the store that one of them serves, who has arrived there, and the
//! addresses at which they reach each other.

use super::place::{self, Place};
use super::watch::{FAILED, FAREWELL, Failure, key, named, obey, wait_for_all};
use crate::torch::c10d::Store;
use crate::util::console::{self, between_lines};
use crate::{Error, Result};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

/// The time between two looks at who has arrived.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The key of the names and addresses of all processes, once all are there.
const EVERYBODY: &str = "everybody";

/// Serves the store of this place, or connects to it; says meanwhile who is awaited.
pub(super) fn open_store(place: &Place, serves: bool, patience: Duration) -> Result<Store> {
    let begun = Instant::now();
    loop {
        let left = patience.saturating_sub(begun.elapsed());
        let prefix = format!("host/{}/", place.attempt);
        let some = if serves { left } else { left.min(between_lines()) };
        let why = match Store::open((&place.address, place.port), serves, some, prefix) {
            Ok(store) => return Ok(store),
            Err(why) => why,
        };
        if serves {
            return Err(why.fix("choose a free port with MASTER_PORT, or stop the program that uses it"));
        }
        if begun.elapsed() >= patience {
            return Err(why.fix("look whether process 0 runs, and MASTER_ADDR and MASTER_PORT name it"));
        }
        if place.speaks() {
            let Place { address, port, .. } = place;
            let awaited = if place.is_served { "the launcher" } else { "process 0" };
            say_waiting(&format!("{awaited} at {address}, port {port}"), begun, patience);
        }
    }
}

fn say_waiting(awaited: &str, begun: Instant, patience: Duration) {
    let (seconds, of) = (begun.elapsed().as_secs(), patience.as_secs());
    console::progress(&format!("waiting for {awaited} ({seconds} s of {of})"));
}

/// What a process says when it arrives: its name for people, what it does, and its address on the way to
/// the store.
type Arrival = (String, String, IpAddr);

/// Waits until all processes are there. Returns their names, for people, and their addresses.
pub(super) fn arrive(
    place: &Place,
    (task, address): (&str, IpAddr),
    store: &Store,
    (begun, patience): (Instant, Duration),
) -> Result<Vec<(String, IpAddr)>> {
    let Place { rank, size, .. } = place;
    let here = |rank| key("here", rank);
    // Others may do something else, or be of another version: they would never meet.
    let work = format!("host {task}, version {}", env!("CARGO_PKG_VERSION"));
    let arrival: Arrival = (own_name(), work.clone(), address);
    store.set(&here(*rank), &serde_json::to_vec(&arrival).unwrap_or_default())?;
    // Those that wait for the first process's word wait longer than it does.
    let limit = if *rank == 0 { patience } else { patience + FAREWELL };
    let mut said = Instant::now();
    loop {
        if let Some(failure) = store.get(FAILED)? {
            obey(store, (*rank, *size), serde_json::from_slice(&failure).ok());
        }
        let is_line_due = place.speaks() && said.elapsed() >= between_lines();
        let arrived = || (0..*size).map(|rank| store.get(&here(rank))).collect::<Result<Vec<_>>>();
        if is_line_due {
            said = Instant::now();
            say_waiting(&format!("{} of {size}", missing(&arrived()?)), begun, patience);
        }
        if *rank == 0 {
            let arrived = arrived()?;
            if arrived.iter().all(Option::is_some) {
                let read = |text: &Vec<u8>| {
                    let unknown = || (String::new(), "another version".to_owned(), address);
                    serde_json::from_slice::<Arrival>(text).unwrap_or_else(|_| unknown())
                };
                let said: Vec<_> = arrived.iter().flatten().map(read).collect();
                if let Some(other) = said.iter().position(|(_, other, _)| *other != work) {
                    let who: Vec<_> = said.iter().map(|(who, ..)| who.clone()).collect();
                    let name = named(other, &who);
                    return Err(Error::new(format!("{name} does other work than process 0"))
                        .note("process 0", &work)
                        .note("there", &said[other].1)
                        .fix("start all processes with the same command"));
                }
                let everybody: Vec<_> = said.into_iter().map(|(who, _, address)| (who, address)).collect();
                store.set(EVERYBODY, &serde_json::to_vec(&everybody).unwrap_or_default())?;
                return Ok(everybody);
            }
            if begun.elapsed() > limit {
                return Err(not_all(&arrived, patience));
            }
        } else if let Some(everybody) = store.get(EVERYBODY)? {
            return serde_json::from_slice(&everybody).map_err(|why| Error::new(why).on_the_way());
        } else if begun.elapsed() > limit {
            return Err(Error::new(format!(
                "process 0 did not say within {} s that all {size} processes are there",
                patience.as_secs()
            ))
            .fix("look at its messages"));
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// This process, for people.
fn own_name() -> String {
    format!("pid {} on {}", std::process::id(), place::machine())
}

/// Tells the other processes that this one failed. Returns whether the first one prints the message for
/// it.
pub(super) fn tell_failure(store: &Store, Place { rank, size, .. }: &Place, message: &str, code: u8) -> bool {
    let message = match rank {
        // It prints it itself.
        0 => String::new(),
        _ => format!("process {rank} ({}): {message}", own_name()),
    };
    let failure = Failure { rank: *rank, message, code };
    let _ = store.set(FAILED, &serde_json::to_vec(&failure).unwrap_or_default());
    let _ = store.set(&key("heard", *rank), b"");
    if *rank == 0 {
        let keys: Vec<_> = (1..*size).map(|rank| key("heard", rank)).collect();
        wait_for_all(store, &keys, FAREWELL);
        return false;
    }
    let is_heard = wait_for_all(store, &[key("heard", 0)], FAREWELL);
    if is_heard {
        let _ = store.set(&key("ended", *rank), b"");
    }
    is_heard
}

/// The processes that have not arrived, for people: "ranks 1, 3".
fn missing(arrived: &[Option<Vec<u8>>]) -> String {
    let missing: Vec<_> =
        (0..arrived.len()).filter(|rank| arrived[*rank].is_none()).map(|rank| rank.to_string()).collect();
    format!("{} {}", if missing.len() == 1 { "rank" } else { "ranks" }, missing.join(", "))
}

fn not_all(arrived: &[Option<Vec<u8>>], patience: Duration) -> Error {
    Error::new(format!(
        "{} of {} processes did not arrive within {} s: {}",
        arrived.iter().filter(|arrived| arrived.is_none()).count(),
        arrived.len(),
        patience.as_secs(),
        missing(arrived)
    ))
    .fix("look why they do not start, or allow more time with --rank-timeout")
}

/// The address of this machine on the way to another one.
///
/// # Errors
/// If there is no machine of this name.
pub(super) fn address_of_way_to(address: &str, port: u16) -> io::Result<IpAddr> {
    let mut there: Vec<_> = (address, port).to_socket_addrs()?.collect();
    // All processes take the same kind of address.
    there.sort_by_key(SocketAddr::is_ipv6);
    let own = there.into_iter().find_map(on_the_way_to);
    Ok(own.unwrap_or(Ipv4Addr::LOCALHOST.into()))
}

/// The address of this machine from which the system would send to that one.
fn on_the_way_to(there: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr =
        if there.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    // Nothing is sent: UDP has no connections.
    socket.connect(there).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// The address at which the others reach this process: its own on the way to the store. On the machine
/// of the store this may be an address that only that machine knows, since many systems give it to their
/// own name; if another process has a real one, it is the address on the way there.
pub(super) fn address_that_others_reach(own: IpAddr, all: &[IpAddr]) -> IpAddr {
    let elsewhere = all.iter().find(|address| own.is_loopback() && !address.is_loopback());
    // The port does not matter.
    elsewhere.and_then(|address| on_the_way_to((*address, 9).into())).unwrap_or(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_of_this_machine_is_that_of_the_way_to_the_store() {
        let here: IpAddr = Ipv4Addr::LOCALHOST.into();
        assert_eq!(address_of_way_to("127.0.0.1", 29500).expect("an address"), here);
        assert!(address_of_way_to("no-such-machine.invalid", 29500).is_err());
        assert_eq!(address_that_others_reach(here, &[here, Ipv4Addr::new(127, 0, 1, 1).into()]), here);
        // An address for documentation: the way there is known where the machine has a network.
        let elsewhere: IpAddr = Ipv4Addr::new(192, 0, 2, 1).into();
        let expected = on_the_way_to((elsewhere, 9).into()).unwrap_or(here);
        assert_eq!(address_that_others_reach(here, &[here, elsewhere]), expected);
        assert_eq!(address_that_others_reach(elsewhere, &[here, expected]), elsewhere);
    }

    #[test]
    fn those_that_have_not_arrived_are_named() {
        let arrived = |which: &[bool]| -> Vec<_> { which.iter().map(|is| is.then(Vec::new)).collect() };
        assert_eq!(missing(&arrived(&[true, false, true, false])), "ranks 1, 3");
        assert_eq!(missing(&arrived(&[true, false])), "rank 1");
    }
}
