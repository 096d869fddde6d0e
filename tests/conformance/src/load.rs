//! Checks of a library and of loading it.

use crate::toy::{Batch, Instance, Problem};
use crate::{Check, Outcome, Plugin, Verdict, options};
use plugin_api::LIBTORCH;
use plugin_api::manifest::CONTRACT;
use plugin_api::tch::Tensor;

/// A library with the plugin to be checked. The default methods are those of a plugin that is
/// linked into the program, without a library.
pub trait Library {
    /// The plugin; the first call opens the library.
    ///
    /// # Errors
    /// The reason why it cannot be opened.
    fn plugin(&self) -> Result<&Plugin, String>;

    /// The output while the library was opened.
    fn printed(&self) -> String {
        String::new()
    }

    /// The plugin's name, and the number of plugins of its kind with this name in the manifest,
    /// which is read without running the library.
    fn name(&self) -> (String, usize) {
        (String::new(), 0)
    }

    /// The contract and the libtorch that the plugin was built for.
    fn built_for(&self) -> (u32, String) {
        (CONTRACT, LIBTORCH.to_owned())
    }

    /// Opens the library again.
    ///
    /// # Errors
    /// The reason why it cannot be opened.
    fn open_again(&self) -> Result<Plugin, String> {
        Err("there is no library".to_owned())
    }

    /// Opens a copy of the library, which has its own code and statics.
    ///
    /// # Errors
    /// The reason why it cannot be opened.
    fn open_copy(&self) -> Result<Plugin, String> {
        Err("there is no library".to_owned())
    }

    /// What differs from the process before the first check: settings of libtorch, signal handlers,
    /// standard streams, the working directory, the environment. None if nothing does.
    fn changes_of_process(&self) -> Option<String> {
        None
    }

    /// Whether the host can use a model with these parameters and buffers, by name.
    ///
    /// # Errors
    /// If not: the reason.
    fn accepts(&self, _state: &[(String, Tensor)]) -> Result<(), String> {
        Ok(())
    }

    /// Loads the CUDA part of libtorch.
    ///
    /// # Errors
    /// The reason why it cannot be used.
    fn load_cuda(&self) -> Result<(), String> {
        Err("only `host conform` loads CUDA".to_owned())
    }
}

pub const CHECKS: [Check; 7] = [
    Check::of_library(
        "load-manifest",
        "the manifest can be read without running the library, and names the plugin once",
        manifest,
    )
    .after(&[]),
    Check::of_library("load-contract", "the library was built for this host's contract", contract)
        .after(&["load-manifest"]),
    Check::of_library("load-libtorch", "the library was built for this host's libtorch", libtorch)
        .after(&["load-contract"]),
    Check::of_library("load-cold", "a new process can open the library", cold).after(&["load-libtorch"]),
    Check::of_library("load-silent", "nothing is printed while the library is opened", silent)
        .after(&["load-cold"]),
    Check::of_library("load-twice", "a library that is opened twice has the same plugin", twice)
        .after(&["determinism-repeats"]),
    Check::of_library(
        "load-side-by-side",
        "two libraries in one process do not affect each other",
        side_by_side,
    )
    .after(&["determinism-repeats"]),
];

fn manifest(library: &dyn Library, _: u64) -> Verdict {
    let (name, namesakes) = library.name();
    if name.is_empty() || name.contains(|letter: char| letter.is_whitespace() || ",=/".contains(letter)) {
        return Ok(Outcome::failed("a name that can be written as plugin=NAME", format!("{name:?}")));
    }
    Ok(Outcome::demand(
        namesakes == 1,
        "one plugin of its kind with this name",
        format!("{namesakes} plugins named `{name}`"),
    ))
}

fn contract(library: &dyn Library, _: u64) -> Verdict {
    let (contract, _) = library.built_for();
    Ok(Outcome::demand(
        contract == CONTRACT,
        format!("contract {CONTRACT}, which this host supports"),
        format!("contract {contract}: rebuild the plugin against this host's plugin-api"),
    ))
}

fn libtorch(library: &dyn Library, _: u64) -> Verdict {
    let (_, libtorch) = library.built_for();
    Ok(Outcome::demand(
        libtorch == LIBTORCH,
        format!("libtorch {LIBTORCH}, which this host uses"),
        format!("libtorch {libtorch}: rebuild the plugin with LIBTORCH set to this host's"),
    ))
}

fn cold(library: &dyn Library, _: u64) -> Verdict {
    match library.plugin() {
        Ok(_) => Ok(Outcome::Passed),
        Err(why) => Ok(Outcome::failed("the plugin that the manifest names", why)),
    }
}

fn silent(library: &dyn Library, _: u64) -> Verdict {
    library.plugin().map_err(|why| Outcome::failed("a library that can be opened", why))?;
    let printed = library.printed();
    Ok(Outcome::demand(printed.is_empty(), "no output while loading", format!("{printed:?}")))
}

/// The behaviour of a plugin: its options and its results for a batch.
fn behaviour(plugin: &Plugin, batch: &Batch) -> Result<(String, Vec<Tensor>), Outcome> {
    let results = Instance::new(plugin, batch)?.act(batch);
    let results = results.map_err(|error| Outcome::failed("a result", error))?;
    Ok((options::schema(plugin)?.to_string(), results))
}

fn same(one: &Plugin, other: &Plugin, seed: u64, expected: &str) -> Verdict {
    // In turns, so that each can affect the other.
    let behave = |plugin| behaviour(plugin, &Problem::new(seed).batch(0..4));
    let (before, others, after) = (behave(one)?, behave(other)?, behave(one)?);
    Ok(Outcome::demand(before == others && before == after, expected, "other options or results"))
}

fn opened<T>(opened: Result<T, String>) -> Result<T, Outcome> {
    opened.map_err(|why| Outcome::failed("a library that can be opened", why))
}

fn twice(library: &dyn Library, seed: u64) -> Verdict {
    let (first, second) = (opened(library.plugin())?, opened(library.open_again())?);
    same(first, &second, seed, "the same plugin when the library is opened again")
}

fn side_by_side(library: &dyn Library, seed: u64) -> Verdict {
    let (original, copy) = (opened(library.plugin())?, opened(library.open_copy())?);
    same(original, &copy, seed, "the same behaviour beside a copy of the library")
}
