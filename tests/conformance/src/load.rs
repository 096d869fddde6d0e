//! Checks of a library, and of how it is loaded.

use crate::toy::{Batch, Instance, Problem};
use crate::{Check, Outcome, Plugin, Verdict, options};
use plugin_api::LIBTORCH;
use plugin_api::manifest::CONTRACT;
use plugin_api::tch::Tensor;

/// A library with the plugin to be judged, as the program that loads it sees it. Where there
/// is none to load (the plugin is linked into the program), the defaults say so.
pub trait Library {
    /// The plugin; the first call opens the library.
    ///
    /// # Errors
    /// Why it cannot be opened.
    fn plugin(&self) -> Result<&Plugin, String>;

    /// What was printed while the library was opened.
    fn printed(&self) -> String {
        String::new()
    }

    /// The plugin's name, and how many plugins of its kind have it in the manifest, which is
    /// read without running the library.
    fn name(&self) -> (String, usize) {
        (String::new(), 0)
    }

    /// The contract and the libtorch that the plugin was built for.
    fn built_for(&self) -> (u32, String) {
        (CONTRACT, LIBTORCH.to_owned())
    }

    /// Opens the library once more.
    ///
    /// # Errors
    /// Why it cannot be opened.
    fn open_again(&self) -> Result<Plugin, String> {
        Err("there is no library".to_owned())
    }

    /// Opens a copy of the library beside it: code and statics of its own.
    ///
    /// # Errors
    /// Why it cannot be opened.
    fn open_copy(&self) -> Result<Plugin, String> {
        Err("there is no library".to_owned())
    }

    /// Makes libtorch's CUDA half usable.
    ///
    /// # Errors
    /// Why it cannot be used.
    fn load_cuda(&self) -> Result<(), String> {
        Err("CUDA is loaded by `host conform` only".to_owned())
    }
}

pub const CHECKS: [Check; 7] = [
    Check::of_library(
        "load-manifest",
        "the manifest can be read without running the library, and names the plugin once",
        manifest,
    )
    .after(&[]),
    Check::of_library("load-contract", "it was built for this host's contract", contract)
        .after(&["load-manifest"]),
    Check::of_library("load-libtorch", "it was built for this host's libtorch", libtorch)
        .after(&["load-contract"]),
    Check::of_library("load-cold", "a process that did nothing before can open it", cold)
        .after(&["load-libtorch"]),
    Check::of_library("load-silent", "nothing is printed while it is opened", silent).after(&["load-cold"]),
    Check::of_library("load-twice", "opened twice, it is the same plugin", twice)
        .after(&["determinism-repeats"]),
    Check::of_library("load-side-by-side", "two libraries in one process keep apart", side_by_side)
        .after(&["determinism-repeats"]),
];

fn manifest(library: &dyn Library, _: u64) -> Verdict {
    let (name, namesakes) = library.name();
    if name.is_empty() || name.contains(|letter: char| letter.is_whitespace() || ",=/".contains(letter)) {
        return Ok(Outcome::failed("a name that can be written as plugin=NAME", format!("{name:?}")));
    }
    Ok(Outcome::demand(
        namesakes == 1,
        "a name that the manifest gives to one plugin of its kind",
        format!("{namesakes} of the name `{name}`"),
    ))
}

fn contract(library: &dyn Library, _: u64) -> Verdict {
    let (contract, _) = library.built_for();
    Ok(Outcome::demand(
        contract == CONTRACT,
        format!("contract {CONTRACT}, which this host knows"),
        format!("contract {contract}: rebuild the plugin against this host's plugin-api"),
    ))
}

fn libtorch(library: &dyn Library, _: u64) -> Verdict {
    let (_, libtorch) = library.built_for();
    Ok(Outcome::demand(
        libtorch == LIBTORCH,
        format!("libtorch {LIBTORCH}, which this host runs"),
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
    Ok(Outcome::demand(printed.is_empty(), "no word while loading", format!("{printed:?}")))
}

/// What tells one plugin from another: its options, and what it does with a batch.
fn behaviour(plugin: &Plugin, batch: &Batch) -> Result<(String, Vec<Tensor>), Outcome> {
    let results = Instance::new(plugin, batch)?.act(batch);
    let results = results.map_err(|error| Outcome::failed("a result", error))?;
    Ok((options::schema(plugin)?.to_string(), results))
}

fn same(one: &Plugin, other: &Plugin, seed: u64, expected: &str) -> Verdict {
    // In turns, so that each could disturb the other.
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
    same(original, &copy, seed, "a plugin that does not notice a copy of its library beside it")
}
