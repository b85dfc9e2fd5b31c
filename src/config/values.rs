//! Parsers of single values. Each error completes the sentence "NAME=value: …".

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Uri;
use tracing_subscriber::filter::{LevelFilter, Targets};

use crate::common::names::{is_dns_label, is_dns_subdomain};
use crate::engine::uplinks::InterfacePattern;

/// Units in milliseconds, longest name first: "ms" must not be read as minutes.
const UNITS: &[(&str, u64)] = &[("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];

pub(super) fn interfaces(text: &str) -> Result<Vec<InterfacePattern>, Vec<String>> {
    let mut patterns = Vec::new();
    let mut reasons = Vec::new();
    for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        // IFNAMSIZ is 16 with the terminating zero; see dev_valid_name in net/core/dev.c.
        let too_long = name.bytes().filter(|b| *b != b'*').count() > 15;
        if too_long
            || name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control())
        {
            reasons.push(format!(
                "{name:?} cannot be an interface's name; write names of up to 15 characters separated by commas, e.g. eth0,wlan*"
            ));
        } else {
            patterns.push(InterfacePattern::new(name));
        }
    }
    if reasons.is_empty() { Ok(patterns) } else { Err(reasons) }
}

/// Addresses of API servers: scheme, host and maybe a port.
pub(super) fn servers(text: &str) -> Result<Vec<Uri>, Vec<String>> {
    let read = |item: &str| {
        let uri = item.trim_end_matches('/').parse::<Uri>().ok();
        let usable = |uri: &Uri| {
            matches!(uri.scheme_str(), Some("https" | "http"))
                && uri.host().is_some()
                && uri.path() == "/"
        };
        uri.filter(usable).ok_or_else(|| {
            format!("{item:?} is no address of an API server; write https://10.0.0.1:6443")
        })
    };
    let (good, bad): (Vec<_>, Vec<_>) = text
        .split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
        .map(read)
        .partition(Result::is_ok);
    if bad.is_empty() {
        Ok(good.into_iter().flatten().collect())
    } else {
        Err(bad.into_iter().filter_map(Result::err).collect())
    }
}

pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Ok(true),
        "false" | "no" | "off" | "0" => Ok(false),
        _ => Err("write true or false".to_string()),
    }
}

pub(super) fn one_of<T: Copy>(text: &str, choices: &[(&str, T)]) -> Result<T, String> {
    let found = choices.iter().find(|(name, _)| text.eq_ignore_ascii_case(name));
    found.map(|(_, value)| *value).ok_or_else(|| {
        format!("write {}", choices.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" or "))
    })
}

/// `15m`, `1h30m`, `50ms`; within the limits, both included.
pub(super) fn duration(text: &str, min: Duration, max: Duration) -> Result<Duration, String> {
    let found = parse_duration(text)?;
    if found < min || found > max {
        return Err(format!("write a duration from {} to {}", shown(min), shown(max)));
    }
    Ok(found)
}

/// [`duration`], and `0` or `off` for [`Duration::ZERO`].
pub(super) fn duration_or_off(
    text: &str,
    min: Duration,
    max: Duration,
) -> Result<Duration, String> {
    match text {
        "0" | "off" => Ok(Duration::ZERO),
        _ if parse_duration(text)?.is_zero() => Ok(Duration::ZERO),
        _ => duration(text, min, max).map_err(|reason| format!("{reason}, or 0 to turn it off")),
    }
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    const HINT: &str = "write a duration such as 50ms, 15s, 15m or 1h30m";
    let mut rest = text;
    let mut total = 0u64;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, tail) = rest.split_at(digits);
        let number: u64 = number.parse().map_err(|_| HINT.to_string())?;
        if tail.is_empty() {
            return Err(format!(
                "{number} of what? Add the unit: {text}s for seconds, {text}m for minutes, {text}ms for milliseconds"
            ));
        }
        let (unit, factor) = UNITS
            .iter()
            .find(|(unit, _)| tail.starts_with(unit))
            .ok_or_else(|| format!("{HINT}; the units are ms, s, m and h"))?;
        total = number
            .checked_mul(*factor)
            .and_then(|n| total.checked_add(n))
            .ok_or_else(|| format!("that is too long; {HINT}"))?;
        rest = &tail[unit.len()..];
    }
    if text.is_empty() { Err(HINT.to_string()) } else { Ok(Duration::from_millis(total)) }
}

/// A duration in the largest unit that needs no fraction.
fn shown(duration: Duration) -> String {
    let millis = duration.as_millis();
    let fits = UNITS.iter().rev().find(|(_, factor)| millis.is_multiple_of(u128::from(*factor)));
    fits.map_or_else(String::new, |(unit, factor)| {
        format!("{}{unit}", millis / u128::from(*factor))
    })
}

pub(super) fn listen(text: &str) -> Result<Option<SocketAddr>, String> {
    if text.eq_ignore_ascii_case("off") {
        return Ok(None);
    }
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() == 0 => {
            Err("port 0 would be a different port after every start; write 127.0.0.1:7466 or off".to_string())
        }
        Ok(address) => Ok(Some(address)),
        Err(_) => Err("write address:port with a numeric address, such as 127.0.0.1:7466, [::1]:7466 or 0.0.0.0:7466, or off".to_string()),
    }
}

/// RFC 1123 subdomain, the form of Node names.
pub(super) fn node_name(text: &str) -> Result<Box<str>, String> {
    if is_dns_subdomain(text) {
        Ok(text.into())
    } else {
        Err("a node's name consists of a-z, 0-9, - and . (RFC 1123)".to_string())
    }
}

/// RFC 1123 label, the form of names of namespaces.
pub(super) fn namespace(text: &str) -> Result<Box<str>, String> {
    if is_dns_label(text) {
        Ok(text.into())
    } else {
        Err("a namespace's name consists of a-z, 0-9 and -, at most 63 of them (RFC 1123)"
            .to_string())
    }
}

/// `domain/name` or `name`, the form of a load balancer class: a label name of the Kubernetes API.
pub(super) fn class(text: &str) -> Result<Box<str>, String> {
    let (prefix, name) =
        text.split_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let name_fits = name.len() <= 63
        && name.chars().all(inner)
        && edge(name.chars().next())
        && edge(name.chars().next_back());
    if name_fits && prefix.is_none_or(is_dns_subdomain) {
        Ok(text.into())
    } else {
        Err("write a load balancer class such as pinnace.dev/pinnace: a domain, a slash and a name"
            .to_string())
    }
}

pub(super) fn state_dir(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    // `pinnace cleanup --state` removes it.
    if path.file_name().is_none() {
        return Err("write a directory of its own, such as /var/lib/pinnace".to_string());
    }
    Ok(path.to_path_buf())
}

/// Comma-separated `level` or `module=level`. A bare word that is no level would silently be taken
/// for a module, so it is refused.
pub(super) fn log_filter(text: &str) -> Result<Box<str>, String> {
    for directive in text.split(',').map(str::trim) {
        let level = directive.rsplit_once('=').map_or(directive, |(_, level)| level);
        if level.is_empty() || level.parse::<LevelFilter>().is_err() {
            return Err(format!(
                "{directive:?} is no level; write off, error, warn, info, debug or trace, or module=level"
            ));
        }
    }
    text.parse::<Targets>()
        .map_err(|error| format!("{error}; write a level, or module=level, separated by commas"))?;
    Ok(text.into())
}
