//! Credentials of a pod that are rotated under it, beside those of a host; a kubeconfig that a
//! power cut has broken; a server without streamed lists.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use pinnace::model::Family;
use serde_json::json;

use super::certificates::{Authority, a_certificate_that_ends_is_named_and_its_successor_used};
use super::{PATIENCE, TAKEOVER, USER, address};
use crate::lab::control_plane::{Component, ControlPlane, Options};
use crate::lab::manifests::web;
use crate::lab::{Lab, Pinnace, Running, ensure, eventually};

pub fn replace(file: &Path, text: &str) {
    let beside = file.with_extension("new");
    fs::write(&beside, text).expect("a file");
    fs::rename(&beside, file).expect("renamed");
}

pub fn field(kubeconfig: &Path, name: &str) -> String {
    let text = fs::read_to_string(kubeconfig).expect("a kubeconfig");
    text.split_once(&format!("{name}: \""))
        .expect("a field")
        .1
        .split('"')
        .next()
        .expect("a quote")
        .to_owned()
}

/// A directory as a kubelet mounts it into a pod: files are links into a directory that is replaced
/// at once.
struct Account {
    directory: PathBuf,
    version: u32,
}

impl Account {
    fn new(lab: &Lab, plane: &ControlPlane, token: &str) -> Account {
        let directory = lab.directory().join("account");
        fs::create_dir_all(&directory).expect("a directory");
        for name in ["token", "ca.crt", "namespace"] {
            symlink(Path::new("..data").join(name), directory.join(name)).expect("a link");
        }
        let mut account = Account { directory, version: 0 };
        account.write(plane, token);
        account
    }

    fn write(&mut self, plane: &ControlPlane, token: &str) {
        self.version += 1;
        let version = format!("..{}", self.version);
        let directory = self.directory.join(&version);
        fs::create_dir(&directory).expect("a directory");
        fs::write(directory.join("token"), token).expect("the token");
        fs::write(directory.join("namespace"), "pinnace").expect("the namespace");
        fs::copy(plane.directory().join("ca.crt"), directory.join("ca.crt"))
            .expect("the authority");
        symlink(version, self.directory.join("..new")).expect("a link");
        fs::rename(self.directory.join("..new"), self.directory.join("..data")).expect("renamed");
    }
}

/// A token of Pinnace's service account that is valid as long as the Secret `name` exists.
fn token(plane: &ControlPlane, name: &str) -> String {
    plane.kubectl(&["-n", "pinnace", "create", "secret", "generic", name]);
    let bound = ["--bound-object-kind=Secret", &format!("--bound-object-name={name}")];
    plane
        .kubectl(&[&["-n", "pinnace", "create", "token", "pinnace"], &bound[..]].concat())
        .trim()
        .to_owned()
}

/// Deletes the Secret of a token and waits until the API server refuses it.
fn revoke(lab: &Lab, plane: &ControlPlane, name: &str, token: &str) {
    plane.kubectl(&["-n", "pinnace", "delete", "secret", name]);
    let url = format!("{}/api/v1/services", plane.url());
    let authority = field(&plane.kubeconfig("admin"), "certificate-authority");
    eventually("the token is refused", PATIENCE, || {
        let mut curl = Command::new("curl");
        curl.args([
            "-s",
            "-m",
            "3",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "--cacert",
            &authority,
        ]);
        curl.args(["-H", &format!("Authorization: Bearer {token}"), &url]);
        let output = lab
            .client
            .ns
            .enter(|| curl.output())
            .expect("curl is installed (tests/run installs it)");
        let code = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure(code == "401", || code)
    });
}

fn served_by(lab: &Lab, running: &Running, pod: usize) {
    let vip = running.address("default/web", Family::V4);
    eventually(&format!("pod {pod} answers"), PATIENCE, || {
        let reply = lab.client.tcp(vip, 80).map_err(|failure| failure.to_string())?;
        ensure(reply.pod == lab.pods[pod].name, || format!("{} answers", reply.pod))
    });
}

fn in_pod(lab: &Lab, plane: &ControlPlane, account: &Account) -> Pinnace {
    let server = field(&plane.kubeconfig_with_faults("pinnace"), "server");
    let (host, port) = server.trim_start_matches("https://").rsplit_once(':').expect("a port");
    let pinnace = lab.pinnace().unset("PINNACE_MANIFESTS").with_account(&account.directory);
    pinnace.set("KUBERNETES_SERVICE_HOST", host).set("KUBERNETES_SERVICE_PORT", port)
}

#[test]
fn rotated_tokens_are_used_and_a_broken_kubeconfig_stops_no_node() {
    let lab = Lab::new(2, 1);
    let authority = Authority::new(&lab);
    let options = Options::on(&lab.client2).without_controllers();
    let mut plane =
        ControlPlane::start(options.argument(Component::ApiServer, &authority.argument()));
    plane.node_of(&lab.node);
    plane.apply(&web("web").with_pods(&lab.pods[..1]));
    let first = token(&plane, "first");
    let mut account = Account::new(&lab, &plane, &first);
    let running = in_pod(&lab, &plane, &account).start_ready();
    running.wait_log("with the pod's service account");
    address(&plane, "web", PATIENCE);
    running.wait_serving("default/web");
    served_by(&lab, &running, 0);

    // The kubelet replaces the token long before the old one ends.
    let second = token(&plane, "second");
    account.write(&plane, &second);
    running.wait_log("the credentials were replaced");
    revoke(&lab, &plane, "first", &first);
    plane.faults("cut");
    plane.apply(&web("web").with_pods(&lab.pods[1..]));
    served_by(&lab, &running, 1);
    running.recovers();
    assert!(!running.log().contains("(401)"), "the old token was used after it ended");

    // The token ends and nobody has replaced it: said, and served on; the next one is used by
    // itself.
    revoke(&lab, &plane, "second", &second);
    plane.faults("cut");
    running.complains("does not accept the credentials in the pod's service account (401)");
    served_by(&lab, &running, 1);
    account.write(&plane, &token(&plane, "third"));
    running.recovers();
    plane.apply(&web("later").with_pods(&lab.pods));
    address(&plane, "later", TAKEOVER);

    a_pod_and_a_host_share_one_lease(&lab, &plane, running);
    a_broken_kubeconfig_keeps_no_node_from_serving(&lab, &plane);
    a_certificate_that_ends_is_named_and_its_successor_used(&lab, &mut plane, &authority);
    a_server_without_streamed_lists_is_read_in_pages(&lab, &plane);
}

/// Two installations in one cluster, each with what it has by default: a DaemonSet, and a service
/// of the host with a kubeconfig.
fn a_pod_and_a_host_share_one_lease(lab: &Lab, plane: &ControlPlane, mut pod: Running) {
    let node2 = lab.node2.as_ref().expect("a lab with far pods has a second node");
    plane.node_of(node2);
    let host = lab
        .pinnace_on(node2)
        .unset("PINNACE_MANIFESTS")
        .set("PINNACE_KUBECONFIG", plane.kubeconfig("pinnace").display());
    let mut host = host.start_ready();
    let writer =
        |running: &Running| running.pinnace().status().map(|status| status.0["leader"].clone());
    eventually("both know the writer", PATIENCE, || {
        let both = (writer(&pod)?, writer(&host)?);
        ensure(
            both == (
                json!({"node": "node-1", "here": true}),
                json!({"node": "node-1", "here": false}),
            ),
            || format!("{both:?}"),
        )
    });
    let mark = plane.mark();
    plane.apply(&web("shared").with_pods(&lab.pods));
    address(plane, "shared", PATIENCE);
    host.wait_serving("default/shared");

    // A pod that ends gives the Lease back; nobody waits until it has expired.
    assert!(pod.terminate().success());
    host.wait_log("became leader");
    assert_eq!(writer(&host).expect("a status"), json!({"node": "node-2", "here": true}));
    plane.apply(&web("handed-on").with_pods(&lab.pods));
    address(plane, "handed-on", PATIENCE);
    for name in ["shared", "handed-on"] {
        let patches = plane.requests(mark).into_iter().filter(|r| {
            (&*r.user, &*r.verb, &*r.resource, &*r.name) == (USER, "patch", "services/status", name)
        });
        assert_eq!(patches.count(), 1, "one of the two wrote the status of {name}, once");
    }
    let leases = plane.get_json(&["leases", "-A", "--field-selector", "metadata.name=pinnace"]);
    let namespaces: Vec<_> = leases["items"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|lease| &lease["metadata"]["namespace"])
        .collect();
    assert_eq!(namespaces, ["kube-system"]);
    assert!(host.terminate().success());
    plane.kubectl(&["delete", "service", "shared", "handed-on"]);
    plane.kubectl(&["delete", "node", "node-2"]);
}

fn a_broken_kubeconfig_keeps_no_node_from_serving(lab: &Lab, plane: &ControlPlane) {
    let file = lab.directory().join("power-cut.kubeconfig");
    let pinnace = lab
        .pinnace()
        .unset("PINNACE_MANIFESTS")
        .set("PINNACE_KUBECONFIG", file.display())
        .set("PINNACE_NAMESPACE", "pinnace");
    let running = pinnace.clone().start();
    running.wait_serving("default/web");
    served_by(lab, &running, 1);
    running.complains("serving from the snapshot of 20");
    running.complains("power-cut.kubeconfig cannot be used");
    let status = String::from_utf8(running.pinnace().run(&["status"]).stdout).expect("text");
    assert!(status.contains("serving from the snapshot of"), "{status}");
    replace(&file, "clusters: [");
    running.wait_log("power-cut.kubeconfig cannot be used");
    served_by(lab, &running, 1);

    replace(&file, &fs::read_to_string(plane.kubeconfig("pinnace")).expect("a kubeconfig"));
    running.recovers();
    plane.apply(&web("web").with_pods(&lab.pods[..1]));
    served_by(lab, &running, 0);
    plane.apply(&web("healed").with_pods(&lab.pods));
    address(plane, "healed", TAKEOVER);
    drop(running);

    // Nothing to serve from instead: a mistake, to be told at once.
    replace(&file, "clusters: [");
    let empty = lab.directory().join("no-state");
    let output = pinnace.set("PINNACE_STATE_DIR", empty.display()).run(&["run"]);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{complaint}");
    assert!(
        complaint.contains("power-cut.kubeconfig cannot be used")
            && complaint.contains("no snapshot"),
        "{complaint}"
    );
    assert!(!empty.exists(), "not even the state directory was made");
}

/// The API server was started without them by the part before, which needed a new one anyway.
fn a_server_without_streamed_lists_is_read_in_pages(lab: &Lab, plane: &ControlPlane) {
    const SERVICES: usize = 510;
    let service = |number: usize| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("page-{number}")},
            "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]}})
    };
    let items: Vec<_> = (0..SERVICES).map(service).collect();
    plane.create(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string());
    let mark = plane.mark();
    let pinnace = lab
        .pinnace()
        .unset("PINNACE_MANIFESTS")
        .set("PINNACE_STATE_DIR", lab.directory().join("pages").display());
    let running =
        pinnace.set("PINNACE_KUBECONFIG", plane.kubeconfig("read-only").display()).start_ready();
    let known = |expected: usize| {
        eventually(&format!("{expected} Services are known"), PATIENCE, || {
            let status = running.pinnace().status()?;
            let services = status.0["services"].as_array().cloned().unwrap_or_default();
            let found = services
                .iter()
                .filter(|service| service["key"].as_str().is_some_and(|key| key.contains("/page-")))
                .count();
            ensure(found == expected, || format!("{found}"))
        });
    };
    known(SERVICES);
    served_by(lab, &running, 0);
    eventually("the Services were read in two pages", PATIENCE, || {
        let lists = plane.count(mark, "system:kube-proxy", "list", "services");
        ensure(lists == 2, || format!("{lists} requests"))
    });
    plane.kubectl(&["delete", "service", "page-0", "page-509"]);
    known(SERVICES - 2);
}
