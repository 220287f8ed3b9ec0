//! Health checks.

use super::*;

#[test]
fn health_errors_name_the_way_out() {
    let health = |fields: &str| service(&format!("health = {{ {fields} }}"));
    assert_refused(&[
        (
            health("check = \"icmp\""),
            "lb.toml:6:20: `check = \"icmp\"`: it is one of \"tcp\", \"http\", \"https\", \"grpc\", \
             \"none\"",
        ),
        (
            health("via = \"route\""),
            "lb.toml:6:18: `via = \"route\"`: it is one of \"vip\", \"backend\"",
        ),
        (
            health("port = 8080"),
            "lb.toml:6:19: `port` can't be asked through the VIP, of which only its own port is \
             forwarded: add `via = \"backend\"`, or leave `port` out",
        ),
        (
            health("via = \"backend\", port = 0"),
            "lb.toml:6:36: `port = 0`: it goes from 1 to 65535",
        ),
        (
            health("path = \"/healthz\""),
            "lb.toml:6:19: `path` is for `check = \"http\"` or \"https\", but this check is \
             \"tcp\": leave one of them out",
        ),
        (
            health("check = \"none\", via = \"vip\""),
            "lb.toml:6:34: `via` is for checks that ask, but this check is \"none\": leave one of \
             them out",
        ),
        (
            health("check = \"none\", fall = 2"),
            "lb.toml:6:35: `fall` is for checks that ask, but this check is \"none\": leave one of \
             them out",
        ),
        (
            health("check = \"grpc\", status = 200"),
            "lb.toml:6:37: `status` is for `check = \"http\"` or \"https\", but this check is \
             \"grpc\": leave one of them out",
        ),
        (
            health("check = \"http\", service = \"shop\""),
            "lb.toml:6:38: `service` is for `check = \"grpc\"`, but this check is \"http\": leave \
             one of them out",
        ),
        (
            health("check = \"http\", verify = false"),
            "lb.toml:6:37: `verify` is for `check = \"https\"` or \"grpc\", but this check is \
             \"http\": leave one of them out",
        ),
        (
            health("check = \"http\", tls = true"),
            "lb.toml:6:34: `tls` is for `check = \"grpc\"`: with HTTP, use `check = \"https\"`",
        ),
        (
            health("check = \"grpc\", ca_file = \"/ca.pem\""),
            "lb.toml:6:38: `ca_file` is about TLS, which this check does not speak: add \
             `tls = true`",
        ),
        (
            health("check = \"https\", verify = false, ca_file = \"/ca.pem\""),
            "lb.toml:6:55: `ca_file` has no use with `verify = false`: leave one of them out",
        ),
        (
            health("check = \"https\", ca_file = \"ca.pem\""),
            "lb.toml:6:39: `ca_file = \"ca.pem\"`: write the whole path, from `/` on",
        ),
        (
            health("check = \"https\", server_name = \"web.example:443\""),
            "lb.toml:6:43: `server_name = \"web.example:443\"`: write a host's name, as \
             \"web.example\", or an IP address; no port",
        ),
        (
            health("check = \"http\", method = \"get\""),
            "lb.toml:6:37: `method = \"get\"`: it is one of \"GET\", \"HEAD\", \"OPTIONS\"",
        ),
        (
            health("check = \"http\", method = \"HEAD\", body = \"ok\""),
            "lb.toml:6:52: no answer to `method = \"HEAD\"` has a body: use \"GET\", or leave \
             `body` out",
        ),
        (
            health("check = \"http\", body = \"\""),
            "lb.toml:6:35: `body` has 0 bytes: it is a text of 1 to 65536",
        ),
        (
            health("check = \"http\", host = \"a b\""),
            "lb.toml:6:35: `host = \"a b\"`: write a host's name, with a port if need be, as \
             \"web.example\"",
        ),
        (
            health("check = \"http\", status = \"2xx\""),
            "lb.toml:6:37: `status` \"2xx\": write codes from 100 to 599, as 204 or \"200-399\", or \
             a list of these",
        ),
        (
            health("check = \"http\", status = [200, \"399-200\"]"),
            "lb.toml:6:37: `status` \"399-200\": write codes from 100 to 599, as 204 or \
             \"200-399\", or a list of these",
        ),
        (
            health("check = \"http\", status = []"),
            "lb.toml:6:37: `status` \"\": write codes from 100 to 599, as 204 or \"200-399\", or a \
             list of these",
        ),
        (
            health("check = \"http\", status = true"),
            "lb.toml:6:37: invalid type: boolean `true`, expected a status code, a range as \
             \"200-399\", or a list of these, in `service.health.status`",
        ),
        (
            health("check = \"http\", headers = { Host = \"web\" }"),
            "lb.toml:6:40: header \"Host\" = \"web\": use the field `host`",
        ),
        (
            health("check = \"http\", headers = { \"X Y\" = \"z\" }"),
            "lb.toml:6:40: header \"X Y\" = \"z\": a name has letters, digits and -",
        ),
        (
            health("check = \"http\", headers = { Content-Length = \"5\" }"),
            "lb.toml:6:40: header \"Content-Length\" = \"5\": the probe says this itself; leave it \
             out",
        ),
        (
            health("check = \"http\", headers = { X-A = \"1\", x-a = \"2\" }"),
            "lb.toml:6:51: header \"x-a\" = \"2\": this name is there twice, for case makes no \
             difference; join the values",
        ),
        (
            health("check = \"http\", headers = { X-A = \"1\\r\\nX-B: 2\" }"),
            "lb.toml:6:40: header \"X-A\" = \"1\\r\\nX-B: 2\": a value has at most 1024 ASCII \
             characters, no blanks around them",
        ),
        (
            health("check = \"http\", path = \"healthz\""),
            "lb.toml:6:35: `path = \"healthz\"`: a path begins with `/` and has at most 1024 ASCII \
             characters, no blanks; write others as %20",
        ),
        (
            health("interval = \"10ms\""),
            "lb.toml:6:23: `interval = \"10ms\"`: it goes from 100ms to 1h",
        ),
        (
            health("timeout = \"3s\""),
            "lb.toml:6:22: `timeout` 3s is longer than `interval` 2s: a probe must end before the \
             next one; shorten it or lengthen `interval`",
        ),
        (health("rise = 0"), "lb.toml:6:19: `rise = 0`: it goes from 1 to 100"),
        (health("fall = 101"), "lb.toml:6:19: `fall = 101`: it goes from 1 to 100"),
    ]);
}

#[test]
fn a_status_is_a_code_a_range_or_a_list_of_both() {
    let range = |first, last| StatusRange { first, last };
    let cases = [
        ("204", vec![range(204, 204)]),
        ("\"200-299\"", vec![range(200, 299)]),
        ("[200, \"300 - 399\", \"404\"]", vec![range(200, 200), range(300, 399), range(404, 404)]),
    ];
    for (written, expected) in cases {
        let text = service(&format!("health = {{ check = \"https\", status = {written} }}"));
        let desired = parse(&text, "lb.toml").expect(written);
        let check = desired.services[0].health.as_ref().map(|health| &health.kind);
        let Some(CheckKind::Http(check)) = check else {
            panic!("no HTTP check: {desired:?}");
        };
        assert_eq!(check.status, expected, "{written}");
        assert!(check.tls.as_ref().is_some_and(|tls| tls.verify));
    }
}
