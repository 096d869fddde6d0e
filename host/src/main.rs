//! The `host` program. All its work is in the library.

use clap::Parser;
use host::command::Arguments;
use std::panic::catch_unwind;
use std::process::ExitCode;

fn main() -> ExitCode {
    host::torch::device::set_up();
    let arguments = Arguments::parse();
    // A panic is a defect of this program, or an error of libtorch such as a lack of memory. Both
    // are reported in one line.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let message = panic.payload_as_str().unwrap_or("unknown reason");
        eprintln!("error: {}\n  at       {place}", plugin_api::first_line(message));
    }));
    match catch_unwind(|| host::command::run(&arguments.command)) {
        Ok(Ok(code)) => ExitCode::from(code),
        Ok(Err(error)) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
        Err(_) => ExitCode::from(1),
    }
}
