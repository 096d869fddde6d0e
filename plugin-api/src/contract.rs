//! Versions of the contract between host and plugins, and the additions of each version.
//!
//! Contract 1.x grows by additions. A plugin supports only the norms of its own version. Plugins of
//! contract 1.0 and 1.1 treat every other norm as l2, so the host must check, before each call,
//! that the plugin's version has the norm.

use crate::manifest::CONTRACT;
use crate::{Error, Norm, Result};
use std::fmt;

/// A version of the contract. Versions of one major number add to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// It changes when earlier plugins are no longer compatible.
    pub major: u32,
    /// It rises with every addition.
    pub minor: u32,
}

/// The version of this crate. Libraries state their minor number since 1.2.
pub const CURRENT: Version = Version { major: CONTRACT, minor: 2 };

impl Version {
    /// Version 1.`minor`.
    pub(crate) const fn one(minor: u32) -> Self {
        Self { major: 1, minor }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.major, self.minor)
    }
}

/// The first version of the contract that has this norm.
pub fn norm_since(norm: Norm) -> Version {
    match norm {
        Norm::Linf | Norm::L2 => Version::one(0),
        Norm::L1 => Version::one(2),
    }
}

/// Whether plugins built for this version of the contract support a norm.
///
/// # Errors
/// If it was added later: both versions, and a remedy.
pub fn check_norm(norm: Norm, plugin: Version) -> Result<()> {
    check_supported(&format!("the norm {norm}"), norm_since(norm), plugin)
}

fn check_supported(what: &str, since: Version, plugin: Version) -> Result<()> {
    if plugin >= since {
        return Ok(());
    }
    Err(Error::new(format!(
        "built for contract {plugin}, it does not support {what}, which contract {since} added; \
         rebuild it against this host's plugin-api"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_norm_that_was_added_later_is_refused_with_both_versions() {
        for norm in [Norm::Linf, Norm::L2] {
            assert_eq!(check_norm(norm, Version::one(0)), Ok(()), "{norm}");
        }
        let check = |plugin| check_norm(Norm::L1, Version::one(plugin));
        assert_eq!((check(2), check(3)), (Ok(()), Ok(())));
        for (plugin, version) in [(0, "1.0"), (1, "1.1")] {
            let error = check(plugin).expect_err("refused").to_string();
            for part in [&format!("contract {version},"), "the norm l1", "contract 1.2 added", "rebuild"] {
                assert!(error.contains(part), "{error}");
            }
        }
    }

    #[test]
    fn no_norm_is_newer_than_this_contract() {
        for norm in Norm::ALL {
            assert!(norm_since(norm) <= CURRENT, "{norm}");
        }
    }
}
