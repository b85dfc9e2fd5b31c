use std::ffi::OsString;
use std::time::Duration;

use super::environment::is_service_link;
use super::*;
use crate::bfd::packet::Key;

fn sources(file: &str, environment: &[(&str, &str)]) -> Sources {
    Sources {
        file: (!file.is_empty()).then(|| ConfigFile {
            path: "/etc/pinnace/config.yaml".into(),
            text: Ok(file.to_string()),
        }),
        environment: environment.iter().map(|(k, v)| (k.into(), v.into())).collect(),
        manifests: None,
        host_name: "Node-A.example".to_string(),
        read_secret: |path| match path.to_str() {
            Some("/etc/pinnace/secret") => {
                SecretFile { path: path.into(), contents: Ok((b"hush\n".to_vec(), 0o600)) }
            }
            _ => SecretFile {
                path: path.into(),
                contents: Err("No such file or directory".to_string()),
            },
        },
    }
}

fn settings(file: &str, environment: &[(&str, &str)]) -> Settings {
    load(sources(file, environment)).unwrap_or_else(|errors| panic!("{errors}")).0
}

/// All complaints about one variable, a line each.
fn errors(file: &str, environment: &[(&str, &str)]) -> Vec<String> {
    let errors = load(sources(file, environment)).expect_err("should be refused");
    errors.problems.iter().map(ToString::to_string).collect()
}

fn warnings(file: &str, environment: &[(&str, &str)]) -> Vec<String> {
    let (_, warnings) =
        load(sources(file, environment)).unwrap_or_else(|errors| panic!("{errors}"));
    warnings.iter().map(ToString::to_string).collect()
}

#[test]
fn nothing_set_is_a_working_configuration() {
    let settings = settings("", &[("PATH", "/bin"), ("PINNACE_MODE", "")]);
    let expected = Settings {
        manifests: None,
        kubeconfig: None,
        api_servers: vec![],
        namespace: None,
        node_name: "node-a.example".into(),
        state_dir: "/var/lib/pinnace".into(),
        pools: vec![],
        avoid_buggy_ips: false,
        mode: Mode::Node,
        class: "pinnace.dev/pinnace".into(),
        claim_default: true,
        interfaces: vec![],
        probe: Duration::from_secs(1),
        listen: Some(([127, 0, 0, 1], 7466).into()),
        on_exit: OnExit::Remove,
        dead_man: Duration::from_secs(900),
        log: "info".into(),
        log_format: LogFormat::Human,
        announce_interval: Duration::from_secs(60),
        bfd_interval: Duration::from_millis(50),
        bfd_multiplier: 3,
        secret: None,
    };
    assert_eq!(settings, expected);
}

#[test]
fn every_setting_reaches_its_place_from_both_sources() {
    let values = [
        ("PINNACE_CONFIG", "/etc/pinnace/config.yaml"),
        ("PINNACE_MANIFESTS", "/etc/pinnace/manifests"),
        ("PINNACE_KUBECONFIG", "/etc/pinnace/kubeconfig"),
        ("PINNACE_API_SERVERS", "https://10.0.0.1:6443, https://[fd00::1]:6443/"),
        ("PINNACE_NAMESPACE", "edge"),
        ("PINNACE_NODE_NAME", "007"),
        ("PINNACE_STATE_DIR", "/srv/state"),
        ("PINNACE_POOLS", "lan=10.0.0.1; dmz![web]=fd00::/120"),
        ("PINNACE_AVOID_BUGGY_IPS", "true"),
        ("PINNACE_MODE", "node"),
        ("PINNACE_CLASS", "example.org/edge"),
        ("PINNACE_DEFAULT_CLASS", "no"),
        ("PINNACE_INTERFACES", "eth*, wlan0"),
        ("PINNACE_PROBE", "0"),
        ("PINNACE_LISTEN", "off"),
        ("PINNACE_ON_EXIT", "keep"),
        ("PINNACE_DEAD_MAN_TIMEOUT", "1h30m"),
        ("PINNACE_LOG", "warn,pinnace::edge=debug"),
        ("PINNACE_LOG_FORMAT", "json"),
        ("PINNACE_ANNOUNCE_INTERVAL", "2s500ms"),
        ("PINNACE_BFD_INTERVAL", "10ms"),
        ("PINNACE_BFD_MULTIPLIER", "5"),
        ("PINNACE_SECRET_FILE", "/etc/pinnace/secret"),
    ];
    assert_eq!(values.len(), TABLE.len(), "a setting is missing in this test");
    let expected = Settings {
        manifests: Some("/etc/pinnace/manifests".into()),
        kubeconfig: Some("/etc/pinnace/kubeconfig".into()),
        api_servers: ["https://10.0.0.1:6443", "https://[fd00::1]:6443"]
            .map(|uri| uri.parse().expect("valid"))
            .to_vec(),
        namespace: Some("edge".into()),
        node_name: "007".into(),
        state_dir: "/srv/state".into(),
        pools: crate::ipam::pool::parse_pools("lan=10.0.0.1;dmz![web]=fd00::/120").expect("valid"),
        avoid_buggy_ips: true,
        mode: Mode::Node,
        class: "example.org/edge".into(),
        claim_default: false,
        interfaces: values::interfaces("eth*,wlan0").expect("valid"),
        probe: Duration::ZERO,
        listen: None,
        on_exit: OnExit::Keep,
        dead_man: Duration::from_secs(5400),
        log: "warn,pinnace::edge=debug".into(),
        log_format: LogFormat::Json,
        announce_interval: Duration::from_millis(2500),
        bfd_interval: Duration::from_millis(10),
        bfd_multiplier: 5,
        secret: Key::new(b"hush"),
    };
    assert_eq!(settings("", &values), expected);
    for spell in [
        |name: &str| name.to_string(),
        |name: &str| name[PREFIX.len()..].to_lowercase(),
        |name: &str| name[PREFIX.len()..].to_lowercase().replace('_', "-"),
    ] {
        let file: Vec<String> = values
            .iter()
            .skip(1)
            .map(|(name, value)| format!("{}: {value}", spell(name)))
            .collect();
        assert_eq!(settings(&file.join("\n"), &[]), expected, "{file:#?}");
    }
}

#[test]
fn precedence_is_default_file_environment_flag() {
    let file = "manifests: /file\nprobe: 2s\nstate_dir: /file\n";
    let mut sources =
        sources(file, &[("PINNACE_MANIFESTS", "/env"), ("PINNACE_STATE_DIR", "/env")]);
    sources.manifests = Some("/flag".into());
    let (settings, _) = load(sources).expect("valid");
    assert_eq!(settings.manifests.as_deref(), Some(Path::new("/flag")));
    assert_eq!(settings.state_dir, Path::new("/env"));
    assert_eq!(settings.probe, Duration::from_secs(2));
    assert_eq!(settings.log_format, LogFormat::Human);
}

#[test]
fn values_in_the_file_are_taken_as_written() {
    for (file, expected) in [
        ("node_name: 1e3", "1e3"),
        ("node_name: \"010\"", "010"),
        ("node_name: 010", "010"),
        ("node_name: no", "no"),
        ("node_name:", "node-a.example"),
        ("---\n# nothing\n", "node-a.example"),
    ] {
        assert_eq!(&*settings(file, &[]).node_name, expected, "{file}");
    }
    let pools = settings("pools:\n  - lan=10.0.0.1,10.0.0.2\n  - dmz=10.0.1.1\n", &[]).pools;
    assert_eq!(
        pools.iter().map(|p| (&*p.name, p.ranges.len())).collect::<Vec<_>>(),
        [("lan", 2), ("dmz", 1)]
    );
    assert_eq!(settings("pools: [10.0.0.1, 10.0.0.3]", &[]).pools[0].ranges.len(), 2);
}

#[test]
fn a_pool_makes_vip_the_default_mode() {
    assert_eq!(settings("", &[("PINNACE_POOLS", "10.0.0.1")]).mode, Mode::Vip);
    assert_eq!(
        settings("", &[("PINNACE_POOLS", "10.0.0.1"), ("PINNACE_MODE", "node")]).mode,
        Mode::Node
    );
    assert_eq!(
        warnings("", &[("PINNACE_MODE", "vip")]),
        [
            "PINNACE_MODE is vip but PINNACE_POOLS is empty: Services get no address until a pool is configured"
        ]
    );
}

#[test]
fn a_bad_value_is_named_with_what_would_be_right() {
    for (name, value, expected) in [
        (
            "PINNACE_PROBE",
            "5",
            "PINNACE_PROBE=\"5\": 5 of what? Add the unit: 5s for seconds, 5m for minutes, 5ms for milliseconds",
        ),
        (
            "PINNACE_PROBE",
            "1.5s",
            "PINNACE_PROBE=\"1.5s\": write a duration such as 50ms, 15s, 15m or 1h30m; the units are ms, s, m and h",
        ),
        ("PINNACE_PROBE", "-1s", "write a duration such as"),
        (
            "PINNACE_API_SERVERS",
            "https://a:6443,10.0.0.1",
            "\"10.0.0.1\" is no address of an API server; write https://10.0.0.1:6443",
        ),
        ("PINNACE_PROBE", "2m", "write a duration from 10ms to 1m, or 0 to turn it off"),
        ("PINNACE_PROBE", "99999999999999999999s", "write a duration such as"),
        ("PINNACE_PROBE", "9999999999999999999h", "too long"),
        (
            "PINNACE_DEAD_MAN_TIMEOUT",
            "9s",
            "PINNACE_DEAD_MAN_TIMEOUT=\"9s\": write a duration from 10s to 24h",
        ),
        ("PINNACE_DEAD_MAN_TIMEOUT", "25h", "from 10s to 24h"),
        ("PINNACE_DEAD_MAN_TIMEOUT", "0", "0 of what?"),
        ("PINNACE_ANNOUNCE_INTERVAL", "2m", "from 1s to 100s"),
        ("PINNACE_MODE", "l2", "PINNACE_MODE=\"l2\": write vip or node"),
        ("PINNACE_ON_EXIT", "stay", "write remove or keep"),
        ("PINNACE_LOG_FORMAT", "text", "write human or json"),
        ("PINNACE_DEFAULT_CLASS", "maybe", "write true or false"),
        ("PINNACE_LISTEN", "7466", "write address:port with a numeric address"),
        ("PINNACE_LISTEN", "localhost:7466", "write address:port with a numeric address"),
        ("PINNACE_LISTEN", "127.0.0.1:0", "port 0"),
        ("PINNACE_NODE_NAME", "Node_A", "a node's name consists of a-z"),
        ("PINNACE_CLASS", "a/b/c", "write a load balancer class"),
        ("PINNACE_CLASS", "/x", "write a load balancer class"),
        ("PINNACE_INTERFACES", "eth0 eth1", "\"eth0 eth1\" cannot be an interface's name"),
        ("PINNACE_LOG", "inof", "\"inof\" is no level"),
        ("PINNACE_LOG", "pinnace::edge=loud", "is no level"),
        ("PINNACE_STATE_DIR", "/", "write a directory of its own"),
        (
            "PINNACE_POOLS",
            "10.0.0.9-10.0.0.1",
            "PINNACE_POOLS=\"10.0.0.9-10.0.0.1\": pool default: the range 10.0.0.9-10.0.0.1 ends before it starts",
        ),
    ] {
        let errors = errors("", &[(name, value)]);
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].contains(expected), "{name}={value}: {}", errors[0]);
    }
}

#[test]
fn all_errors_are_reported_at_once() {
    let found = errors(
        "probe: 5\nannounce-interval: 1h\n",
        &[
            ("PINNACE_POOLS", "a=junk;b=10.0.0.2-10.0.0.1"),
            ("PINNACE_MODE", "x"),
            ("PINNACE_NODE_NAME", "A"),
        ],
    );
    let expected = [
        "PINNACE_NODE_NAME=\"A\"",
        "PINNACE_POOLS: pool a:",
        "PINNACE_POOLS: pool b:",
        "PINNACE_MODE=\"x\"",
        "/etc/pinnace/config.yaml:1: probe \"5\"",
        "/etc/pinnace/config.yaml:2: announce-interval \"1h\"",
    ];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found} should start with {expected}");
    }
}

#[test]
fn a_broken_file_is_named_with_its_line() {
    for (file, expected) in [
        ("- pools\n", "/etc/pinnace/config.yaml:1: "),
        (
            "probe: 1s\nprobe: 2s\n",
            "/etc/pinnace/config.yaml:2: probe is given twice in the file; remove one",
        ),
        (
            "probe: 1s\nPINNACE_PROBE: 2s\n",
            "/etc/pinnace/config.yaml:2: PINNACE_PROBE: this setting is given twice",
        ),
        ("probe: [1s\nmode: vip", "/etc/pinnace/config.yaml:"),
        ("just text", "/etc/pinnace/config.yaml:1: "),
        (
            "config: other.yaml",
            "/etc/pinnace/config.yaml:1: config: a configuration file cannot name another",
        ),
        (
            "\npools:\n  lan: 10.0.0.1",
            "/etc/pinnace/config.yaml:3: pools: a mapping is not understood here",
        ),
    ] {
        let found = errors(file, &[]);
        assert_eq!(found.len(), 1, "{file}: {found:#?}");
        assert!(found[0].starts_with(expected), "{file}: {}", found[0]);
        assert!(!found[0].contains('\n'), "one line per problem: {}", found[0]);
    }
}

#[test]
fn a_misspelled_name_is_a_warning_with_the_nearest_name() {
    assert_eq!(
        warnings("", &[("PINNACE_POOL", "10.0.0.1")]),
        ["PINNACE_POOL is not a setting and is ignored; did you mean PINNACE_POOLS?"]
    );
    assert_eq!(
        warnings("", &[("PINNACE_XYZZY_PLUGH", "1")]),
        ["PINNACE_XYZZY_PLUGH is not a setting and is ignored"]
    );
    assert_eq!(
        warnings("\nstatedir: /x", &[]),
        [
            "/etc/pinnace/config.yaml:2: statedir is not a setting and is ignored; did you mean state_dir?"
        ]
    );
}

#[test]
fn an_unreadable_file_hides_no_other_error() {
    let mut sources = sources("x", &[("PINNACE_PROBE", "5")]);
    sources.file.as_mut().expect("file").text =
        Err("No such file or directory (os error 2)".to_string());
    let errors = load(sources).expect_err("refused").to_string();
    assert!(
        errors.contains(
            "error: /etc/pinnace/config.yaml: the configuration file cannot be read: No such file"
        ),
        "{errors}"
    );
    assert!(errors.contains("error: PINNACE_PROBE"), "{errors}");
}

#[test]
fn a_slip_is_shown_beside_the_errors_too() {
    let errors = load(sources("", &[("PINNACE_POOL", "10.0.0.1"), ("PINNACE_PROBE", "x")]))
        .expect_err("refused")
        .to_string();
    let lines: Vec<&str> = errors.lines().collect();
    assert!(lines[0].starts_with("error: PINNACE_PROBE=\"x\": "), "{errors}");
    assert_eq!(
        lines[1..],
        ["warning: PINNACE_POOL is not a setting and is ignored; did you mean PINNACE_POOLS?"]
    );
}

#[test]
fn variables_the_kubelet_makes_for_a_service_called_pinnace_are_no_slips() {
    let links = [
        ("PINNACE_SERVICE_HOST", "10.43.0.7"),
        ("PINNACE_SERVICE_PORT_HTTP", "80"),
        ("PINNACE_PORT", "tcp://10.43.0.7:80"),
        ("PINNACE_PORT_80_TCP_ADDR", "10.43.0.7"),
    ];
    assert_eq!(warnings("", &links), Vec::<String>::new());
    assert!(
        TABLE.iter().all(|setting| !is_service_link(setting.name)),
        "a setting would be hidden by such a variable"
    );
}

#[test]
fn text_that_is_not_utf8_is_refused_by_name() {
    use std::os::unix::ffi::OsStringExt;
    let mut sources = sources("", &[]);
    sources.environment = vec![
        ("PINNACE_MODE".into(), OsString::from_vec(vec![0xff])),
        (OsString::from_vec(vec![0xfe]), "x".into()),
    ];
    let errors = load(sources).expect_err("refused");
    assert_eq!(errors.to_string(), "error: PINNACE_MODE=\"\u{fffd}\": this is not UTF-8");
}

#[test]
fn an_impossible_host_name_asks_for_a_node_name() {
    let mut bad = sources("", &[]);
    bad.host_name = "(none)".to_string();
    let error = load(bad.clone()).expect_err("refused").to_string();
    assert!(
        error.contains("the host name \"(none)\"") && error.contains("set PINNACE_NODE_NAME"),
        "{error}"
    );
    bad.environment = vec![("PINNACE_NODE_NAME".into(), "a".into())];
    assert_eq!(&*load(bad).expect("named").0.node_name, "a");
}

#[test]
fn interface_patterns() {
    for (pattern, name, expected) in [
        ("eth0", "eth0", true),
        ("eth0", "eth01", false),
        ("eth*", "eth", true),
        ("eth*", "eth12", true),
        ("*", "wlan0", true),
        ("e?h0", "eth0", true),
        ("e?h0", "eh0", false),
        ("*.10", "bond0.10", true),
        ("*.10", "bond0.101", false),
        ("a*b*c", "aXbYbZc", true),
        ("a*b*c", "aXbYbZ", false),
    ] {
        let patterns = values::interfaces(pattern).expect("valid");
        assert_eq!(patterns[0].matches(name), expected, "{pattern} {name}");
    }
}

#[test]
fn help_and_readme_name_every_setting_with_its_default() {
    let (help, markdown) = (help_text(), markdown_table());
    for setting in TABLE {
        assert!(
            help.contains(&format!("{}  <{}>", setting.variable(), setting.format)),
            "{}",
            setting.name
        );
        assert!(markdown.contains(&format!("| `{}` | ", setting.variable())), "{}", setting.name);
    }
    assert!(help.contains("[default: 127.0.0.1:7466]"));
    assert!(help.lines().all(|line| line.chars().count() <= 120), "a terminal is not that wide");
    assert_eq!(markdown.lines().count(), TABLE.len() + 2);
}

proptest::proptest! {
    #[test]
    fn no_value_panics(index in 0..TABLE.len(), value in "[ -~\u{e4}\u{20ac}]{0,40}") {
        let _ = load(sources("", &[(&TABLE[index].variable(), &value)]));
    }

    #[test]
    fn no_file_panics(text in "([a-z_-]{1,12}: ?[ -~]{0,20}\n|[ -~\u{20ac}\n\t]{0,30}){0,5}") {
        let _ = load(sources(&text, &[]));
    }
}

#[test]
fn a_secret_that_cannot_be_read_is_named_with_everything_else() {
    let errors = load(sources(
        "",
        &[("PINNACE_SECRET_FILE", "/nowhere/secret"), ("PINNACE_BFD_INTERVAL", "1ms")],
    ))
    .unwrap_err();
    let said = errors.to_string();
    assert!(
        said.contains("PINNACE_SECRET_FILE=\"/nowhere/secret\"") && said.contains("No such file"),
        "{said}"
    );
    assert!(said.contains("PINNACE_BFD_INTERVAL=\"1ms\""), "{said}");
}
