//! One service or backend more, for an instance that runs: checked as if it stood in its file.

use serde::Serialize;

use super::{BackendSpec, Error, Problem, ServiceSpec, Source, desired, raw};
use crate::model::{Backend, Desired, Service};

/// What the text of a command is called; nobody reads it, for errors lose their place here.
const NAME: &str = "command";

/// A service for `desired`, which it is not put into.
pub fn service(desired: &Desired, spec: &ServiceSpec) -> Result<Service, Problem> {
    #[derive(Serialize)]
    struct File<'a> {
        service: [&'a ServiceSpec; 1],
    }
    let text = toml::to_string(&File { service: [spec] }).map_err(no_toml)?;
    let source = Source { name: NAME, text: &text };
    let mut file: raw::File = toml::from_str(&text).map_err(no_toml)?;
    let mut seen = desired::Seen::of(desired);
    let raw = file.service.pop().ok_or(Problem::NoValue)?;
    let service = desired::service(&source, raw, &mut seen).map_err(problem)?;
    seen.refuse_loops(&source).map_err(problem)?;
    Ok(service)
}

/// A backend for a service of `desired`, which it is not put into.
pub fn backend(
    desired: &Desired,
    service: &Service,
    spec: &BackendSpec,
) -> Result<Backend, Problem> {
    let text = toml::to_string(spec).map_err(no_toml)?;
    let source = Source { name: NAME, text: &text };
    let raw = toml::from_str(&text).map_err(no_toml)?;
    let mut seen = desired::Seen::of(desired);
    let mut members = desired::Members::of(service);
    let backend =
        desired::backend(&source, raw, service, &mut seen, &mut members).map_err(problem)?;
    seen.refuse_loops(&source).map_err(problem)?;
    let count = 1 + service.backends.iter().filter(|backend| !backend.leaving).count();
    match desired::few_slots(&service.name, service.slots, count) {
        Some(problem) => Err(problem),
        None => Ok(backend),
    }
}

/// Without the line: a command has none.
fn problem(error: Error) -> Problem {
    match error {
        Error::Invalid { problem, .. } => match *problem {
            Problem::Duplicate { what, way_out, .. } => {
                Problem::Duplicate { what, line: None, way_out }
            }
            Problem::BackendIsVip { address, .. } => Problem::BackendIsVip { address, line: None },
            other => other,
        },
        // Neither a file is read here nor a long one.
        Error::Read { .. } | Error::TooLarge { .. } => Problem::NoValue,
    }
}

fn no_toml(error: impl std::fmt::Display) -> Problem {
    Problem::Toml { message: error.to_string().trim_end().replace('\n', "; "), field: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{parse, tests::EXAMPLE};

    fn spec(name: &str, address: &str) -> BackendSpec {
        BackendSpec { name: name.to_owned(), address: address.to_owned(), ..BackendSpec::default() }
    }

    #[test]
    fn what_is_added_is_checked_like_a_file() {
        let desired = parse(EXAMPLE, "example").expect("valid");
        let web = desired.service("web").expect("it is there");
        let added = backend(&desired, web, &spec("web-3", "10.0.0.13")).expect("valid");
        assert_eq!((added.port, added.weight, &*added.name), (80, 100, "web-3"));

        let port = BackendSpec { port: Some(81), ..spec("web-3", "10.0.0.13") };
        let cases = [
            (spec("web-1", "10.0.0.13"), "backend \"web-1\" of service \"web\" is already there"),
            (spec("web-3", "10.0.0.11"), "a backend at 10.0.0.11 port 80 is already there"),
            (spec("web-3", "203.0.113.10"), "backend address 203.0.113.10 is a VIP"),
            (spec("web-3", "2001:db8::3"), "backend \"web-3\" is IPv6, but the VIP"),
            (spec("web 3", "10.0.0.13"), "backend name \"web 3\": use 1 to 63"),
            (spec("web-3", "ten"), "`address = \"ten\"`: write an IP address"),
            (port, "backend \"web-3\" has port 81, but the VIP's is 80"),
        ];
        for (spec, expected) in cases {
            let error = backend(&desired, web, &spec).expect_err(expected).to_string();
            assert!(error.starts_with(expected), "{error}");
        }

        let nat = desired.service("mail").expect("it is there");
        let port = BackendSpec { port: Some(81), ..spec("mail-3", "10.0.0.13") };
        assert_eq!(backend(&desired, nat, &port).expect("nat changes ports").port, 81);
        let named = "198.18.0.5";
        let error = backend(&desired, nat, &spec("mail-3", named)).expect_err("it is ours");
        assert!(error.to_string().starts_with("NAT address 198.18.0.5 is a backend's"), "{error}");

        let more = |name: &str, vip: &str| ServiceSpec {
            name: name.to_owned(),
            vip: vip.to_owned(),
            backend: vec![spec("x", "10.9.9.9")],
            ..ServiceSpec::default()
        };
        assert_eq!(service(&desired, &more("x", "203.0.113.11:80")).expect("valid").slots, 65_537);
        let cases = [
            (more("web", "203.0.113.11:80"), "service \"web\" is already there"),
            (more("x", "203.0.113.10:80"), "VIP 203.0.113.10:80 is already there"),
            (more("x", "10.0.0.11:80"), "backend address 10.0.0.11 is a VIP"),
            (more("x", "198.18.0.5:80"), "NAT address 198.18.0.5 is a VIP"),
        ];
        for (spec, expected) in cases {
            let error = service(&desired, &spec).expect_err(expected).to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
