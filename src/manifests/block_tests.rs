use serde_json::Value;

use super::*;
use crate::manifests::text::yaml;

#[test]
fn what_it_reads_is_what_the_general_parser_reads() {
    for text in [
        "a: 1\n",
        "a:\n  b: x\n  c:\n  - 1\n  - two\n  d:\n    - x: 1\n      y: 2\n    -   x: 3\n        y:\n        - 4\n",
        "- a: 1\n  b: -7\n- c:\n- - x\n  - z\n-\n  d: 1\n-\n",
        "a: \"quoted: # text\"\nb: 'x'\nc: fd42::11\nd: 10.0.0.1\ne: 2024-01-01T00:00:00Z\nf: [a, \"b\", 3]\ng: {}\nh: []\n",
        "a: null\nb:\nc: true\nd: False\n# note\n\nf:   x y  \r\n",
        "kubernetes.io/name: a/b\n",
        "  a: 1\n  b: 2\n",
    ] {
        let fast: Value =
            serde_json::from_str(&to_json(text).unwrap_or_else(|| panic!("{text:?} is plain")))
                .expect("JSON");
        let general: Value = yaml(text).expect("YAML");
        assert_eq!(fast, general, "{text:?}");
    }
}

#[test]
fn what_it_is_not_sure_of_is_left_to_the_general_parser() {
    for text in [
        "",
        "a",
        "a: |\n  x\n",
        "a: >-\n  x\n",
        "a: &x 1\n",
        "a: *x\n",
        "a: !!str 1\n",
        "a: x\n  continued\n",
        "a: 'it''s'\n",
        "a: \"\\n\"\n",
        "a: 1\na: 2\n",
        "a: 1.5\n",
        "a: 0x10\n",
        "a: 010\n",
        "a: 1e3\n",
        "a: .inf\n",
        "a: x # note\n",
        "? a\n: b\n",
        "\ta: 1\n",
        "a:\n- 1\n  - 2\n",
        "a: {b: 1}\n",
        "a: [[1]]\n",
        "a: [1,]\n",
        "a: b: c\n",
        "a: ü\n",
        "<<: 1\n",
        "a:\n   b: 1\n  c: 2\n",
        "- a\nb: 1\n",
        "a: 1\n- b\n",
        "a: %x\n",
        "a: @x\n",
        "a: ~\n",
        "a: -0\n",
        "a: yes\n",
        "a: Off\n",
        "a: 1_000\n",
    ] {
        assert_eq!(to_json(text), None, "{text:?}");
    }
    assert_eq!(to_json(&"- ".repeat(1000)), None);
    let many: String = (0..100).map(|n| format!("k{n}: 1\n")).collect();
    assert_eq!(to_json(&many), None);
}
