use proptest::prelude::*;

use super::*;
use crate::model::{
    CheckKind, ClientAddress, HealthCheck, HttpCheck, PortRange, StatusRange, Via, XdpMode,
};

mod any_port;
mod desired;
mod health;
mod nat;

pub(super) const EXAMPLE: &str = include_str!("../../../sluice.example.toml");

/// A file whose one service has these lines beside its name, VIP and mode.
fn service(lines: &str) -> String {
    format!(
        "[dataplane]\ninterfaces = [\"eth0\"]\n[[service]]\nname = \"web\"\n\
         vip = \"203.0.113.10:80\"\n{lines}"
    )
}

/// A file whose one service has this one backend, on line 6.
fn backend(fields: &str) -> String {
    service(&format!("backend = [{{ {fields} }}]"))
}

/// A file with these lines in its `[dataplane]`, from line 3 on.
fn dataplane(lines: &str) -> String {
    format!("[dataplane]\ninterfaces = [\"eth0\"]\n{lines}")
}

fn message(text: &str) -> String {
    match parse(text, "lb.toml") {
        Ok(desired) => panic!("accepted:\n{text}\n{desired:#?}"),
        Err(error) => error.to_string(),
    }
}

#[track_caller]
fn assert_refused(cases: &[(String, &str)]) {
    for (text, expected) in cases {
        assert_eq!(message(text), *expected, "\n{text}");
    }
}

#[test]
fn toml_errors_name_the_line_and_the_field() {
    assert_refused(&[
        ("[dataplane\n".into(), "lb.toml:1:11: unclosed table, expected `]`"),
        (
            dataplane("interface = [\"eth1\"]"),
            "lb.toml:3:1: unknown field `interface`, expected one of `interfaces`, `xdp_mode`, \
             `flow_capacity`, `hash_seed`, `own_vips`, `tunnel_source`, `nat_ports`, in \
             `dataplane`",
        ),
        (
            "[[services]]\nname = \"web\"".into(),
            "lb.toml:1:3: unknown field `services`, expected one of `dataplane`, `http`, \
             `service`",
        ),
        (
            backend("name = \"a\", address = \"10.0.0.1\", wight = 3"),
            "lb.toml:6:48: unknown field `wight`, expected one of `name`, `address`, `port`, \
             `weight`, `backup`, in `service.backend`",
        ),
        (
            service("health = { check = \"tcp\", every = \"1s\" }"),
            "lb.toml:6:27: unknown field `every`, expected one of `check`, `via`, `port`, `method`, \
             `path`, `host`, `headers`, `status`, `body`, `service`, `tls`, `server_name`, `verify`, \
             `ca_file`, `interval`, `timeout`, `rise`, `fall`, in `service.health`",
        ),
        (
            service("slots = \"many\""),
            "lb.toml:6:9: invalid type: string \"many\", expected a whole number, in \
             `service.slots`",
        ),
        (
            dataplane("flow_capacity = 1e6"),
            "lb.toml:3:17: invalid type: floating point `1000000.0`, expected a whole number, in \
             `dataplane.flow_capacity`",
        ),
        (service("slots ="), "lb.toml:6:8: a value is missing: write one, or leave the field out"),
        (
            service("affinity = none"),
            "lb.toml:6:12: `none` is neither a number nor true or false: a text needs quotes, as \
             \"none\"",
        ),
        (
            backend("name = \"a\", address = 10.0.0.1, weight = 3"),
            "lb.toml:6:36: `10.0.0.1` is neither a number nor true or false: a text needs quotes, \
             as \"10.0.0.1\"",
        ),
        (dataplane("own_vips = true\nown_vips = false"), "lb.toml:4:1: duplicate key"),
    ]);
}

#[test]
fn columns_count_characters_and_crlf_is_a_line_end() {
    assert_eq!(
        message("[dataplane]\r\nhash_seed = \"ää\" \r\ninterfaces = [\"ää\", \"b c\"]\r\n"),
        "lb.toml:3:15: interface \"ää\": a name has 1 to 15 characters, without blanks, `/` and \
         `:`; see `ip link`"
    );
    assert!(message("[dataplane]\ninterfaces = [\"ä").starts_with("lb.toml:2:17: "));
}

#[test]
fn a_file_that_can_not_be_read_is_named() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("lb.toml");
    let chain = |error: Error| format!("{:#}", anyhow::Error::from(error));

    let error = load(&path).expect_err("there is no such file");
    assert_eq!(
        chain(error),
        format!("read {}: No such file or directory (os error 2)", path.display())
    );

    std::fs::write(&path, b"[dataplane]\n# \xff").expect("a write");
    let error = load(&path).expect_err("that is no text");
    assert_eq!(
        chain(error),
        format!("{}:2:3: not UTF-8: save the file as UTF-8 text", path.display())
    );

    let endless = load(Path::new("/dev/zero")).expect_err("that never ends");
    assert_eq!(chain(endless), "/dev/zero is larger than 16 MiB: is it a config file?");
}

#[test]
fn the_example_is_valid() {
    let desired = parse(EXAMPLE, "sluice.example.toml").expect("a valid example");
    let names: Vec<&str> = desired.services.iter().map(|service| &*service.name).collect();
    assert_eq!(names, ["api", "mail", "web"]);
    let check = desired.services[0].health.as_ref().map(|health| &health.kind);
    let expected = HttpCheck { path: "/healthz".to_owned(), ..HttpCheck::default() };
    assert_eq!(check, Some(&CheckKind::Http(expected)));
}

/// Uncomments the lines that show a default: the parsed file must not change.
#[test]
fn the_examples_commented_out_defaults_are_true() {
    let shows_default = |line: &str| {
        let Some((field, _)) = line.strip_prefix("# ").and_then(|rest| rest.split_once(" = "))
        else {
            return false;
        };
        field.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
            && !matches!(field, "hash_seed" | "tunnel_source")
    };
    let mut shown = 0;
    let mut text = String::new();
    for line in EXAMPLE.lines() {
        if shows_default(line) {
            shown += 1;
            text.push_str(&line[2..]);
        } else {
            text.push_str(line);
        }
        text.push('\n');
    }
    assert_eq!(shown, 19, "{text}");
    let plain = parse(EXAMPLE, "sluice.example.toml").expect("a valid example");
    assert_eq!(parse(&text, "uncommented").expect("valid defaults"), plain);
}

#[test]
fn warnings_tell_what_a_valid_file_does_not_get() {
    let told = |text: &str| warnings(&parse(text, "lb.toml").expect("a valid file"));
    assert_eq!(told(&dataplane("")), ["no service: every frame is left to the kernel"]);
    assert_eq!(
        told(&service("slots = 7")),
        ["service \"web\" has no backend: its clients get a RST"]
    );
    assert_eq!(
        told(&backend("name = \"a\", address = \"10.0.0.1\", weight = 0")),
        ["service \"web\" has only backends of weight 0: its new clients get a RST"]
    );
    let few = "slots = 7\nbackend = [{ name = \"a\", address = \"10.0.0.1\" }]";
    let text =
        service(few).replace("[[service]]", "tunnel_source = [\"10.9.0.0/16\"]\n[[service]]");
    assert_eq!(
        told(&text),
        [
            "service \"web\" has 1 backends in 7 slots: below 100 slots a backend the shares are \
             uneven",
            "tunnel_source has no effect: no service uses ipip",
        ]
    );
    let backend = "backend = [{ name = \"a\", address = \"10.0.0.1\" }]";
    let ports = |lines: &str| {
        let text = service(&format!("{lines}\n{backend}"));
        text.replace("[[service]]", "nat_ports = \"2000-3000\"\n[[service]]")
    };
    let no_effect = "nat_ports has no effect: no service uses nat, or those that do keep their \
                     clients' addresses";
    assert_eq!(told(&ports("")), [no_effect]);
    let keep = "forwarding = \"nat\"\nnat = { client_address = \"keep\" }";
    assert_eq!(told(&ports(keep)), [no_effect]);
    assert_eq!(told(&ports("forwarding = \"nat\"")), [""; 0]);
    assert_eq!(told(EXAMPLE), [""; 0]);
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC*") {
        let _ = parse(&text, "any");
    }

    /// Half-valid files reach deeper than random ones.
    #[test]
    fn no_mutation_of_a_valid_file_panics(
        at in 0..EXAMPLE.len(), length in 0_usize..20, insert in "[\\PC\n]{0,8}|-?[0-9]{1,30}|\"|\\[|\\{",
    ) {
        let end = (at + length).min(EXAMPLE.len());
        let text = EXAMPLE.replace("# ", "");
        for text in [EXAMPLE, &text] {
            if let (Some(head), Some(tail)) = (text.get(..at), text.get(end..)) {
                let _ = parse(&format!("{head}{insert}{tail}"), "mutated");
            }
        }
    }
}
