//! How things look, on terminals with colours and without, with more than ASCII and without.

use ratatui::style::{Color, Modifier, Style};

use crate::cli::table::Tone;

/// What the terminal can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Theme {
    /// Colours; without them, weight and words say the same.
    pub colours: bool,
    /// Blocks for the plots, and arrows; without them, ASCII.
    pub blocks: bool,
}

/// From nothing to full.
const BLOCKS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const ASCII: [char; 9] = [' ', '.', '.', ':', '-', '=', '+', '*', '#'];

impl Theme {
    /// By the environment: `NO_COLOR` (<https://no-color.org>), `TERM`, and the locale.
    pub fn of_environment(variable: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        // The first that is set decides (POSIX.1-2024, XBD 8.2).
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(|name| set(name));
        let locale = locale.unwrap_or_default().to_lowercase();
        let is_monochrome =
            set("TERM").is_some_and(|term| term.starts_with("vt1") || term == "vt220");
        Self {
            colours: set("NO_COLOR").is_none() && !is_monochrome,
            blocks: locale.contains("utf-8") || locale.contains("utf8"),
        }
    }

    /// A tone's look.
    pub fn style(self, tone: Tone) -> Style {
        let style = Style::new();
        let coloured = |style: Style, colour| if self.colours { style.fg(colour) } else { style };
        match tone {
            Tone::Plain => style,
            Tone::Good => coloured(style, Color::Green),
            Tone::Doubtful => coloured(style, Color::Yellow),
            Tone::Bad => coloured(style, Color::Red).add_modifier(Modifier::BOLD),
            Tone::Strong => style.add_modifier(Modifier::BOLD),
        }
    }

    /// What is said beside the point.
    pub fn faint(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    /// The chosen line.
    pub fn chosen(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    /// The last `width` of `values` as a plot of one line, from nothing to their largest.
    pub fn plot(self, values: &[f64], width: usize) -> String {
        let shown = &values[values.len().saturating_sub(width)..];
        let largest = shown.iter().copied().fold(0.0, f64::max);
        let glyphs = if self.blocks { BLOCKS } else { ASCII };
        let glyph = |value: &f64| {
            // What is more than nothing is seen.
            let step = if largest > 0.0 { (value / largest * 8.0).ceil() as usize } else { 0 };
            glyphs[step.min(8)]
        };
        shown.iter().map(glyph).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_chooses() {
        let theme = |variables: &[(&str, &str)]| {
            let variables: Vec<(String, String)> =
                variables.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
            let theme = Theme::of_environment(|name| {
                variables.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone())
            });
            (theme.colours, theme.blocks)
        };
        assert_eq!(theme(&[("LANG", "de_DE.UTF-8"), ("TERM", "xterm-256color")]), (true, true));
        assert_eq!(theme(&[("LANG", "C.utf8"), ("NO_COLOR", "")]), (true, true));
        assert_eq!(theme(&[("LANG", "C.utf8"), ("NO_COLOR", "1")]), (false, true));
        assert_eq!(
            theme(&[("LANG", "C.utf8"), ("LC_ALL", "C"), ("TERM", "vt100")]),
            (false, false)
        );
        assert_eq!(theme(&[]), (true, false));
    }

    #[test]
    fn a_plot_shows_the_latest_and_every_little() {
        let theme = Theme { colours: true, blocks: true };
        assert_eq!(theme.plot(&[9.0, 0.0, 1.0, 50.0, 100.0], 4), " ▁▄█");
        assert_eq!(theme.plot(&[0.0, 0.0], 4), "  ");
        assert_eq!(theme.plot(&[], 4), "");
        let ascii = Theme { blocks: false, ..theme };
        assert_eq!(ascii.plot(&[0.0, 1.0, 50.0, 100.0], 10), " .-#");
    }
}
