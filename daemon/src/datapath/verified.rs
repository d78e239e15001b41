//! Loading a program, also while signals come: the verifier gives up with EAGAIN when one is pending (kernel/bpf/verifier.c).

use super::DatapathError;
use aya::programs::ProgramError;
use std::io;

/// As many as libbpf makes.
const ATTEMPTS: usize = 5;

/// `load` is one attempt at the program of this name.
pub fn load(name: &str, load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), DatapathError> {
    let is_interrupted =
        |error: &ProgramError| matches!(error, ProgramError::LoadError { io_error, .. } if gave_up(io_error));
    attempts(load, is_interrupted)
        .map_err(|source| DatapathError::Program { what: format!("loading {name}"), source })
}

fn gave_up(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EAGAIN)
}

fn attempts<E>(
    mut load: impl FnMut() -> Result<(), E>,
    is_interrupted: impl Fn(&E) -> bool,
) -> Result<(), E> {
    for _ in 1..ATTEMPTS {
        match load() {
            Err(error) if is_interrupted(&error) => {}
            outcome => return outcome,
        }
    }
    load()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many attempts it takes where so many end with this error, and whether it is loaded then.
    fn made(failing: usize, errno: i32) -> (usize, bool) {
        let mut made = 0;
        let load = || {
            made += 1;
            if made > failing { Ok(()) } else { Err(io::Error::from_raw_os_error(errno)) }
        };
        let outcome = attempts(load, gave_up);
        (made, outcome.is_ok())
    }

    #[test]
    fn what_a_signal_has_ended_is_tried_again_and_nothing_else() {
        assert_eq!(made(0, 0), (1, true));
        assert_eq!(made(3, libc::EAGAIN), (4, true));
        assert_eq!(made(usize::MAX, libc::EAGAIN), (ATTEMPTS, false));
        assert_eq!(made(1, libc::EACCES), (1, false));
    }
}
