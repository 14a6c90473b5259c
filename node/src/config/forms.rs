//! Settings that are texts of a form: networks, origins of pages, filters of the log. Pure.

use std::net::IpAddr;

use ipnet::IpNet;
use tokio_tungstenite::tungstenite::http::Uri;
use tracing_subscriber::filter::{LevelFilter, ParseError, Targets};

/// Reads a network: an address, or an address with the number of its leading bits.
pub(crate) fn parse_network(text: &str) -> Option<IpNet> {
    text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

/// Whether a text can stand in `listen.websocket_origins`: `*`, or scheme, host and port of a page.
pub(crate) fn is_origin(text: &str) -> bool {
    let begins = text.starts_with("https://") || text.starts_with("http://");
    let ends = !text.ends_with('/') && text.matches('/').count() == 2;
    text == "*" || (begins && ends && host_of(text).is_some())
}

/// The host of an address, in small letters.
pub(crate) fn host_of(address: &str) -> Option<String> {
    let uri: Uri = address.parse().ok()?;
    uri.host().map(str::to_ascii_lowercase)
}

/// Reads `log.filter`.
///
/// # Errors
/// What is wrong with it, and the cure.
pub(crate) fn parse_filter(text: &str) -> Result<Targets, String> {
    let cure = "write error, warn, info, debug, trace or off, or for one part PART=LEVEL, such as \
                \"info,actors::shard=debug\"";
    // The library takes a lone word that is no level for the name of a part, and writes nothing else.
    let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
    let mut lone = words.filter(|word| !word.contains('='));
    if let Some(word) = lone.find(|word| word.parse::<LevelFilter>().is_err()) {
        return Err(format!("{word:?} is no level; {cure}"));
    }
    text.parse().map_err(|error: ParseError| format!("{text:?} is no filter ({error}); {cure}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        for (text, is) in [
            ("https://chat.example.org", true),
            ("http://localhost:8080", true),
            ("*", true),
            ("chat.example.org", false),
            ("https://chat.example.org/", false),
            ("https://", false),
        ] {
            assert_eq!(is_origin(text), is, "{text}");
        }
    }
}
