//! The API server as source, on the real one: what is served follows it, and goes on whatever
//! becomes of it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};
use std::{fs, thread};

use crate::lab::control_plane::{Component, ControlPlane, Options};
use crate::lab::manifests::web;
use crate::lab::{Lab, Pinnace, Running, ensure, eventually};
use k8s_openapi::jiff::Timestamp;
use pinnace::model::Family;
use serde_json::json;

/// How long anything may take that a test waits for.
const PATIENCE: Duration = Duration::from_secs(40);

/// A lab with two pods, a control plane, and `default/web` with the first of them behind it.
fn cluster() -> (Lab, ControlPlane) {
    let lab = Lab::new(2, 0);
    // The tests write slices themselves: what is tested is the way from the API server to packets.
    let api = ControlPlane::start(Options::on(&lab.client2).without_controllers());
    api.apply(&web("web").with_pods(&lab.pods[..1]));
    record(&api, "web", 200);
    (lab, api)
}

/// Gives a Service its addresses, as the node that holds the Lease would: what is recorded in the
/// status is served by every node.
fn record(api: &ControlPlane, service: &str, last: u8) {
    let ingress = json!([{"ip": format!("10.88.0.{last}"), "ipMode": "VIP"}, {"ip": format!("fd88::{last}"), "ipMode": "VIP"}]);
    api.patch_status("service", service, &json!({"loadBalancer": {"ingress": ingress}}));
}

/// Pinnace with the rights it asks for.
fn pinnace(lab: &Lab, api: &ControlPlane) -> Pinnace {
    pinnace_with(lab, &api.kubeconfig("pinnace"))
}

/// Pinnace with these credentials.
fn pinnace_with(lab: &Lab, kubeconfig: &Path) -> Pinnace {
    lab.pinnace().unset("PINNACE_MANIFESTS").set("PINNACE_KUBECONFIG", kubeconfig.display())
}

/// Replaces a file as a tool for rotation does: never half written.
fn replace(file: &Path, text: &str) {
    let beside = file.with_extension("new");
    fs::write(&beside, text).expect("a file");
    fs::rename(&beside, file).expect("renamed");
}

/// A copy of somebody's credentials with another token.
fn with_token(api: &ControlPlane, identity: &str, token: &str) -> String {
    let text = fs::read_to_string(api.kubeconfig(identity)).expect("a kubeconfig");
    let old = text.split_once("token: \"").expect("a token").1.split('"').next().expect("a quote");
    text.replace(old, token)
}

/// A file in the lab for credentials that change.
fn changing(lab: &Lab, text: &str) -> PathBuf {
    let file = lab.directory().join("changing.kubeconfig");
    replace(&file, text);
    file
}

/// Waits until a client is served by this pod.
fn served_by(lab: &Lab, running: &Running, pod: usize) {
    let vip = running.address("default/web", Family::V4);
    eventually(&format!("pod {pod} answers"), PATIENCE, || {
        let reply = lab.client.tcp(vip, 80).map_err(|failure| failure.to_string())?;
        ensure(reply.pod == lab.pods[pod].name, || format!("{} answers", reply.pod))
    });
}

/// Pinnace answers for its addresses: a client resolves them to the node.
fn announced(lab: &Lab, running: &Running) {
    for vip in Family::ALL.map(|family| running.address("default/web", family)) {
        assert_eq!(lab.client.neighbour(vip), Some(lab.node.mac()), "{vip} is answered for");
    }
}

#[test]
fn a_service_made_with_kubectl_is_served_and_followed() {
    let (lab, api) = cluster();
    let running = pinnace(&lab, &api).start_ready();
    running.wait_serving("default/web");
    served_by(&lab, &running, 0);
    api.apply(&web("web").with_pods(&lab.pods[1..]));
    served_by(&lab, &running, 1);

    // As the controllers date what they write.
    let slices = api.get_json(&["endpointslices", "-l", "kubernetes.io/service-name=web"]);
    let name = slices["items"][0]["metadata"]["name"].as_str().expect("a name");
    let then = Timestamp::try_from(SystemTime::now() - Duration::from_secs(5))
        .expect("a time")
        .to_string();
    let dated = json!({"metadata": {"annotations": {"endpoints.kubernetes.io/last-change-trigger-time": then}}, "endpoints": []});
    api.kubectl(&["patch", "endpointslice", name, "--type=merge", "-p", &dated.to_string()]);
    eventually("the whole way from the change is measured", PATIENCE, || {
        let (_, text) = running.pinnace().http("/metrics")?;
        let number = |what| {
            text.lines().find_map(|line| {
                line.strip_prefix("pinnace_network_programming_duration_seconds_")?
                    .strip_prefix(what)
            })
        };
        let seconds: f64 = number("sum ").and_then(|sum| sum.parse().ok()).unwrap_or_default();
        ensure(number("count ") == Some("1") && (5.0..60.0).contains(&seconds), || {
            format!("{:?} in {seconds} s", number("count "))
        })
    });

    api.apply(&web("later").with_pods(&lab.pods));
    record(&api, "later", 201);
    running.wait_serving("default/later");
    let vip = running.address("default/later", Family::V6);
    assert!(lab.client.tcp(vip, 80).is_ok());
    api.kubectl(&["patch", "service", "later", "-p", r#"{"spec":{"type":"ClusterIP"}}"#]);
    eventually("a Service of another type is forgotten", PATIENCE, || {
        let status = running.pinnace().status()?;
        ensure(status.service("default/later").is_null(), || format!("{}", status.0))
    });
    api.kubectl(&["delete", "service", "web"]);
    eventually("a deleted Service is forgotten", PATIENCE, || {
        let status = running.pinnace().status()?;
        ensure(status.service("default/web").is_null(), || format!("{}", status.0))
    });
}

#[test]
fn packets_flow_while_the_api_server_is_stopped_or_frozen() {
    let (lab, mut api) = cluster();
    let running = pinnace(&lab, &api).start_ready();
    running.wait_serving("default/web");
    served_by(&lab, &running, 0);

    api.stop(Component::ApiServer);
    running.complains("does not answer");
    announced(&lab, &running);
    served_by(&lab, &running, 0);
    api.resume(Component::ApiServer);
    api.apply(&web("web").with_pods(&lab.pods[1..]));
    served_by(&lab, &running, 1);
    running.recovers();

    api.freeze(Component::ApiServer);
    let since = Instant::now();
    running.complains("does not answer");
    assert!(since.elapsed() < Duration::from_secs(30), "noticed after {:?}", since.elapsed());
    announced(&lab, &running);
    served_by(&lab, &running, 1);
    api.thaw(Component::ApiServer);
    api.apply(&web("web").with_pods(&lab.pods[..1]));
    served_by(&lab, &running, 0);
    running.recovers();
}

#[test]
fn a_node_that_starts_during_an_outage_serves_within_a_second() {
    let (lab, mut api) = cluster();
    let mut first = pinnace(&lab, &api).start_ready();
    first.wait_serving("default/web");
    let vip = first.address("default/web", Family::V4);
    assert!(first.terminate().success());
    assert!(lab.client.tcp(vip, 80).is_err(), "nobody serves");

    api.stop(Component::ApiServer);
    let since = Instant::now();
    let second = pinnace(&lab, &api).start();
    // Not by asking the client: an attempt that comes too early costs it a second, as long as TCP
    // waits before it tries again.
    while !second
        .pinnace()
        .http("/state")
        .is_ok_and(|(_, state)| state.contains("\"phase\":\"Serving\""))
    {
        assert!(since.elapsed() < PATIENCE, "not served from the snapshot");
    }
    let took = since.elapsed();
    assert!(took < Duration::from_secs(1), "served after {took:?}");
    assert!(lab.client.tcp(vip, 80).is_ok());
    second.complains("serving from the snapshot of 20");
    let status = String::from_utf8(second.pinnace().run(&["status"]).stdout).unwrap();
    assert!(status.contains("serving from the snapshot of"), "{status}");
    second.wait_log("ready, serving");

    // What changed meanwhile replaces it, and what is gone goes.
    api.resume(Component::ApiServer);
    api.apply(&web("web").with_pods(&lab.pods[1..]));
    served_by(&lab, &second, 1);
    second.recovers();
}

#[test]
fn a_damaged_snapshot_is_set_aside() {
    let (lab, mut api) = cluster();
    let mut first = pinnace(&lab, &api).start_ready();
    first.wait_serving("default/web");
    assert!(first.terminate().success());
    api.stop(Component::ApiServer);
    let file = lab.directory().join("state/snapshot.jsonl");
    let mut bytes = fs::read(&file).expect("a snapshot was written at the end");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, bytes).unwrap();
    let second = pinnace(&lab, &api).start();
    second.wait_log("starting without it");
    second.complains("does not answer");
    assert!(!file.exists());
    api.resume(Component::ApiServer);
    second.wait_serving("default/web");
    served_by(&lab, &second, 0);
}

#[test]
fn failing_api_servers_are_reported_and_recovery_is_automatic() {
    let (lab, api) = cluster();
    let running = pinnace_with(&lab, &api.kubeconfig_with_faults("pinnace")).start_ready();
    running.wait_serving("default/web");
    for (fault, said) in [
        ("status 500", "HTTP 500: a fault made by the test"),
        ("status 429", "overloaded (429)"),
        ("status 403", "grant get, list and watch"),
        ("freeze", "does not answer"),
        ("expired", "its certificate has expired"),
        ("refuse", "does not answer"),
    ] {
        api.faults(fault);
        // Frozen connections stay and are noticed all the same; watches that go on know nothing of
        // a fault before they end.
        if fault != "freeze" {
            api.faults("cut");
        }
        running.complains(said);
        announced(&lab, &running);
        served_by(&lab, &running, 0);
    }
    api.faults("pass");
    running.recovers();
    api.apply(&web("web").with_pods(&lab.pods[1..]));
    served_by(&lab, &running, 1);
}

#[test]
fn a_lost_connection_is_restored_and_no_event_is_missed() {
    let (lab, api) = cluster();
    let running = pinnace_with(&lab, &api.kubeconfig_with_faults("pinnace")).start_ready();
    running.wait_serving("default/web");
    for pod in [1, 0, 1] {
        api.faults("cut");
        api.apply(&web("web").with_pods(&lab.pods[pod..=pod]));
        served_by(&lab, &running, pod);
    }
    running.recovers();
}

/// The connection lives, the other watches bring what they should: a gateway, or the server, has
/// lost this one.
#[test]
fn a_stalled_watch_is_resumed() {
    let (lab, api) = cluster();
    let running = pinnace_with(&lab, &api.kubeconfig_with_faults("pinnace")).start_ready();
    running.wait_serving("default/web");
    served_by(&lab, &running, 0);
    api.faults("hush endpointslices");
    api.apply(&web("web").with_pods(&lab.pods[1..]));
    api.apply(&web("later").yaml());
    record(&api, "later", 201);
    eventually("a Service is heard of", PATIENCE, || {
        let status = running.pinnace().status()?;
        ensure(!status.service("default/later").is_null(), || format!("{}", status.0))
    });
    let reply = lab.client.tcp(running.address("default/web", Family::V4), 80).expect("an answer");
    assert_eq!(reply.pod, lab.pods[0].name, "the new endpoint has not been heard of");
    // 90 s after the last thing it said.
    thread::sleep(Duration::from_secs(80));
    served_by(&lab, &running, 1);
    running.recovers();
}

#[test]
fn a_slow_api_server_is_tolerated() {
    let (lab, api) = cluster();
    api.faults("delay 1");
    let running = pinnace_with(&lab, &api.kubeconfig_with_faults("pinnace")).start();
    eventually("default/web is served", PATIENCE, || {
        let status = running.pinnace().status()?;
        ensure(status.phase("default/web") == "Serving", || format!("{}", status.0))
    });
    announced(&lab, &running);
    api.apply(&web("web").with_pods(&lab.pods[1..]));
    served_by(&lab, &running, 1);
    running.recovers();
}

#[test]
fn the_next_api_server_is_used_when_one_does_not_answer() {
    let (lab, mut api) = cluster();
    let servers = format!("https://{}:1,{}", lab.client2.address(Family::V4), api.url());
    let running = pinnace(&lab, &api).set("PINNACE_API_SERVERS", servers).start_ready();
    running.wait_serving("default/web");
    running.wait_log("trying the next one");
    running.recovers();
    drop(running);
    one_that_dies_while_it_is_watched_is_replaced(&lab, &mut api);
}

/// Killed; frozen, which no connection tells; and answering pings but no question, which those see
/// who have asked. What changes afterwards is heard from the other one.
fn one_that_dies_while_it_is_watched_is_replaced(lab: &Lab, api: &mut ControlPlane) {
    let kubeconfig = api.kubeconfig_with_faults("pinnace");
    let text = fs::read_to_string(&kubeconfig).expect("a kubeconfig");
    let mortal = text
        .split_once("server: \"")
        .expect("it names the server")
        .1
        .split('"')
        .next()
        .expect("a quote");
    for (death, pod) in [("killed", 1), ("stopped", 0), ("mute", 1)] {
        fs::remove_file(lab.directory().join("log")).expect("the log of the one before");
        let running = pinnace_with(lab, &kubeconfig)
            .set("PINNACE_API_SERVERS", format!("{mortal},{}", api.url()))
            .start_ready();
        running.wait_serving("default/web");
        served_by(lab, &running, 1 - pod);
        running.recovers();
        assert!(
            !running.log().contains("trying the next one"),
            "the first one is watched: {}",
            running.log()
        );
        match death {
            "killed" => api.stop(Component::Faults),
            "stopped" => api.freeze(Component::Faults),
            _ => api.faults("freeze"),
        }
        api.apply(&web("web").with_pods(&lab.pods[pod..=pod]));
        served_by(lab, &running, pod);
        running.wait_log("trying the next one");
        running.recovers();
        announced(lab, &running);
        match death {
            "killed" => api.resume(Component::Faults),
            "stopped" => api.thaw(Component::Faults),
            _ => api.faults("pass"),
        }
    }
}

/// What is below one directory is replaced by one file, as seen by this thread and what it starts
/// from now on.
fn with_file(path: &str, text: &str) {
    let below = |top: &str| Path::new(path).starts_with(top);
    let top =
        ["/etc", "/var/lib"].into_iter().find(|top| below(top)).expect("a directory of the host");
    for arguments in [&["--make-rprivate", "/"][..], &["-t", "tmpfs", "none", top][..]] {
        assert!(
            Command::new("mount").args(arguments).status().expect("mount").success(),
            "mount {arguments:?}"
        );
    }
    fs::create_dir_all(Path::new(path).parent().expect("a directory")).expect("a directory");
    fs::write(path, text).expect("a file");
}

#[test]
fn credentials_of_a_k3s_host_are_found_and_logged() {
    const SERVER: &str = "/etc/rancher/k3s/k3s.yaml";
    const AGENT: &str = "/var/lib/rancher/k3s/agent/kubeproxy.kubeconfig";
    let (lab, api) = cluster();
    api.node_of(&lab.node);
    // On a server both are there, and only one of them may give addresses; on an agent there is the
    // one that may read.
    let servers = (&[(SERVER, "admin"), (AGENT, "read-only")][..], SERVER, "later");
    let agents = (&[(AGENT, "read-only")][..], AGENT, "web");
    for (files, used, service) in [servers, agents] {
        let texts = files.iter().map(|(path, identity)| {
            (*path, fs::read_to_string(api.kubeconfig(identity)).expect("a kubeconfig"))
        });
        let texts: Vec<_> = texts.collect();
        let pinnace = lab.pinnace().unset("PINNACE_MANIFESTS");
        let inside = move || {
            // SAFETY: nothing that this thread does relies on sharing its directories with the
            // other threads.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }
                .expect("root may have mounts of its own");
            texts.iter().for_each(|(path, text)| with_file(path, text));
            pinnace.start_ready()
        };
        let mut running = thread::spawn(inside).join().expect("pinnace is started");
        running.wait_log(&format!(
            "serving from the Kubernetes API with {used}, found on this K3s host"
        ));
        if service == "later" {
            api.apply(&web(service).with_pods(&lab.pods));
        }
        running.wait_serving(&format!("default/{service}"));
        let vip = running.address(&format!("default/{service}"), Family::V4);
        assert!(lab.client.tcp(vip, 80).is_ok(), "{service} is served");
        assert!(running.terminate().success());
        fs::remove_file(lab.directory().join("log")).expect("the log");
    }
}

#[test]
fn missing_read_permissions_are_reported() {
    let (lab, api) = cluster();
    let file = changing(&lab, &with_token(&api, "nobody", "unknown"));
    let running = pinnace_with(&lab, &file).start();
    running.complains("(401)");
    replace(&file, &fs::read_to_string(api.kubeconfig("nobody")).expect("a kubeconfig"));
    running.complains("grant get, list and watch");
    api.kubectl(&[
        "create",
        "clusterrole",
        "reader",
        "--verb=get,list,watch",
        "--resource=services,nodes,endpointslices.discovery.k8s.io",
    ]);
    api.kubectl(&[
        "create",
        "clusterrolebinding",
        "reader",
        "--clusterrole=reader",
        "--user=nobody",
    ]);
    running.recovers();
    running.wait_serving("default/web");
}

#[test]
fn a_replaced_kubeconfig_is_used_and_a_broken_one_is_ignored() {
    let (lab, mut api) = cluster();
    let good = fs::read_to_string(api.kubeconfig("pinnace")).expect("a kubeconfig");
    let file = changing(&lab, &good);
    let running = pinnace_with(&lab, &file).start_ready();
    running.wait_serving("default/web");
    replace(&file, "clusters: [");
    running.wait_log("going on with the credentials from before");
    api.apply(&web("web").with_pods(&lab.pods[1..]));
    served_by(&lab, &running, 1);
    // The token in use becomes somebody else's, without rights; only the new file knows the new
    // one.
    let new = with_token(&api, "pinnace", "new-token");
    api.stop(Component::ApiServer);
    let tokens = api.directory().join("tokens.csv");
    let listed = fs::read_to_string(&tokens).expect("the tokens");
    let (old, rest) = listed
        .lines()
        .find(|line| line.contains(":pinnace:pinnace"))
        .expect("its token")
        .split_once(',')
        .expect("a comma");
    replace(
        &tokens,
        &format!("{}\nnew-token,{rest}\n", listed.replace(rest, "stranger,stranger").trim_end()),
    );
    assert!(good.contains(old), "the file in use has the token that was withdrawn");
    api.resume(Component::ApiServer);
    running.complains("403");
    replace(&file, &new);
    running.wait_log("the credentials were replaced");
    running.recovers();
}

#[test]
fn an_expired_watch_lists_again() {
    let (lab, mut api) = cluster();
    api.apply(&web("doomed").with_pods(&lab.pods));
    record(&api, "doomed", 201);
    let running = pinnace(&lab, &api).start_ready();
    running.wait_serving("default/web");
    running.wait_serving("default/doomed");
    running.signal(rustix::process::Signal::STOP);
    api.apply(&web("web").with_pods(&lab.pods[1..]));
    api.kubectl(&["delete", "service", "doomed"]);
    // A server that starts knows no history: versions from before are too old for it.
    api.stop(Component::ApiServer);
    api.resume(Component::ApiServer);
    running.signal(rustix::process::Signal::CONT);
    served_by(&lab, &running, 1);
    eventually("the deleted Service is gone", PATIENCE, || {
        let status = running.pinnace().status()?;
        ensure(status.service("default/doomed").is_null(), || format!("{}", status.0))
    });
    running.wait_log("watch expired (410 Gone), relisting");
    running.recovers();
}

#[test]
fn no_service_source_and_two_sources_are_configuration_errors() {
    let lab = Lab::new(1, 0);
    let output = lab.pinnace().unset("PINNACE_MANIFESTS").run(&["run"]);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{complaint}");
    for word in
        ["PINNACE_KUBECONFIG", "PINNACE_MANIFESTS", "service account", "/etc/rancher/k3s/k3s.yaml"]
    {
        assert!(complaint.contains(word), "{word} is not named:\n{complaint}");
    }
    let output = lab.pinnace().set("PINNACE_KUBECONFIG", "/k").run(&["run"]);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{complaint}");
    assert!(
        complaint.contains("PINNACE_MANIFESTS and PINNACE_KUBECONFIG are both set"),
        "{complaint}"
    );
}
