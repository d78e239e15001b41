//! Shows the steps: a tick or a cross, the title, the figure; in colour on a terminal only.

use super::{Held, Step};
use crate::Result;
use owo_colors::{OwoColorize, Style};
use std::{
    env,
    io::{IsTerminal, Write, stdout},
    time::Duration,
};

const TITLE: usize = 48;
const INDENT: &str = "        ";

#[derive(Debug)]
pub struct Report {
    terminal: bool,
    failed: usize,
}

impl Default for Report {
    fn default() -> Self {
        Self { terminal: stdout().is_terminal(), failed: 0 }
    }
}

/// In colour where people look, unless they asked for none (`NO_COLOR`).
pub fn painted(text: &str, style: Style) -> String {
    if stdout().is_terminal() && env::var_os("NO_COLOR").is_none() {
        text.style(style).to_string()
    } else {
        text.into()
    }
}

impl Report {
    /// Before a step: what is being done.
    pub fn begin(&self, number: usize, step: &Step) {
        if self.terminal {
            print!("{number:>4}  … {:<TITLE$}\r", step.title);
            // What cannot be shown cannot be mended here.
            let _ = stdout().flush();
        }
    }

    pub fn end(&mut self, number: usize, step: &Step, outcome: &Result<Held>, took: Duration) {
        let seconds = painted(&format!("{:>5.1} s", took.as_secs_f64()), Style::new().dimmed());
        match outcome {
            Ok(held) => {
                let tick = painted("✓", Style::new().green());
                println!("{number:>4}  {tick} {:<TITLE$}{seconds}  {}", step.title, held.figure);
                for line in &held.details {
                    println!("{INDENT}{}", painted(line, Style::new().dimmed()));
                }
            }
            Err(error) => {
                self.failed += 1;
                let cross = painted("✗", Style::new().red());
                println!("{number:>4}  {cross} {:<TITLE$}{seconds}", step.title);
                for line in error.to_string().lines() {
                    println!("{INDENT}{}", painted(line, Style::new().red()));
                }
            }
        }
    }

    pub fn failed(&self) -> usize {
        self.failed
    }
}
