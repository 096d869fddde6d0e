use crate::Result;
use crate::command::arguments::TrustArguments;
use crate::plugin::library::inspect;
use crate::plugin::trust;
use crate::util::console::say;

/// `host trust`
pub fn run(arguments: &TrustArguments) -> Result<u8> {
    for name in &arguments.files {
        let file = inspect(name)?;
        trust::add(&file)?;
        say(format_args!("trusted: {} (SHA-256 {})", file.path.display(), file.sha256));
    }
    Ok(0)
}
