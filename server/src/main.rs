//! The binary `keepwell`.

use std::process::ExitCode;

fn main() -> ExitCode {
    keepwell_kernels::heap::share();
    match keepwell_server::cli::run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
