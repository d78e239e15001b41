//! Colour, for terminals only.

use std::ffi::OsString;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Colour {
    #[default]
    None,
    Good,
    Bad,
    Warning,
    Faint,
}

/// Paints, or leaves text as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paint(bool);

impl Paint {
    /// `no_color`: the variable NO_COLOR; any value but the empty one counts (no-color.org).
    pub fn for_terminal(is_terminal: bool, no_color: Option<OsString>) -> Self {
        Self(is_terminal && no_color.is_none_or(|v| v.is_empty()))
    }

    pub fn apply(self, colour: Colour, text: &str) -> String {
        // Select Graphic Rendition, ECMA-48 section 8.3.117.
        let code = match colour {
            Colour::None => return text.to_string(),
            Colour::Good => 32,
            Colour::Bad => 31,
            Colour::Warning => 33,
            Colour::Faint => 2,
        };
        match self.0 && !text.is_empty() {
            true => format!("\x1b[{code}m{text}\x1b[0m"),
            false => text.to_string(),
        }
    }
}

#[cfg(test)]
pub const PLAIN: Paint = Paint(false);
#[cfg(test)]
pub const COLOURED: Paint = Paint(true);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_terminal_is_painted_and_only_if_its_user_does_not_mind() {
        assert_eq!(Paint::for_terminal(true, None), COLOURED);
        assert_eq!(Paint::for_terminal(true, Some("".into())), COLOURED);
        assert_eq!(Paint::for_terminal(true, Some("1".into())), PLAIN);
        assert_eq!(Paint::for_terminal(false, None), PLAIN);
        assert_eq!(COLOURED.apply(Colour::Bad, "x"), "\x1b[31mx\x1b[0m");
        assert_eq!(COLOURED.apply(Colour::None, "x"), "x");
        assert_eq!(PLAIN.apply(Colour::Bad, "x"), "x");
    }
}
