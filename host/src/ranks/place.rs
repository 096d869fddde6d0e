//! The place of this process among those that work together: what launchers say in the environment.

use crate::{Error, Result};
use std::path::Path;

/// The place of one process among those that work together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its number, from 0.
    pub rank: usize,
    /// How many there are.
    pub size: usize,
    /// Its number among those of its machine.
    pub local_rank: usize,
    /// Where the processes meet: a machine.
    pub address: String,
    /// The port there.
    pub port: u16,
    /// Whether the launcher serves the store itself, as torchrun does.
    pub is_served: bool,
    /// Which start of the processes this is, where a launcher starts them again after a failure.
    pub attempt: String,
}

/// How to begin processes that work together, for errors.
const LAUNCHERS: &str = "start the processes with `host launch -n N -- train ...`, torchrun or srun";

impl Place {
    /// The variables that say that there are several processes.
    pub const VARIABLES: [&str; 2] = ["WORLD_SIZE", "SLURM_STEP_ID"];

    /// What the environment says, if it says that there are several processes. torchrun and
    /// programs like it set `RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `MASTER_ADDR` and `MASTER_PORT`;
    /// SLURM sets its own variables for each process of a step (srun).
    ///
    /// # Errors
    /// If a variable is missing or not what it should be.
    pub fn from_environment() -> Result<Option<Self>> {
        Self::from(&|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn from(variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let number = |name: &str| -> Result<Option<usize>> {
            let Some(value) = variable(name) else { return Ok(None) };
            value.trim().parse().map(Some).map_err(|_| {
                Error::new(format!("{name}: expected a whole number, got `{value}`")).fix(LAUNCHERS)
            })
        };
        let (names, size) = match number("WORLD_SIZE")? {
            Some(size) => (["RANK", "WORLD_SIZE", "LOCAL_RANK"], size),
            // Only processes of a step are told its id: the batch script itself is not one of them.
            None if variable("SLURM_STEP_ID").is_some() => {
                let name = ["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"]
                    .into_iter()
                    .find(|name| variable(name).is_some());
                let Some(name) = name else { return Ok(None) };
                (["SLURM_PROCID", name, "SLURM_LOCALID"], number(name)?.unwrap_or(1))
            }
            None => return Ok(None),
        };
        let [of_rank, of_size, of_local] = names;
        if size == 0 {
            return Err(Error::new(format!("{of_size}: expected 1 or more processes, got 0")).fix(LAUNCHERS));
        }
        if size == 1 {
            return Ok(None);
        }
        let missing = |name: &str, what: &str| {
            Error::new(format!("{of_size} is {size}, but {name} is not set: expected {what}")).fix(LAUNCHERS)
        };
        let rank = number(of_rank)?.ok_or_else(|| missing(of_rank, "the number of this process"))?;
        if rank >= size {
            let last = size - 1;
            return Err(Error::new(format!(
                "{of_rank}: expected 0 to {last} ({of_size} is {size}), got {rank}"
            ))
            .fix(LAUNCHERS));
        }
        let of_slurm = of_rank == "SLURM_PROCID";
        let nodes = || variable("SLURM_STEP_NODELIST").or_else(|| variable("SLURM_JOB_NODELIST"));
        let address = match variable("MASTER_ADDR") {
            Some(address) => address,
            None if of_slurm => nodes()
                .and_then(|nodes| first_node(&nodes))
                .ok_or_else(|| missing("MASTER_ADDR", "the machine of process 0"))?,
            None => return Err(missing("MASTER_ADDR", "the machine of process 0")),
        };
        let port = match number("MASTER_PORT")? {
            Some(port) => port,
            // Jobs that share a machine meet at ports of their own.
            None if of_slurm => 20_000 + number("SLURM_JOB_ID")?.unwrap_or(0) % 10_000,
            None => return Err(missing("MASTER_PORT", "a free port of that machine")),
        };
        let port = u16::try_from(port).ok().filter(|port| *port > 0).ok_or_else(|| {
            Error::new(format!("MASTER_PORT: expected 1 to 65535, got {port}")).fix("choose a free port")
        })?;
        Ok(Some(Self {
            rank,
            size,
            local_rank: number(of_local)?.unwrap_or(rank),
            address,
            port,
            is_served: variable("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value == "True"),
            attempt: variable("TORCHELASTIC_RESTART_COUNT").unwrap_or("0".to_owned()),
        }))
    }

    /// Whether this process serves the store.
    pub fn serves(&self) -> bool {
        self.rank == 0 && !self.is_served
    }

    /// Whether this process says what it waits for: one on each machine.
    pub fn speaks(&self) -> bool {
        self.rank == 0 || self.local_rank == 0
    }
}

/// The threads that a launcher leaves to this process out of `cores`. torchrun and `host launch` say
/// how many processes share the machine. SLURM says how many cores a process has, or binds it to them;
/// `cores` are then those.
pub(super) fn threads(cores: usize) -> usize {
    let number =
        |name: &str| std::env::var(name).ok()?.trim().parse::<usize>().ok().filter(|number| *number > 0);
    match (number("LOCAL_WORLD_SIZE"), number("SLURM_CPUS_PER_TASK")) {
        (Some(processes), _) => (cores / processes).max(1),
        (None, Some(own)) => own.min(cores),
        (None, None) => cores,
    }
}

/// The first machine of SLURM's list: `node[07-09,12],gpu1` begins with `node07`.
fn first_node(list: &str) -> Option<String> {
    let Some((before, rest)) = list.split_once('[') else {
        return list.split(',').next().map(str::to_owned).filter(|name| !name.is_empty());
    };
    if let Some((first, _)) = before.split_once(',') {
        return Some(first.to_owned());
    }
    let numbers = rest.split(']').next()?;
    let first = numbers.split([',', '-']).next().filter(|number| !number.is_empty())?;
    let after = rest.split_once(']')?.1.split(',').next().unwrap_or_default();
    Some(format!("{before}{first}{after}"))
}

/// The name of this machine, for messages.
pub(super) fn machine() -> String {
    let name = std::fs::read_to_string(Path::new("/proc/sys/kernel/hostname")).unwrap_or_default();
    name.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(variables: &[(&str, &str)]) -> Result<Option<Place>> {
        Place::from(&|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    const TORCHRUN: [(&str, &str); 5] = [
        ("RANK", "3"),
        ("WORLD_SIZE", "4"),
        ("LOCAL_RANK", "1"),
        ("MASTER_ADDR", "node7"),
        ("MASTER_PORT", "29500"),
    ];

    #[test]
    fn torchrun_and_slurm_say_where_a_process_stands() {
        let found = place(&TORCHRUN).expect("valid").expect("several");
        assert_eq!((found.rank, found.size, found.local_rank), (3, 4, 1));
        assert_eq!((found.address.as_str(), found.port, found.serves()), ("node7", 29500, false));

        let slurm = [
            ("SLURM_STEP_ID", "0"),
            ("SLURM_STEP_NUM_TASKS", "8"),
            ("SLURM_PROCID", "5"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_JOB_ID", "123456"),
            ("SLURM_STEP_NODELIST", "gpu[07-08,11]"),
        ];
        let found = place(&slurm).expect("valid").expect("several");
        assert_eq!((found.rank, found.size, found.local_rank), (5, 8, 1));
        assert_eq!((found.address.as_str(), found.port), ("gpu07", 23456));
        // The batch script is no process of a step: it trains alone.
        assert_eq!(place(&slurm[1..]).expect("valid"), None);
    }

    #[test]
    fn one_process_is_alone() {
        assert_eq!(place(&[]).expect("valid"), None);
        assert_eq!(place(&[("WORLD_SIZE", "1")]).expect("valid"), None);
    }

    #[test]
    fn what_is_missing_or_out_of_range_is_named() {
        let first_line =
            |variables: &[(&str, &str)]| place(variables).expect_err("refused").first_line().to_owned();
        assert_eq!(
            first_line(&TORCHRUN[..3]),
            "WORLD_SIZE is 4, but MASTER_ADDR is not set: expected the machine of process 0"
        );
        assert_eq!(
            first_line(&TORCHRUN[1..]),
            "WORLD_SIZE is 4, but RANK is not set: expected the number of this process"
        );
        assert_eq!(
            first_line(&[&[("RANK", "4")], &TORCHRUN[1..]].concat()),
            "RANK: expected 0 to 3 (WORLD_SIZE is 4), got 4"
        );
        assert_eq!(first_line(&[("WORLD_SIZE", "two")]), "WORLD_SIZE: expected a whole number, got `two`");
        assert_eq!(first_line(&[("WORLD_SIZE", "0")]), "WORLD_SIZE: expected 1 or more processes, got 0");
        assert_eq!(
            first_line(&[&[("MASTER_PORT", "65536")], &TORCHRUN[..4]].concat()),
            "MASTER_PORT: expected 1 to 65535, got 65536"
        );
    }

    #[test]
    fn lists_of_machines_are_read() {
        for (list, first) in [
            ("node1", "node1"),
            ("a,b[1-2]", "a"),
            ("node[3,7]", "node3"),
            ("rack[10-12]-ib,login", "rack10-ib"),
        ] {
            assert_eq!(first_node(list).as_deref(), Some(first), "{list}");
        }
        assert_eq!(first_node(""), None);
    }
}
