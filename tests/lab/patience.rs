//! How much longer than usual tests wait.

use std::sync::OnceLock;
use std::time::Duration;

/// This time, multiplied by `PINNACE_TEST_PATIENCE` (a number of 1 or more; 1 when it is not set):
/// on an emulated or overloaded machine everything takes several times as long.
pub fn patient(time: Duration) -> Duration {
    static FACTOR: OnceLock<f64> = OnceLock::new();
    let factor = FACTOR.get_or_init(|| match std::env::var("PINNACE_TEST_PATIENCE") {
        Ok(text) => text
            .parse()
            .ok()
            .filter(|factor| (1.0..=1000.0).contains(factor))
            .expect("PINNACE_TEST_PATIENCE is a number of 1 or more"),
        Err(_) => 1.0,
    });
    time.mul_f64(*factor)
}
