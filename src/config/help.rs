//! The table as text, for `--help` and docs/configuration.md.

use std::fmt::Write;

use super::table::{DefaultValue, Setting, TABLE};

/// One paragraph per variable: name, format, default, description.
pub fn help_text() -> String {
    let mut text =
        String::from("Settings (environment variables; an empty one counts as not set):\n");
    for setting in TABLE {
        let _ = write!(
            text,
            "\n  {}  <{}>  [default: {}]\n",
            setting.variable(),
            setting.format,
            default(setting)
        );
        for line in wrap(setting.help, 92) {
            let _ = writeln!(text, "      {line}");
        }
    }
    text
}

/// The same as a Markdown table.
pub fn markdown_table() -> String {
    let mut text =
        String::from("| variable | default | format | what it does |\n|---|---|---|---|\n");
    for setting in TABLE {
        let default = match setting.default {
            DefaultValue::Fixed(value) => format!("`{value}`"),
            DefaultValue::Computed(words) => words.to_string(),
        };
        let _ = writeln!(
            text,
            "| `{}` | {default} | {} | {} |",
            setting.variable(),
            escape(setting.format),
            escape(setting.help)
        );
    }
    text
}

fn default(setting: &Setting) -> &'static str {
    match setting.default {
        DefaultValue::Fixed(text) | DefaultValue::Computed(text) => text,
    }
}

/// `|` ends a cell and `*` begins emphasis.
fn escape(text: &str) -> String {
    text.replace('|', "\\|").replace('*', "\\*")
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_string()),
        }
    }
    lines
}
