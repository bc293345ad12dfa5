//! Numbers for readers: bytes, rates, ages. Scripts take the raw ones of `--json`.

use std::time::{Duration, SystemTime};

use crate::control::api::Timestamp;

/// Bytes with a binary unit: `512 B`, `1.2 KiB`.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let exponent = count.ilog2() / 10;
    // Tenths, rounded to the nearest; 128 bits hold ten times any count.
    let unit = 1_u128 << (10 * exponent);
    let tenths = (u128::from(count) * 10 + unit / 2) / unit;
    // 1023.96 KiB rounds up into the next unit.
    let (tenths, exponent) =
        if tenths >= 10_240 && exponent < 6 { (10, exponent + 1) } else { (tenths, exponent) };
    let name = UNITS[(exponent as usize).clamp(1, UNITS.len()) - 1];
    format!("{}.{} {name}", tenths / 10, tenths % 10)
}

/// Bits a second with a decimal unit, as links are sold: `940.2 Mbit/s`.
pub(super) fn bit_rate(bytes_per_second: f64) -> String {
    let mut rate = bytes_per_second * 8.0;
    let mut unit = "bit/s";
    for next in ["kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"] {
        if rate < 999.95 {
            break;
        }
        rate /= 1000.0;
        unit = next;
    }
    format!("{rate:.1} {unit}")
}

/// A number of things: `1 connection`, `3 connections`.
pub(super) fn count(count: u64, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}

/// A span of time in its two largest units: `250ms`, `42s`, `3m 5s`, `2d 4h`.
pub(super) fn age(span: Duration) -> String {
    let seconds = span.as_secs();
    let two = |large: u64, small: u64, names: [&str; 2]| match small {
        0 => format!("{large}{}", names[0]),
        _ => format!("{large}{} {small}{}", names[0], names[1]),
    };
    match seconds {
        0 => format!("{}ms", span.as_millis()),
        1..60 => format!("{seconds}s"),
        60..3_600 => two(seconds / 60, seconds % 60, ["m", "s"]),
        3_600..86_400 => two(seconds / 3_600, seconds / 60 % 60, ["h", "m"]),
        _ => two(seconds / 86_400, seconds / 3_600 % 24, ["d", "h"]),
    }
}

/// An age in seconds as the API has it; what is no span of time shows as none.
pub(super) fn seconds(seconds: f64) -> String {
    age(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

/// How long ago a moment was.
pub(super) fn since(time: Timestamp) -> String {
    age(SystemTime::now().duration_since(time.0).unwrap_or_default())
}

/// How long it is to a moment.
pub(super) fn until(time: Timestamp) -> String {
    age(time.0.duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_a_fitting_unit() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1229, "1.2 KiB"),
            (1_048_575, "1.0 MiB"),
            (5_678_901, "5.4 MiB"),
            (1 << 40, "1.0 TiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn ages_have_their_two_largest_units() {
        for (millis, text) in [
            (250, "250ms"),
            (42_900, "42s"),
            (185_000, "3m 5s"),
            (180_000, "3m"),
            (7_260_000, "2h 1m"),
            (187_200_000, "2d 4h"),
        ] {
            assert_eq!(age(Duration::from_millis(millis)), text);
        }
        assert_eq!(seconds(f64::NAN), "0ms");
        assert_eq!(seconds(-1.0), "0ms");
    }

    #[test]
    fn rates_are_in_bits() {
        assert_eq!(bit_rate(0.0), "0.0 bit/s");
        assert_eq!(bit_rate(125.0), "1.0 kbit/s");
        assert_eq!(bit_rate(117_525_000.0), "940.2 Mbit/s");
    }
}
