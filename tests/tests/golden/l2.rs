//! `forward/l2.rs`: new MAC addresses, the rest as it came, out of the right interface.

use lb_common::{
    host::sample::{ClientFrame, Purpose},
    parse::Family,
};
use sluice_tests::kernel::Answer;

use crate::sides::{Sides, hex, tables};

#[test]
fn l2_changes_the_addresses_only() {
    let Some(mut sides) = Sides::start(tables()) else { return };
    let tagged = |purpose, family| ClientFrame {
        tags: vec![[0x88, 0xa8, 0, 200], [0x81, 0, 0, 100]],
        ip_options: vec![1; 8],
        payload: b"GET / HTTP/1.1\r\n".to_vec(),
        padding: 3,
        ..ClientFrame::new(purpose, family, 1)
    };
    let plain = ClientFrame::new;
    use Family::{Ipv4, Ipv6};
    use Purpose::{Elsewhere, L2};
    // The backends' MACs end in their indices; the second interface's ends in 2.
    let cases = [
        ("IPv4", plain(L2, Ipv4, 1), Answer::Transmit, "020000010001 020000000001"),
        ("IPv6", plain(L2, Ipv6, 1), Answer::Transmit, "020000010004 020000000001"),
        ("IPv4, tags", tagged(L2, Ipv4), Answer::Transmit, "020000010001 020000000001"),
        ("IPv6, tags", tagged(L2, Ipv6), Answer::Transmit, "020000010004 020000000001"),
        (
            "IPv4, another interface",
            plain(Elsewhere, Ipv4, 1),
            Answer::Redirect,
            "020000010025 020000000002",
        ),
        (
            "IPv6, another interface",
            tagged(Elsewhere, Ipv6),
            Answer::Redirect,
            "020000010028 020000000002",
        ),
    ];
    for (name, sent, answer, macs) in cases {
        let input = sent.frame();
        let output = [hex(macs), input.bytes[12..].to_vec()].concat();
        let counted = sides.expect(name, &input, answer, &output);
        let traffic = counted.traffic.first_key_value().unwrap().1;
        assert_eq!((traffic.packets, traffic.bytes), (1, input.bytes.len() as u64), "{name}");
    }
}
