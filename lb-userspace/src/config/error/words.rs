//! Parts of the messages.

use lb_common::forward::Forwarding;

pub(super) fn there(line: &Option<usize>) -> String {
    line.map_or_else(|| "there".to_owned(), |line| format!("on line {line}"))
}

pub(super) fn the_vip(line: &Option<usize>) -> String {
    line.map_or_else(|| "a VIP".to_owned(), |line| format!("the VIP of line {line}"))
}

pub(super) fn keeps_family(forwarding: Forwarding) -> &'static str {
    match forwarding {
        Forwarding::L2 | Forwarding::Ipip => "l2 keeps the packet as it is",
        Forwarding::Nat => "nat does not translate between families",
    }
}

pub(super) fn in_field(field: &Option<String>) -> String {
    field.as_ref().map(|field| format!(", in `{field}`")).unwrap_or_default()
}

pub(super) fn way_out(slots: &Option<u32>) -> String {
    match slots {
        Some(slots) => format!("set `slots = {slots}`"),
        None => "split it into several services".to_owned(),
    }
}
