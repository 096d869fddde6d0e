//! The `host` program. All its work is in the library.

use clap::Parser;
use host::command::{self, Arguments};
use host::plugin::running;
use plugin_api::{abi, first_line};
use std::panic::catch_unwind;
use std::process::ExitCode;

fn main() -> ExitCode {
    host::torch::device::set_up();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(answer) => {
            // Help, the version, or a mistake in the arguments.
            let code = if answer.print().is_ok() { answer.exit_code() } else { 1 } as u8;
            if answer.use_stderr() {
                command::turn_down(&answer, code);
            }
            return ExitCode::from(code);
        }
    };
    // A panic is a defect of this program, or an error of libtorch such as a lack of memory. Both
    // are reported in one line.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let message = first_line(panic.payload_as_str().unwrap_or("unknown reason"));
        let plugin = running::running().map(|plugin| format!("\n  plugin   {plugin}")).unwrap_or_default();
        command::report(format_args!("{message}\n  at       {place}{plugin}"));
    }));
    running::must_not_exit();
    running::name_crashes();
    let code = match catch_unwind(|| command::run(&arguments.command)) {
        Ok(Ok(code)) => code,
        Ok(Err(error)) => {
            command::report(&error);
            error.exit_code()
        }
        Err(panic) => {
            abi::discard(panic);
            1
        }
    };
    running::may_exit();
    ExitCode::from(code)
}
