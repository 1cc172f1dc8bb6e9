//! The one binary: `cairn node` is the daemon, every other command is a client of one.

fn main() -> std::process::ExitCode {
    cairn_node::cli::main()
}
