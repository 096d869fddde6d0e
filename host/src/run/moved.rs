use clap::Args;
use std::path::PathBuf;

/// Flags for the data and the plugins of a run, which may have been moved or changed since.
#[derive(Debug, Clone, Default, Args)]
pub struct Moved {
    /// Folder of the named data sets, or that has the run's own data if they were moved [default: as
    /// in the run; without a run, DRO_DATA if set, else data]
    #[arg(long, value_name = "FOLDER")]
    pub data_folder: Option<PathBuf>,
    /// Folder of the run's plugins if they were moved [default: as in the run]
    #[arg(long, value_name = "FOLDER")]
    pub plugins: Option<PathBuf>,
    /// Continue even if a plugin or the data differ from those recorded
    #[arg(long)]
    pub allow_changed: bool,
}
