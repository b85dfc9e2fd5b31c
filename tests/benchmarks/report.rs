//! What was measured: printed line by line as it comes, and kept for the JSON file.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use crate::lab::shell_output;

/// All results of one run.
pub struct Report {
    rows: Vec<Value>,
    section: String,
    missed: usize,
    machine: Value,
    /// See [`processor_time`].
    before: (f64, f64),
}

/// One figure; made by [`row`].
pub struct Row {
    what: String,
    value: f64,
    unit: &'static str,
    goal: Option<f64>,
    controls: Vec<(&'static str, f64, f64)>,
    suffix: String,
    more: Map<String, Value>,
}

/// `what` came out as `value`.
pub fn row(what: impl Into<String>, value: f64, unit: &'static str) -> Row {
    Row {
        what: what.into(),
        value,
        unit,
        goal: None,
        controls: Vec::new(),
        suffix: String::new(),
        more: Map::new(),
    }
}

impl Row {
    /// It should be at most this.
    pub fn goal(mut self, at_most: Option<f64>) -> Row {
        self.goal = at_most;
        self
    }

    /// The same of something else in the same run, by name.
    pub fn against(self, control: &'static str, value: f64) -> Row {
        let ratio = self.value / value;
        self.ratio(control, value, ratio)
    }

    /// The same, when the ratio is not just that of the two values but, say, a median of ratios.
    pub fn ratio(mut self, control: &'static str, value: f64, ratio: f64) -> Row {
        self.controls.push((control, value, ratio));
        self
    }

    /// A few words behind the unit.
    pub fn saying(mut self, words: impl Into<String>) -> Row {
        self.suffix = words.into();
        self
    }

    /// Something more for the JSON file.
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Row {
        self.more.insert(key.into(), value.into());
        self
    }
}

impl Report {
    /// Prints the machine, the kernel, the commit and the date.
    pub fn begin(mode: &str) -> Report {
        let cores = std::thread::available_parallelism().map_or(0, |n| n.get());
        let of = |line| shell_output(line).unwrap_or_else(|_| "unknown".into());
        let machine = json!({
            "cores": cores,
            "cpu": of("sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n1"),
            "kernel": of("uname -r"),
            "nft": of("nft --version"),
            "iptables": of("iptables --version"),
            "commit": of("git describe --always --dirty"),
            "date": of("date -u +%FT%TZ"),
            "load": of("cut -d' ' -f1 /proc/loadavg"),
            "mode": mode,
        });
        let text = |key: &str| machine[key].as_str().unwrap_or_default().to_string();
        println!(
            "{} × {}, kernel {}, {}, {}",
            cores,
            text("cpu"),
            text("kernel"),
            text("nft"),
            text("iptables")
        );
        println!(
            "commit {}, {}, load before {}, {mode}",
            text("commit"),
            text("date"),
            text("load")
        );
        Report {
            rows: Vec::new(),
            section: String::new(),
            missed: 0,
            machine,
            before: processor_time(),
        }
    }

    /// Opens a group of rows.
    pub fn section(&mut self, title: &str) {
        println!("\n{title}");
        self.section = title.into();
    }

    /// A remark between the rows.
    pub fn note(&mut self, text: &str) {
        println!("  ({text})");
        self.rows.push(json!({ "section": self.section, "note": text }));
    }

    /// Prints and keeps one figure.
    pub fn add(&mut self, row: Row) {
        let mut line = format!(
            "  {:<64} {:>8} {:<7} {:<14}",
            row.what,
            short(row.value),
            row.unit,
            row.suffix
        );
        let mut kept = json!({ "section": self.section, "what": row.what, "value": row.value, "unit": row.unit });
        let mut controls = Vec::new();
        for (name, control, ratio) in row.controls {
            line.push_str(&format!(
                "{} {} × {name} ({})",
                if controls.is_empty() { "" } else { "," },
                short(ratio),
                short(control)
            ));
            controls.push(json!({ "name": name, "value": control, "ratio": ratio }));
        }
        if !controls.is_empty() {
            kept["controls"] = Value::Array(controls);
        }
        if let Some(goal) = row.goal {
            let met = row.value <= goal;
            self.missed += usize::from(!met);
            line.push_str(&format!(
                " goal ≤ {}: {}",
                short(goal),
                if met { "met" } else { "MISSED" }
            ));
            kept["goal"] = json!({ "at_most": goal, "met": met });
        }
        println!("{}", line.trim_end());
        if let Value::Object(kept) = &mut kept {
            kept.extend(row.more);
        }
        self.rows.push(kept);
    }

    /// Writes the JSON file, and beside it the same figures as a Markdown table (`.md`), which
    /// `tests/RESULTS.md` keeps.
    pub fn write(self, path: &str) -> Result<(), String> {
        let table = path.strip_suffix(".json").unwrap_or(path).to_owned() + ".md";
        std::fs::write(&table, self.markdown()).map_err(|e| format!("{table}: {e}"))?;
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let (after, before) = (processor_time(), self.before);
        let stolen = (after.0 - before.0) / (after.1 - before.1) * 100.0;
        let all = json!({
            "machine": self.machine, "finished": at, "goals_missed": self.missed, "stolen_percent": stolen, "results": self.rows,
        });
        let text = serde_json::to_string_pretty(&all).map_err(|e| e.to_string())?;
        std::fs::write(path, text + "\n").map_err(|e| format!("{path}: {e}"))?;
        println!(
            "\nof the processor time that was wanted, others on the host of this machine took {} %",
            short(stolen)
        );
        println!("{} goals missed; written to {path} and {table}", self.missed);
        Ok(())
    }

    fn markdown(&self) -> String {
        let machine = |key: &str| self.machine[key].as_str().unwrap_or_default();
        let mut text = format!(
            "Commit {}, {}, {} × {}, kernel {}, {}, {}, load before {}.\n",
            machine("commit"),
            machine("date"),
            self.machine["cores"],
            machine("cpu"),
            machine("kernel"),
            machine("nft"),
            machine("iptables"),
            machine("load"),
        );
        let mut section = None;
        for row in &self.rows {
            if section != row["section"].as_str() {
                section = row["section"].as_str();
                let title = section.filter(|title| !title.is_empty()).unwrap_or("program");
                text += &format!("\n| {title} | value | beside | goal |\n|---|---|---|---|\n");
            }
            if let Some(note) = row["note"].as_str() {
                text += &format!("| {note} | | | |\n");
                continue;
            }
            let number = |value: &Value| short(value.as_f64().unwrap_or(f64::NAN));
            let controls: Vec<String> = row["controls"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|control| {
                    let name = control["name"].as_str().unwrap_or_default();
                    format!(
                        "{} × {name} ({})",
                        number(&control["ratio"]),
                        number(&control["value"])
                    )
                })
                .collect();
            let goal = match row["goal"]["met"].as_bool() {
                Some(met) => {
                    let word = if met { "met" } else { "missed" };
                    format!("≤ {}: {word}", number(&row["goal"]["at_most"]))
                }
                None => String::new(),
            };
            text += &format!(
                "| {} | {} {} | {} | {goal} |\n",
                row["what"].as_str().unwrap_or_default().trim(),
                number(&row["value"]),
                row["unit"].as_str().unwrap_or_default(),
                controls.join(", "),
            );
        }
        text
    }
}

/// What the hypervisor gave to others although we wanted it, and all that was wanted, in ticks
/// since boot (proc_stat(5)).
fn processor_time() -> (f64, f64) {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks: Vec<f64> = text
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|n| n.parse().ok())
        .collect();
    let tick = |n: usize| ticks.get(n).copied().unwrap_or_default();
    (tick(7), [0, 1, 2, 5, 6, 7].into_iter().map(tick).sum())
}

/// Three significant digits or so.
fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 10_000.0 => format!("{:.0}k", value / 1000.0),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 0.1 || v == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// The value below which `share` (0..=1) of the samples lie; sorts them.
pub fn quantile(samples: &mut [f64], share: f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    let last = samples.len().saturating_sub(1);
    samples.get((share * last as f64).round() as usize).copied().unwrap_or(f64::NAN)
}

/// The middle one; sorts them.
pub fn median(samples: &mut [f64]) -> f64 {
    quantile(samples, 0.5)
}
