//! `docs/packets.md` names the tests that show what it says: there are such tests.
#![expect(clippy::unwrap_used, reason = "a test that can't go on has failed")]

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The text of every Rust file below a directory.
fn sources(directory: &Path) -> String {
    let entries = fs::read_dir(directory).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let text = |path: PathBuf| {
        if path.is_dir() {
            sources(&path)
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            fs::read_to_string(path).unwrap()
        } else {
            String::new()
        }
    };
    paths.map(text).collect()
}

#[test]
fn the_tests_that_packets_md_names_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = fs::read_to_string(root.join("docs/packets.md")).unwrap();
    let sources = sources(&root.join("lb-common/src")) + &sources(&root.join("tests/tests"));
    // Sentences with underscores; reasons have three words at most.
    let quoted = page.split('`').skip(1).step_by(2);
    let names: Vec<&str> = quoted
        .filter(|name| name.matches('_').count() >= 3 && !name.contains([' ', '/', '.', '-']))
        .collect();
    assert!(names.len() > 40, "{names:?}");
    for name in names {
        assert!(sources.contains(&format!("fn {name}(")), "no test is called {name}");
    }
}
