//! The name that was probably meant by a misspelled one.

/// The candidate that differs least, if the difference is small enough to be a slip: at most a
/// third of the letters.
pub fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_ascii_uppercase().replace('-', "_");
    let scored = candidates.map(|candidate| (distance(&name, candidate), candidate));
    let (distance, candidate) = scored.min()?;
    (distance <= (name.len().max(candidate.len()) / 3).max(1)).then_some(candidate)
}

/// Edits (insert, delete, replace, swap two neighbours) that make one word of the other: the
/// optimal string alignment distance.
pub fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before = vec![0; b.len() + 1];
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replace = above[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replace.min(above[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, expected) in [
            ("", "", 0),
            ("A", "", 1),
            ("", "AB", 2),
            ("POOL", "POOLS", 1),
            ("POLOS", "POOLS", 1),
            ("MODE", "NODE", 1),
            ("ABC", "XYZ", 3),
        ] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
    }

    #[test]
    fn only_slips_are_suggested() {
        let names = ["POOLS", "STATE_DIR", "LISTEN"];
        for (name, expected) in [
            ("POOL", Some("POOLS")),
            ("pools", Some("POOLS")),
            ("STATEDIR", Some("STATE_DIR")),
            ("state-dir", Some("STATE_DIR")),
            ("LISTNE", Some("LISTEN")),
            ("SOMETHING_ELSE", None),
            ("", None),
        ] {
            assert_eq!(nearest(name, names.into_iter()), expected, "{name}");
        }
    }
}
