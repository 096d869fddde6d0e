use crate::Result;
use crate::command::arguments::TrustArguments;
use crate::plugin::trust;
use crate::util::console::say;

/// `host trust`
pub fn run(arguments: &TrustArguments) -> Result<u8> {
    for name in &arguments.files {
        let (path, sha256) = trust::named(name)?;
        trust::add(&path, &sha256)?;
        say(format_args!("trusted: {} (SHA-256 {sha256})", path.display()));
    }
    Ok(0)
}
