//! The lifecycle of the process as clients see it: start, replacement, stop, crash, and what it
//! leaves behind.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::lab::manifests::{node, nodes, service, web};
use crate::lab::{Capture, Failure, Heard, Lab, Running, ensure, eventually, patient};
use pinnace::model::Family;
use serde_json::Value;

/// How long anything may take that a test waits for.
const PATIENCE: Duration = Duration::from_secs(10);

/// A lab whose node serves `default/web` with two pods.
fn serving() -> Lab {
    let lab = Lab::new(2, 0);
    lab.apply("nodes.yaml", &nodes());
    lab.apply("web.yaml", &web("web").with_pods(&lab.pods));
    lab
}

fn tables(lab: &Lab) -> String {
    lab.node.ns.output("nft", &["list", "tables"])
}

#[test]
fn kill_9_leaves_packets_flowing_and_a_successor_drops_no_connection() {
    let lab = serving();
    let mut first = lab.pinnace().start_ready();
    first.wait_serving("default/web");
    let vips = Family::ALL.map(|family| first.address("default/web", family));
    let mut open = vips.map(|vip| lab.client.connect(vip, 80).expect("served"));
    let pods = [open[0].ask().unwrap().pod, open[1].ask().unwrap().pod];
    first.kill();
    for vip in vips {
        assert!(lab.client.tcp(vip, 80).is_ok(), "{vip} is served without the process");
    }
    let second = lab.pinnace().start_ready();
    second.wait_serving("default/web");
    assert_eq!(
        Family::ALL.map(|family| second.address("default/web", family)),
        vips,
        "the addresses stay"
    );
    for (connection, pod) in open.iter_mut().zip(pods) {
        assert_eq!(connection.ask().map(|reply| reply.pod), Ok(pod), "the connection survived");
    }
    assert!(vips.iter().all(|vip| lab.client.tcp(*vip, 80).is_ok()));
}

#[test]
fn sigterm_withdraws_everything_unless_told_to_keep_the_rules() {
    let lab = serving();
    let mut running = lab.pinnace().start_ready();
    running.wait_serving("default/web");
    let vip = running.address("default/web", Family::V4);
    assert!(running.terminate().success());
    assert_eq!(tables(&lab), "", "no table is left");
    assert_eq!(lab.client.neighbour(vip), None, "nobody answers for the address");

    let mut running = lab.pinnace().set("PINNACE_ON_EXIT", "keep").start_ready();
    running.wait_serving("default/web");
    assert!(running.terminate().success());
    assert!(tables(&lab).contains("table ip pinnace"));
    assert_eq!(lab.client.neighbour(vip), None, "announcing ends all the same");
    assert!(lab.pinnace().run(&["cleanup"]).status.success());
    assert_eq!(tables(&lab), "");
    assert!(
        lab.pinnace().run(&["cleanup", "--state"]).status.success(),
        "nothing to do is no error"
    );
    assert!(!lab.directory().join("state").exists());
}

#[test]
fn cleanup_refuses_while_a_process_would_undo_it() {
    let lab = serving();
    let _running = lab.pinnace().start_ready();
    let output = lab.pinnace().run(&["cleanup"]);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("stop it first"), "{output:?}");
    let mut second = lab.pinnace().set("PINNACE_LISTEN", "off").start();
    assert!(!second.wait_end().success(), "a second process on the same state directory ends");
    second.wait_log("PINNACE_STATE_DIR");
}

#[test]
fn the_dead_mans_switch_turns_the_rules_off() {
    let lab = serving();
    let mut running = lab.pinnace().set("PINNACE_DEAD_MAN_TIMEOUT", "10s").start_ready();
    running.wait_serving("default/web");
    let vip = running.address("default/web", Family::V4);
    // Longer than the timeout: it is refreshed while the process lives.
    std::thread::sleep(Duration::from_secs(12));
    assert!(lab.client.tcp(vip, 80).is_ok(), "refreshed");
    running.kill();
    assert!(lab.client.tcp(vip, 80).is_ok(), "not yet");
    eventually("the rules are inert", Duration::from_secs(15), || {
        let answer = lab.client.tcp(vip, 80);
        ensure(answer.is_err(), || format!("{answer:?}"))
    });
}

#[test]
fn flushed_rules_are_restored() {
    let lab = serving();
    let running = lab.pinnace().start_ready();
    running.wait_serving("default/web");
    let vip = running.address("default/web", Family::V6);
    lab.node.ns.output("nft", &["flush", "ruleset"]);
    assert!(lab.client.tcp(vip, 80).is_err(), "they are gone");
    eventually("the rules are back", PATIENCE, || {
        lab.client.tcp(vip, 80).map(drop).map_err(|failure| failure.to_string())
    });
    // It is counted when conntrack has been looked through as well.
    eventually("the repair is counted", PATIENCE, || {
        let (_, metrics) = running.pinnace().http("/metrics")?;
        ensure(metrics.contains("pinnace_ruleset_repairs_total 1"), || metrics)
    });
}

/// As `systemctl restart nftables` does it where a firewall tracks connections: the host's own
/// rules are back at once, ours a moment later. A flow that began in between has been tracked,
/// untranslated, and lives for as long as the client goes on.
#[test]
fn flows_that_began_while_the_rules_were_flushed_are_served_once_they_are_back() {
    let lab = Lab::new(1, 0);
    let dns = service("dns").port("udp", "UDP", 53).port("tcp", "TCP", 53);
    lab.apply("dns.yaml", &dns.with_pods(&lab.pods));
    let running = lab.pinnace().start_ready();
    running.wait_serving("default/dns");
    let vips = Family::ALL.map(|family| running.address("default/dns", family));
    for vip in vips {
        assert!(
            lab.client.udp(vip, 53).is_ok() && lab.client.tcp(vip, 53).is_ok(),
            "{vip} is served"
        );
        // Somebody takes the packets, so that no host on the way says that they do not arrive.
        lab.node
            .ns
            .ip(&[format!("neigh replace {vip} dev eth0 lladdr 02:00:00:00:00:99 nud permanent")]);
    }
    let firewall = "flush ruleset; add table inet host; add chain inet host input { type filter hook prerouting priority 0; }; \
                    add rule inet host input ct state invalid drop";
    // Pinnace looks every two seconds: seldom, but possibly, in the moment between.
    let mut port = 5000;
    let connections = eventually("clients begin while the rules are gone", PATIENCE, || {
        port += 1;
        lab.node.ns.output("nft", &[firewall]);
        let connections = vips.map(|vip| {
            lab.client.send_from(port, vip, 53);
            lab.client.connecting(vip, 53)
        });
        let tables = tables(&lab);
        ensure(!tables.contains("pinnace"), || tables).map(|()| connections)
    });
    for (vip, connection) in vips.into_iter().zip(connections) {
        eventually("the datagrams of the same client are answered", PATIENCE, || {
            lab.client.udp_from(port, vip, 53).map_err(|failure| format!("{vip}: {failure}"))
        });
        let connected = connection.join().expect("no panic");
        assert_eq!(connected, Ok(()), "{vip}: a connection that the client still tries to open");
    }
}

#[test]
fn all_invalid_settings_are_reported_at_once_and_nothing_is_touched() {
    let lab = serving();
    let pinnace = lab
        .pinnace()
        .set("PINNACE_POOLS", "10.0.0.9-10.0.0.1")
        .set("PINNACE_PROBE", "soon")
        .set("PINNACE_LISTEN", "nowhere");
    let output = pinnace.run(&["run"]);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{complaint}");
    for word in ["PINNACE_POOLS", "10.0.0.9", "PINNACE_PROBE", "soon", "PINNACE_LISTEN", "nowhere"]
    {
        assert!(complaint.contains(word), "{word} is not named:\n{complaint}");
    }
    assert_eq!(tables(&lab), "");
    assert!(!lab.directory().join("state").exists(), "not even the state directory was made");
    let running = lab.pinnace().set("PINNACE_POOL", "x").start_ready();
    running.wait_log("did you mean PINNACE_POOLS");
}

#[test]
fn without_any_source_the_process_ends_at_once_and_names_the_setting() {
    let lab = Lab::new(0, 0);
    let output = lab.pinnace().unset("PINNACE_MANIFESTS").run(&["run"]);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{complaint}");
    assert!(complaint.contains("PINNACE_MANIFESTS"), "{complaint}");
    assert_eq!(tables(&lab), "", "nothing was touched");
    assert!(!lab.directory().join("state").exists(), "not even the state directory was made");
}

#[test]
fn systemd_gets_ready_and_watchdog_notifications() {
    let lab = serving();
    let path = lab.directory().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let pinnace = lab.pinnace().set("NOTIFY_SOCKET", path.display()).set("WATCHDOG_USEC", 900_000);
    // From the first moment somebody reads, as systemd does: the kernel keeps ten datagrams for a
    // reader who does not, and then the sender waits.
    let mut running = pinnace.start();
    let mut heard = String::new();
    let listen = |until: &str, heard: &mut String| {
        let deadline = Instant::now() + patient(PATIENCE);
        while !heard.contains(until) && Instant::now() < deadline {
            let mut buffer = [0; 1024];
            if let Ok(length) = socket.recv(&mut buffer) {
                heard.push_str(&String::from_utf8_lossy(&buffer[..length]));
                heard.push('\n');
            }
        }
        assert!(heard.contains(until), "{until} was not heard in:\n{heard}");
    };
    listen("READY=1", &mut heard);
    listen("STATUS=serving 1 service", &mut heard);
    listen("WATCHDOG=1", &mut heard);
    assert!(running.terminate().success());
    listen("STOPPING=1", &mut heard);
}

#[test]
fn links_that_go_and_come_take_the_announcements_with_them() {
    let lab = serving();
    let running = lab.pinnace().start_ready();
    running.wait_serving("default/web");
    let vip = running.address("default/web", Family::V4);
    assert_eq!(lab.client.neighbour(vip), Some(lab.node.mac()));
    lab.node.ns.ip(&["link set eth0 down".to_owned()]);
    running.wait_reason("default/web", "LinkDown");
    // Addresses of IPv6 go with the link; a node gets them back from its configuration.
    lab.node.ns.ip(&[
        "link set eth0 up".to_owned(),
        format!("address replace {}/64 dev eth0 nodad", lab.node.v6),
    ]);
    eventually("the address is answered for again", PATIENCE, || {
        let mac = lab.client.neighbour(vip);
        ensure(mac == Some(lab.node.mac()), || format!("{mac:?}"))
    });
    assert!(lab.client.tcp(vip, 80).is_ok());
}

#[test]
fn health_endpoints_say_what_a_client_may_expect() {
    let lab = serving();
    let running = lab.pinnace().start_ready();
    running.wait_serving("default/web");
    let get = |path: &str| running.pinnace().http(path).unwrap();
    assert_eq!(get("/livez").0, 200);
    assert_eq!(get("/healthz").0, 200);
    assert!(get("/readyz").1.contains("[+]RulesApplied ok"));
    assert!(get("/services/default/web").1.contains("\"localEndpoints\":2"));
    assert_eq!(get("/services/default/other").0, 404);
    lab.apply("web.yaml", &web("web").with_pods([]));
    eventually("no endpoint is left", PATIENCE, || {
        let (code, body) = running.pinnace().http("/services/default/web")?;
        ensure(code == 503, || body)
    });
    let vip = running.address("default/web", Family::V4);
    eventually("connections are refused", PATIENCE, || {
        let answer = lab.client.tcp(vip, 80);
        ensure(answer == Err(Failure::Refused), || format!("{answer:?}"))
    });
}

#[test]
fn printed_and_planned_rules_equal_those_of_the_kernel() {
    let lab = serving();
    let running = lab.pinnace().start_ready();
    running.wait_serving("default/web");
    let print =
        |arguments: &[&str]| String::from_utf8(running.pinnace().run(arguments).stdout).unwrap();
    let live = print(&["ruleset"]);
    assert!(live.contains("jhash ip saddr . th sport mod 2 seed 0x5eed"), "{live}");
    assert_eq!(print(&["ruleset", "--planned"]), live);
    let json = |text: &str| {
        serde_json::from_str::<serde_json::Value>(text).expect("JSON")["nftables"]
            .as_array()
            .map(Vec::len)
    };
    assert_eq!(
        json(&print(&["ruleset", "-o", "json"])).unwrap() + 1,
        json(&lab.node.ns.output("nft", &["-j", "list", "ruleset"])).unwrap()
    );
}

#[test]
fn a_removed_endpoint_breaks_no_connection_to_others() {
    let lab = serving();
    let running = lab.pinnace().start_ready();
    running.wait_serving("default/web");
    let services = || lab.node.ns.output("nft", &["list", "map", "ip", "pinnace", "services"]);
    assert!(services().contains("80 : goto spread-2"), "{}", services());
    lab.apply("web.yaml", &web("web").with_pods(&lab.pods[..1]));
    let vip = running.address("default/web", Family::V4);
    eventually("only the pod that is left answers", PATIENCE, || {
        let replies = lab.client.tcp_times(20, vip, 80).expect("every connection is answered");
        let pods: BTreeSet<String> = replies.into_iter().map(|reply| reply.pod).collect();
        ensure(pods == BTreeSet::from(["pod-1".to_string()]), || format!("{pods:?}"))
    });
    assert!(services().contains("80 : goto spread-1"), "{}", services());
}

/// Of the start, of work, of trouble and of the end; with words in it that somebody outside has
/// chosen.
#[test]
fn every_json_log_line_is_one_object() {
    let lab = serving();
    let settings = lab
        .pinnace()
        .set("PINNACE_LOG_FORMAT", "json")
        .set("PINNACE_LOG", "debug")
        .set("PINNACE_POOL", "x");
    let mut running = settings.clone().start_ready();
    running.wait_serving("default/web");
    assert!(
        !settings.set("PINNACE_LISTEN", "off").start().wait_end().success(),
        "a second process on the same state directory"
    );
    lab.apply("broken.yaml", "kind: Service\n metadata: [\n");
    running.wait_log("broken.yaml");
    let hostile =
        web("hostile").annotation("pinnace.dev/addresses", r#"10.88.0.300\" \n{\"level\":\e[2J"#);
    lab.apply("hostile.yaml", &hostile.with_pods(&lab.pods));
    running.wait_log("10.88.0.300");
    lab.node.ns.output("nft", &["flush", "ruleset"]);
    running.wait_log("ruleset drift detected");
    assert!(running.terminate().success());

    let log = running.log();
    let mut messages = Vec::new();
    for line in log.lines() {
        let object: Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        let text =
            |field: &str| object[field].as_str().unwrap_or_else(|| panic!("no {field}: {line}"));
        assert!(["ERROR", "WARN", "INFO", "DEBUG"].contains(&text("level")), "{line}");
        let time = text("timestamp");
        assert!(
            time.len() >= 20
                && time[..5].ends_with('-')
                && time[..11].ends_with('T')
                && time.ends_with('Z'),
            "{line}"
        );
        assert!(!text("message").is_empty(), "{line}");
        messages.push((text("level").to_owned(), line));
    }
    assert!(log.ends_with('\n'), "the last line is whole");
    for (level, about) in [
        ("WARN", "PINNACE_POOLS"),
        ("WARN", "broken.yaml"),
        ("WARN", "10.88.0.300"),
        ("INFO", "default/web"),
        ("ERROR", "PINNACE_STATE_DIR"),
    ] {
        let said = messages.iter().any(|(found, line)| found == level && line.contains(about));
        assert!(said, "nothing is said about {about} as {level}:\n{log}");
    }
}

/// So that a switch does not forget where they are: every second where that is asked, and not for a
/// minute where it is not.
#[test]
fn addresses_are_announced_at_the_configured_interval() {
    const WINDOW: Duration = Duration::from_secs(6);
    let lab = serving();
    // Where another node is missed they are announced more often.
    lab.apply("nodes.yaml", &node(1));
    let heard = |running: &Running| {
        running.wait_serving("default/web");
        let vips = Family::ALL.map(|family| running.address("default/web", family));
        // A new owner announces several times within the first five seconds.
        std::thread::sleep(patient(Duration::from_millis(5500)));
        let capture = Capture::start(&lab.client.ns, "eth0");
        std::thread::sleep(WINDOW);
        let frames = capture.about(&vips);
        vips.map(|vip| {
            frames
                .iter()
                .filter(|(address, heard)| *address == vip && *heard == Heard::Announcement)
                .count()
        })
    };
    let mut running = lab.pinnace().start_ready();
    assert_eq!(heard(&running), [0, 0], "every minute, and not in the first");
    assert!(running.terminate().success());
    let running = lab.pinnace().set("PINNACE_ANNOUNCE_INTERVAL", "1s").start_ready();
    let [v4, v6] = heard(&running);
    // Over IPv4 in both forms, as a request and as an answer; the window may begin between the two.
    // A tenth more or less each time.
    assert!((10..=14).contains(&v4), "{v4} frames over IPv4 within {WINDOW:?}");
    assert!((5..=7).contains(&v6), "{v6} frames over IPv6 within {WINDOW:?}");
}

/// What the kernel of a node and its files say: rules, addresses, routes, sysctls, the state
/// directory and the manifests.
fn everything(lab: &Lab) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for (program, arguments) in [
        // Without counters and what is left of timeouts.
        ("nft", &["-s", "list", "ruleset"][..]),
        ("ip", &["-j", "addr"]),
        ("ip", &["-j", "link"]),
        ("ip", &["-j", "rule"]),
        ("ip", &["-j", "route", "show", "table", "all"]),
        ("ip", &["-6", "-j", "route", "show", "table", "all"]),
    ] {
        all.insert(
            format!("{program} {}", arguments.join(" ")),
            lab.node.ns.output(program, arguments),
        );
    }
    let mut files = files(lab.directory());
    files.retain(|path, _| !path.ends_with("log"));
    files.extend(lab.node.ns.enter(|| self::files(Path::new("/proc/sys/net"))));
    // The kernel counts connections there.
    files.retain(|path, _| !path.ends_with("nf_conntrack_count"));
    all.extend(files.into_iter().map(|(path, text)| (path.display().to_string(), text)));
    all
}

/// Every file below a directory that can be read, with its contents.
fn files(directory: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files(&path)),
            Ok(kind) if kind.is_file() => {
                if let Ok(bytes) = fs::read(&path) {
                    found.insert(path, String::from_utf8_lossy(&bytes).into_owned());
                }
            }
            _ => {}
        }
    }
    found
}

#[test]
fn commands_beside_a_running_node_agree_and_change_nothing() {
    let lab = serving();
    let running = lab.pinnace().start_ready();
    running.wait_serving("default/web");
    let print = |arguments: &[&str]| {
        String::from_utf8(running.pinnace().run(arguments).stdout).expect("text")
    };
    // The seconds that it runs may change in between.
    let state = eventually("both formats say the same", PATIENCE, || {
        let json: Value = serde_json::from_str(&print(&["status", "-o", "json"])).expect("JSON");
        let yaml: Value = serde_saphyr::from_str(&print(&["status", "-o", "yaml"])).expect("YAML");
        ensure(json == yaml, || format!("{json}\n{yaml}")).map(|()| json)
    });
    assert_eq!(state["services"][0]["key"], "default/web");
    let human = print(&["status"]);
    for family in Family::ALL {
        assert!(human.contains(&running.address("default/web", family).to_string()), "{human}");
    }
    assert_eq!(
        print(&["version"]),
        format!("pinnace {}\n", state["version"].as_str().expect("a version"))
    );

    let before = everything(&lab);
    assert!(
        before.keys().any(|key| key.ends_with("ipv4/ip_forward"))
            && before.keys().any(|key| key.ends_with("state.json"))
    );
    let report: Value = serde_json::from_str(&print(&["check", "-o", "json"])).expect("JSON");
    assert!(report["findings"].as_array().is_some_and(|findings| !findings.is_empty()), "{report}");
    assert!(!print(&["check"]).is_empty());
    let after = everything(&lab);
    for key in before.keys().chain(after.keys()) {
        assert_eq!(before.get(key), after.get(key), "{key}");
    }
    running.wait_serving("default/web");
    for family in Family::ALL {
        assert!(lab.client.tcp(running.address("default/web", family), 80).is_ok());
    }
}
