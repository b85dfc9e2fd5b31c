//! Settings of BFD between nodes.

use std::time::Duration;

use super::values;

/// How often nodes tell each other that they live: 3 ms to 1 s.
pub fn interval(text: &str) -> Result<Duration, String> {
    values::duration(text, Duration::from_millis(3), Duration::from_secs(1))
}

/// After how many missing packets a node counts as dead: 2 to 50.
pub fn multiplier(text: &str) -> Result<u8, String> {
    text.parse()
        .ok()
        .filter(|number| (2..=50).contains(number))
        .ok_or_else(|| "write a number from 2 to 50".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_and_multipliers_have_limits() {
        assert_eq!((interval("50ms"), multiplier("3")), (Ok(Duration::from_millis(50)), Ok(3)));
        assert_eq!(
            (interval("3ms"), interval("1s")),
            (Ok(Duration::from_millis(3)), Ok(Duration::from_secs(1)))
        );
        for wrong in ["2ms", "1001ms", "50", "fast", ""] {
            assert!(interval(wrong).is_err(), "{wrong}");
        }
        assert_eq!((multiplier("2"), multiplier("50")), (Ok(2), Ok(50)));
        for wrong in ["1", "51", "-3", "256", "three", ""] {
            assert!(multiplier(wrong).is_err(), "{wrong}");
        }
    }
}
