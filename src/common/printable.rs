//! Text from elsewhere (manifests, the API, the network, other programs' rules) on a person's
//! terminal or in a log: what could move the cursor, forge a line or turn the direction of reading
//! is shown as an escape. JSON and YAML output need none of this.

use std::borrow::Cow;
use std::fmt::{Display, Write};
use std::net::IpAddr;

/// `text` on one line, with `\n`, `\u{1b}` and the like in place of characters that act instead of
/// being seen. Idempotent: a backslash stays as it is.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(acts) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if acts(c) { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    Cow::Owned(shown)
}

/// [`printable`] for a text of several lines, whose line feeds are intended.
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    if !text.contains(|c| c != '\n' && acts(c)) {
        return Cow::Borrowed(text);
    }
    let lines: Vec<Cow<'_, str>> = text.split('\n').map(printable).collect();
    Cow::Owned(lines.join("\n"))
}

/// C0, DEL and C1 controls; line and paragraph separators; bidirectional formatting (UAX #9 §2,
/// "Trojan Source", CVE-2021-42574); and characters without a shape of their own that make two
/// different names look alike (Unicode's Default_Ignorable_Code_Point, as far as no script or emoji
/// needs them).
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Items as people read them: separated by commas; empty without any.
pub fn joined(items: impl IntoIterator<Item = impl Display>) -> String {
    let mut text = String::new();
    for item in items {
        if !text.is_empty() {
            text.push_str(", ");
        }
        // Writing into a String cannot fail.
        let _ = write!(text, "{item}");
    }
    text
}

/// Addresses, separated by commas.
pub fn list(addresses: &[IpAddr]) -> String {
    joined(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_acts_is_shown_and_what_is_read_stays() {
        for (text, shown) in [
            ("plain", "plain"),
            ("", ""),
            (
                "Grüße 東京 \u{1f469}\u{200d}\u{1f4bb} \u{627}\u{644}",
                "Grüße 東京 \u{1f469}\u{200d}\u{1f4bb} \u{627}\u{644}",
            ),
            ("a\x1b]0;owned\x07b", "a\\u{1b}]0;owned\\u{7}b"),
            ("one\r\ntwo\tthree", "one\\r\\ntwo\\tthree"),
            ("\u{7f}\u{9b}2J", "\\u{7f}\\u{9b}2J"),
            ("user\u{202e}nimda\u{2069}", "user\\u{202e}nimda\\u{2069}"),
            ("we\u{200b}b\u{feff}\u{2028}", "we\\u{200b}b\\u{feff}\\u{2028}"),
            ("back\\slash", "back\\slash"),
        ] {
            assert_eq!(printable(text), shown);
            assert_eq!(printable(shown), shown, "twice is once");
        }
    }

    #[test]
    fn lines_stay_lines() {
        assert_eq!(printable_lines("one\ntwo\n"), "one\ntwo\n");
        assert_eq!(printable_lines("one\x1b[2J\ntwo\r\n"), "one\\u{1b}[2J\ntwo\\r\n");
    }
}
