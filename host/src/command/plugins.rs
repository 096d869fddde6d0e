use crate::Result;
use crate::command::arguments::PluginsArguments;
use crate::plugin::library::installed;
use crate::util::console::{say, warn};
use serde_json::json;

/// `host plugins`
pub fn run(arguments: &PluginsArguments) -> Result<u8> {
    let (files, folders) = installed();
    if files.is_empty() {
        let folders: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
        warn(format_args!(
            "no plugin was found in: {}; copy the libraries of plugins beside this program, or put their folder \
             into DRO_PLUGIN_PATH",
            folders.join(", ")
        ));
    }
    for file in files {
        // Plugins that are made for tests lie next to the executable, too.
        for manifest in file.manifests.iter().filter(|manifest| !manifest.is_for_tests()) {
            let fits = manifest.fits().map_err(|(what, _)| what);
            if arguments.json {
                let why_not = fits.err();
                say(json!({"manifest": manifest, "path": file.path, "why_not": why_not}));
                continue;
            }
            let kind = manifest.kind.name();
            let fits = fits.map_or_else(|what| format!("does not fit: {what}"), |()| "fits".to_owned());
            say(format_args!(
                "{:9} {:16} {:8} {fits}  {}",
                kind,
                manifest.name,
                manifest.version,
                file.path.display()
            ));
        }
    }
    Ok(0)
}
