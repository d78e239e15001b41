//! What lies behind an error whose own words leave it out.

use std::error::Error;

/// The error, and what behind it says something more: of a system call that failed, the error number.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let told = error.to_string();
        if !text.contains(&told) {
            text = format!("{text}: {told}");
        }
        cause = error.source();
    }
    text
}
