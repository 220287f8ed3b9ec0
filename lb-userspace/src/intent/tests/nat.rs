use super::*;
use crate::config::NatSpec;

const NAT: &str = r#"
[dataplane]
interfaces = ["eth0"]
[[service]]
name = "web"
vip = "203.0.113.10:80"
forwarding = "nat"
backend = [{ name = "host-1", address = "10.0.0.1", port = 8080 }]
"#;

fn texts(before: &str, after: &str) -> Vec<String> {
    let [before, after] = [before, after].map(declared);
    let before = Intent::new(before);
    let after = before.declare(after, Take::Apply, at(1));
    diff(&before.desired(), &after.desired()).into_iter().map(|one| one.text).collect()
}

#[test]
fn what_differs_is_told() {
    let keep = NAT.replace("backend", "nat = { client_address = \"keep\" }\nbackend");
    assert_eq!(texts(NAT, &keep), ["client_address replace -> keep"]);
    let named = NAT.replace("backend", "nat_addresses = [\"198.18.0.9\", \"198.18.0.5\"]\nbackend");
    assert_eq!(texts(NAT, &named), ["nat_addresses none -> 198.18.0.9 198.18.0.5"]);
    let port = NAT.replace("8080", "80");
    let expected = ["10.0.0.1:8080: drained, then removed", "10.0.0.1 weight 100"];
    assert_eq!(texts(NAT, &port), expected);
    let ports = NAT.replace("[[service]]", "nat_ports = \"2000-3000\"\n[[service]]");
    assert_eq!(texts(NAT, &ports), [""; 0], "for a new start; apply says so");
}

#[test]
fn what_is_said_of_it_survives() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let service = |name: &str, vip: &str| ServiceSpec {
        name: name.to_owned(),
        vip: vip.to_owned(),
        forwarding: Some("nat".to_owned()),
        ..ServiceSpec::default()
    };
    let kept = ServiceSpec {
        nat: Some(NatSpec { client_address: Some("keep".to_owned()) }),
        ..service("kept", "203.0.113.11:80")
    };
    let named = ServiceSpec {
        nat_addresses: vec!["198.18.0.5".to_owned()],
        ..service("named", "203.0.113.12:80")
    };
    let backend = BackendSpec {
        name: "host-2".to_owned(),
        address: "10.0.0.2".to_owned(),
        port: Some(8081),
        ..BackendSpec::default()
    };
    let changes = [
        Change::AddService { service: Box::new(kept) },
        Change::AddService { service: Box::new(named) },
        Change::AddBackend { service: "web".to_owned(), backend },
    ];
    let restored = kept::Store::restore(directory.path(), "lb.toml", NAT, at(1));
    let kept::Restored { intent, store, .. } = restored.expect("a valid file");
    let intent = done(&intent, &changes);
    assert_eq!(done(&intent, &changes), intent, "asked for what is so");
    let intent = done(&intent, &[remove("web", "host-1")]);
    store.keep(&intent).expect("a disk with room");
    let again = kept::Store::restore(directory.path(), "lb.toml", NAT, at(2));
    let again = again.expect("a valid file");
    assert_eq!((again.intent, again.notes), (intent, vec![]));
}
