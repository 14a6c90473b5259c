//! The result of a run as a table, for a person at a terminal. Pure.

use std::fmt::Write as _;

use serde_json::Value;

/// These come first, in this order; the rest follows by name.
const ORDER: &[&str] = &[
    "mode",
    "nodes",
    "tls",
    "body",
    "pairs",
    "rate",
    "window",
    "receipts",
    "seconds",
    "connections",
    "logins",
    "users",
    "delivered",
    "delivered_per_s",
    "logins_per_s",
    "lat_p50_us",
    "lat_p99_us",
    "lat_p999_us",
    "tick1_p50_us",
    "tick1_p99_us",
    "tick2_p50_us",
    "tick2_p99_us",
    "lost",
    "doubled",
    "disordered",
    "seq_breaks",
    "refused",
    "unanswered",
    "receipts_missing",
];

/// What a key's parts mean, where they are not words already.
const WORDS: &[(&str, &str)] = &[
    ("lat", "send to delivery"),
    ("tick1", "send to first tick"),
    ("tick2", "send to second tick"),
    ("p50", "median"),
    ("p99", "99 of 100 within"),
    ("p999", "999 of 1,000 within"),
    ("cpu", "CPU"),
    ("conn", "connection"),
    ("rss", "memory"),
    ("tls", "TLS"),
    ("seq", "sequence"),
];

/// Endings of keys that are units, and how they are shown after the value.
const UNITS: &[(&str, &str)] = &[
    ("_s_per_1000", " s for 1,000 messages"),
    ("_ms_per_login", " ms for each login"),
    ("_kib_per_conn", " KiB for each connection"),
    ("_kib_per_user", " KiB for each user"),
    ("_per_s", " a second"),
    ("_kib", " KiB"),
    ("_us", " ms"),
    ("_s", " s"),
];

/// The result as lines, each with a name and a value. What was not measured is left out.
pub(crate) fn table(result: &Value) -> String {
    let Value::Object(result) = result else { return format!("{result}\n") };
    let place = |key: &str| ORDER.iter().position(|known| *known == key).unwrap_or(ORDER.len());
    let mut rows: Vec<(&String, &Value)> =
        result.iter().filter(|(_, value)| !value.is_null()).collect();
    rows.sort_by_key(|(key, _)| (place(key), *key));
    let rows: Vec<(String, String)> = rows.iter().map(|(key, value)| row(key, value)).collect();
    let wide = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let mut table = String::new();
    for (name, value) in rows {
        // Writing to a string does not fail.
        writeln!(table, "{name:<wide$}  {value}").ok();
    }
    table
}

fn row(key: &str, value: &Value) -> (String, String) {
    let unit = UNITS.iter().find(|(ending, _)| key.ends_with(ending));
    let (stem, unit) =
        unit.map_or((key, ""), |(ending, unit)| (key.strip_suffix(ending).unwrap_or(key), *unit));
    let part = |part: &str| {
        let known = WORDS.iter().find(|(short, _)| *short == part);
        known.map_or_else(|| part.to_owned(), |(_, words)| (*words).to_owned())
    };
    let name = stem.split('_').map(part).collect::<Vec<_>>().join(" ");
    let shown = match value {
        Value::Number(number) => {
            let number = number.as_f64().unwrap_or_default();
            let number = if key.ends_with("_us") { number / 1000.0 } else { number };
            format!("{}{unit}", figure(number))
        }
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::String(text) => text.clone(),
        Value::Null | Value::Array(_) | Value::Object(_) => value.to_string(),
    };
    (name, shown)
}

/// Whole numbers with commas, others with three figures that count.
fn figure(number: f64) -> String {
    if number.fract() != 0.0 && number.abs() < 100.0 {
        let places = if number.abs() >= 10.0 {
            1
        } else if number.abs() >= 1.0 {
            2
        } else {
            4
        };
        return format!("{number:.places$}");
    }
    let digits = format!("{:.0}", number.abs());
    let mut shown = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            shown.push(',');
        }
        shown.push(digit);
    }
    if number < 0.0 { format!("-{shown}") } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_result_is_read_by_a_person() {
        let result = json!({
            "client_cpu_s_per_1000": 0.01234, "delivered": 1_234_567, "delivered_per_s": 45_678.9,
            "lat_p50_us": 1_234.0, "lat_p99_us": 22_345.0, "lost": 0, "mode": "pairs", "tick2_p50_us": null,
            "tls": true, "upsets": null,
        });
        let expected = "\
mode                               pairs
TLS                                yes
delivered                          1,234,567
delivered                          45,679 a second
send to delivery median            1.23 ms
send to delivery 99 of 100 within  22.3 ms
lost                               0
client CPU                         0.0123 s for 1,000 messages
";
        assert_eq!(table(&result), expected);
    }
}
