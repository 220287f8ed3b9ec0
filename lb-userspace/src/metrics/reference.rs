//! `docs/metrics.md` is the list.

use std::{env, fmt::Write as _, fs, path::Path};

use super::{list::LIST, metric::Metric};

/// Set it to have the page written anew.
const WRITE: &str = "SLUICE_WRITE_DOCS";

fn page() -> String {
    let mut page = "\
# Metrics

What `/metrics` tells, in Prometheus' text format; made from the list in
`lb-userspace/src/metrics/list.rs`. Beside it stand the usual metrics of a process, `process_…`.
Counters count since the program was attached, whoever the daemon was, unless the help says
otherwise; a backend's begin anew when it is taken away and added again. No label tells a client's
address.

| Name | Type | Labels | Meaning |
|---|---|---|---|
"
    .to_owned();
    for Metric { name, kind, labels, help, .. } in LIST.iter() {
        let labels = labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>();
        let (kind, labels) = (kind.name(), labels.join(", "));
        // A string takes everything.
        let _ = writeln!(page, "| `{name}` | {kind} | {labels} | {help} |");
    }
    page
}

#[test]
fn the_page_tells_what_the_list_tells() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    if env::var_os(WRITE).is_some() {
        fs::create_dir_all(path.parent().expect("a directory")).expect("docs");
        fs::write(&path, page()).expect("a file that can be written");
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(found, page(), "write docs/metrics.md anew: {WRITE}=1 cargo test the_page_tells");
}
