//! Numbers as people read them. Scripts have `--json`.

/// All digits, in groups: `1,234,567`.
pub fn exact(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// All digits below 100,000, then three: `99,999`, `123k`, `1.23M`.
pub fn short(count: u64) -> String {
    if count < 100_000 {
        exact(count)
    } else {
        three_digits(count, &["", "k", "M", "G", "T", "P", "E"])
    }
}

/// Powers of 1,000, as on network links: `999 B`, `12.3 MB`.
pub fn bytes(count: u64) -> String {
    three_digits(count, &[" B", " kB", " MB", " GB", " TB", " PB", " EB"])
}

/// So many in a second: `0`, `0.4`, `999`, `12.3k`.
pub fn rate(per_second: f64) -> String {
    if per_second <= 0.0 {
        "0".to_owned()
    } else if per_second < 9.95 {
        // Never 0.0: there was something.
        format!("{:.1}", per_second.max(0.1))
    } else {
        three_digits(per_second.round() as u64, &["", "k", "M", "G", "T", "P", "E"])
    }
}

/// `units` reach beyond `u64::MAX`, 18.4 E. Cut, not rounded: never more than there was.
fn three_digits(count: u64, units: &[&str; 7]) -> String {
    let mut scale = 1_u64;
    let mut unit = 0;
    while count / scale >= 1000 {
        scale *= 1000;
        unit += 1;
    }
    let whole = count / scale;
    let thousandths = u128::from(count % scale) * 1000 / u128::from(scale);
    let unit_name = units[unit];
    match (unit, whole) {
        (0, _) | (_, 100..) => format!("{whole}{unit_name}"),
        (_, 10..) => format!("{whole}.{}{unit_name}", thousandths / 100),
        _ => format!("{whole}.{:02}{unit_name}", thousandths / 10),
    }
}

/// The two largest units: `0s`, `1m 1s`, `1d 2h`.
pub fn seconds(seconds: u64) -> String {
    let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
    let (minutes, rest) = (seconds / 60 % 60, seconds % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{rest}s"),
        (0, 0, _) => format!("{minutes}m {rest}s"),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

/// `1 service`, `2 services`.
pub fn plural(count: u64, noun: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{} {noun}{s}", exact(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_stay_readable_at_any_size() {
        let cases = [
            (0, "0", "0", "0 B"),
            (999, "999", "999", "999 B"),
            (1000, "1,000", "1,000", "1.00 kB"),
            (99_999, "99,999", "99,999", "99.9 kB"),
            (100_000, "100,000", "100k", "100 kB"),
            (1_234_567, "1,234,567", "1.23M", "1.23 MB"),
            (12_345_678, "12,345,678", "12.3M", "12.3 MB"),
            (u64::MAX, "18,446,744,073,709,551,615", "18.4E", "18.4 EB"),
        ];
        for (count, long, brief, size) in cases {
            assert_eq!((&*exact(count), &*short(count), &*bytes(count)), (long, brief, size));
        }
    }

    #[test]
    fn rates_are_short_and_nothing_is_told_from_little() {
        let cases = [
            (0.0, "0"),
            (0.01, "0.1"),
            (1.25, "1.2"),
            (9.94, "9.9"),
            (9.96, "10"),
            (999.4, "999"),
            (12_345.0, "12.3k"),
            (1.5e9, "1.50G"),
        ];
        for (per_second, text) in cases {
            assert_eq!(rate(per_second), text);
        }
    }

    #[test]
    fn times_show_two_units() {
        let cases = [(0, "0s"), (59, "59s"), (61, "1m 1s"), (3600, "1h 0m"), (93_784, "1d 2h")];
        for (time, text) in cases {
            assert_eq!(seconds(time), text);
        }
        assert_eq!(seconds(u64::MAX), "213503982334601d 7h");
    }

    #[test]
    fn one_is_singular() {
        assert_eq!(plural(1, "service"), "1 service");
        assert_eq!(plural(0, "service"), "0 services");
        assert_eq!(plural(1000, "backend"), "1,000 backends");
    }
}
