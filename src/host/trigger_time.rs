//! Times by the clock of another machine, for metrics only; no decision depends on them.

use std::time::{Duration, SystemTime};

use k8s_openapi::jiff::Timestamp;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TriggerTime(SystemTime);

impl TriggerTime {
    /// From RFC 3339, as the API writes times.
    pub fn parse(text: &str) -> Option<TriggerTime> {
        text.parse::<Timestamp>().ok().map(|time| TriggerTime(time.into()))
    }

    /// Time since then; None if the other clock is ahead of this one.
    pub fn age(self) -> Option<Duration> {
        self.0.elapsed().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_past_has_an_age_and_the_future_none() {
        let [old, older] = ["2023-11-14T22:13:20.25Z", "2023-11-14T22:13:20+01:00"]
            .map(|text| TriggerTime::parse(text).expect("a time"));
        assert!(older < old);
        assert!(old.age().is_some_and(|age| age > Duration::from_secs(1 << 20)));
        assert_eq!(TriggerTime::parse("9999-01-01T00:00:00Z").and_then(TriggerTime::age), None);
        assert_eq!(TriggerTime::parse("yesterday"), None);
    }
}
