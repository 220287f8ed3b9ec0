//! A [`Desired`] as the file that would make it.

use serde::Serialize;

use super::ServiceSpec;
use crate::{
    drain::Admin,
    model::{Dataplane, Desired, PortRange, XdpMode},
};

#[derive(Serialize)]
struct File {
    dataplane: DataplaneSpec,
    http: HttpSpec,
    service: Vec<ServiceSpec>,
}

#[derive(Serialize)]
struct DataplaneSpec {
    interfaces: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    xdp_mode: Option<&'static str>,
    flow_capacity: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    hash_seed: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    own_vips: Option<bool>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tunnel_source: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nat_ports: Option<String>,
}

#[derive(Serialize)]
struct HttpSpec {
    listen: String,
}

/// The file, in TOML. What is leaving is not in it; what no file can say, who is drained or
/// disabled, stands above it in comments.
///
/// # Errors
/// If TOML can't say it, which would be a defect.
pub fn export(desired: &Desired) -> Result<String, toml::ser::Error> {
    let staying = desired.services.iter().filter(|service| !service.leaving);
    let file = File {
        dataplane: dataplane(&desired.dataplane),
        http: HttpSpec {
            listen: desired.http.map_or_else(|| "off".to_owned(), |listen| listen.to_string()),
        },
        service: staying.map(ServiceSpec::of).collect(),
    };
    let mut text = String::new();
    for service in &desired.services {
        for backend in &service.backends {
            if backend.leaving || backend.admin != Admin::Enabled {
                let is = if backend.leaving { "leaving" } else { backend.admin.name() };
                text += &format!("# {}/{} is {is}\n", service.name, backend.name);
            }
        }
    }
    if !text.is_empty() {
        text += "\n";
    }
    text += &toml::to_string(&file)?;
    Ok(text)
}

fn dataplane(dataplane: &Dataplane) -> DataplaneSpec {
    DataplaneSpec {
        interfaces: dataplane.interfaces.clone(),
        xdp_mode: match dataplane.xdp_mode {
            XdpMode::Auto => None,
            XdpMode::Native => Some("native"),
            XdpMode::Generic => Some("generic"),
        },
        flow_capacity: dataplane.flow_capacity,
        hash_seed: dataplane.hash_seed.clone(),
        own_vips: (!dataplane.own_vips).then_some(false),
        tunnel_source: dataplane.tunnel_sources.iter().map(ToString::to_string).collect(),
        nat_ports: (dataplane.nat_ports != PortRange::NAT).then(|| dataplane.nat_ports.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{parse, tests::EXAMPLE};

    #[test]
    fn what_is_exported_is_what_was_read() {
        let mut desired = parse(EXAMPLE, "example").expect("valid");
        let text = export(&desired).expect("TOML");
        assert_eq!(parse(&text, "export").expect("valid"), desired, "{text}");
        assert!(!text.contains('#'), "{text}");

        desired.services[0].backends[0].admin = Admin::Disabled;
        let text = export(&desired).expect("TOML");
        assert!(text.starts_with("# api/api-1 is disabled\n\n[dataplane]\n"), "{text}");
    }

    #[test]
    fn every_field_is_exported() {
        let text = "[dataplane]\ninterfaces = [\"a\", \"b.1\"]\nxdp_mode = \"generic\"\n\
                    flow_capacity = 2048\nhash_seed = \"s \\\"q\\\"\"\nown_vips = false\n\
                    tunnel_source = [\"10.255.0.0/16\"]\n[http]\nlisten = \"off\"\n\
                    [[service]]\nname = \"w\"\nvip = \"203.0.113.1:80\"\nforwarding = \"ipip\"\n\
                    affinity = \"source-ip\"\nicmp_echo = \"healthy\"\nmss_clamp = 1360\nslots = 251\ndrain_deadline = \"90s\"\n\
                    min_available = 2\nfail_open = false\nreset_unreachable = false\n\
                    panic_threshold = 0.25\nslow_start = \"30s\"\noutlier = \"eject\"\n\
                    idle_timeout = { embryonic = \"10s\", established = \"1h\", closing = \"3s\" }\n\
                    health = { check = \"http\", path = \"/x\", interval = \"3s\", \
                    timeout = \"500ms\", rise = 4, fall = 5 }\n\
                    backend = [{ name = \"b\", address = \"10.0.0.1\", weight = 7, \
                    backup = true }]\n";
        let desired = parse(text, "full").expect("valid");
        let exported = export(&desired).expect("TOML");
        assert_eq!(parse(&exported, "export").expect("valid"), desired, "{exported}");
        assert_eq!(desired.services[0].idle.established.as_secs(), 3600);
        assert!(desired.services[0].backends[0].backup);
        assert_eq!(desired.services[0].icmp_echo.name(), "healthy");
        assert_eq!(desired.services[0].mss_clamp, Some(1360));
        assert_eq!(desired.services[0].outlier.name(), "eject");
    }

    #[test]
    fn all_that_is_said_of_nat_is_exported() {
        let services = [
            ("", ""),
            ("", "port = 8080"),
            ("nat = { client_address = \"keep\" }", "port = 8080"),
            ("nat = { client_address = \"replace\" }", ""),
            ("nat_addresses = [\"198.18.0.9\", \"198.18.0.5\"]", "port = 8080"),
            ("nat_addresses = [\"198.18.0.5\"]\nhealth = { via = \"backend\", port = 81 }", ""),
        ];
        for (lines, port) in services {
            let comma = if port.is_empty() { "" } else { ", " };
            let text = format!(
                "[dataplane]\ninterfaces = [\"a\"]\nnat_ports = \"2000 - 3000\"\n[[service]]\n\
                 name = \"w\"\nvip = \"203.0.113.1:80\"\nforwarding = \"nat\"\n{lines}\n\
                 backend = [{{ name = \"b\", address = \"10.0.0.1\"{comma}{port} }}]\n"
            );
            let desired = parse(&text, "full").expect(&text);
            let exported = export(&desired).expect("TOML");
            assert_eq!(parse(&exported, "export").expect(&exported), desired, "{exported}");
            assert!(exported.contains("nat_ports = \"2000-3000\""), "{exported}");
            for kept in ["keep", "198.18.0.9", "8080", "port = 81"] {
                assert_eq!(exported.contains(kept), text.contains(kept), "{kept}: {exported}");
            }
        }
    }

    #[test]
    fn every_kind_of_check_is_exported() {
        let checks = [
            "check = \"none\"",
            "check = \"tcp\", interval = \"9s\"",
            "check = \"tcp\", via = \"backend\", port = 8080",
            "check = \"http\", method = \"HEAD\", path = \"/x\", status = [204, \"300-399\"]",
            "check = \"http\", host = \"web.example:81\", headers = { X-B = \"2\", X-A = \"a \\\"1\" }, \
             body = \"ok \\u00e4\"",
            "check = \"https\", server_name = \"web.example\", ca_file = \"/etc/ca.pem\"",
            "check = \"https\", verify = false, rise = 1",
            "check = \"grpc\", service = \"shop.Cart\", host = \"web.example\"",
            "check = \"grpc\", tls = true, verify = false, server_name = \"10.0.0.1\"",
            "check = \"grpc\", tls = true, timeout = \"500ms\"",
        ];
        for check in checks {
            let text = format!(
                "[dataplane]\ninterfaces = [\"a\"]\n[[service]]\nname = \"w\"\n\
                 vip = \"203.0.113.1:80\"\nhealth = {{ {check} }}\n"
            );
            let desired = parse(&text, "full").expect(check);
            let exported = export(&desired).expect("TOML");
            assert_eq!(parse(&exported, "export").expect(&exported), desired, "{exported}");
            for assignment in check.split(", ").filter(|part| part.contains(" = ")) {
                let field = assignment.split_once(" = ").map_or("", |(field, _)| field);
                assert!(exported.contains(field), "{field} is lost: {exported}");
            }
        }
    }
}
