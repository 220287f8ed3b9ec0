//! The config file: any text is a configuration, or one error at a place that it has.

use lb_userspace::config;

/// One input.
///
/// # Panics
/// If an error names a place that is none, or takes more than a line; or if what was understood is
/// not understood as the same when it is written anew.
pub fn run(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    match config::parse(text, "fuzz.toml") {
        Ok(desired) => {
            let _ = config::warnings(&desired);
            let written = config::export(&desired).expect("a configuration can be written");
            match config::parse(&written, "export") {
                Ok(again) => assert_eq!(again, desired, "{text}\nwas exported as\n{written}"),
                Err(error) => panic!("{error}\nin the export of\n{text}\n:\n{written}"),
            }
        }
        Err(error) => {
            let says = error.to_string();
            assert!(!says.contains(char::is_control), "no line of text: {says:?}\nabout\n{text}");
            let config::Error::Invalid { place, .. } = error else { panic!("{says}") };
            let lines = text.split('\n').count();
            assert!((1..=lines).contains(&place.line), "{says}\nof {lines} lines\n{text}");
            let line = text.split('\n').nth(place.line - 1).unwrap_or_default();
            let columns = line.chars().count() + 1;
            assert!((1..=columns).contains(&place.column), "{says}\nof {columns}\n{text}");
        }
    }
}
