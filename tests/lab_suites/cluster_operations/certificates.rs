//! A client certificate that ends while nobody looks, as those of K3s do after a year.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use super::credentials::{field, replace};
use super::{PATIENCE, TAKEOVER, address, published};
use crate::lab::control_plane::{Component, ControlPlane};
use crate::lab::manifests::web;
use crate::lab::{Lab, ensure, eventually};

const LONG: Duration = Duration::from_secs(86_400);
/// Time enough for it to be read before it ends.
const SHORT: Duration = Duration::from_secs(8);
/// For `openssl ca`, which alone can set the time of day when a certificate ends.
const SETTINGS: &str = "[ca]\ndefault_ca = own\n[own]\ndatabase = index\nnew_certs_dir = .\nrand_serial = yes\ndefault_md = sha256\n\
    policy = any\nx509_extensions = client\nunique_subject = no\n[any]\norganizationName = supplied\ncommonName = supplied\n\
    [client]\nkeyUsage = digitalSignature\nextendedKeyUsage = clientAuth\n";
const KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";

/// Issues certificates for Pinnace, in a directory of its own.
pub struct Authority {
    directory: PathBuf,
}

impl Authority {
    pub fn new(lab: &Lab) -> Authority {
        let authority = Authority { directory: lab.directory().join("authority") };
        fs::create_dir_all(&authority.directory).expect("a directory");
        fs::write(authority.file("settings"), SETTINGS).expect("a file");
        fs::write(authority.file("index"), "").expect("a file");
        authority.openssl(&format!(
            "req -x509 {KEY} -keyout ca.key -out ca.crt -subj /CN=clients -days 2"
        ));
        // The name of the service account, which has the rights.
        let subject = "/O=system:serviceaccounts/CN=system:serviceaccount:pinnace:pinnace";
        authority
            .openssl(&format!("req -new {KEY} -keyout client.key -out client.csr -subj {subject}"));
        authority
    }

    /// With this the API server accepts its certificates.
    pub fn argument(&self) -> String {
        format!("--client-ca-file={}", self.file("ca.crt").display())
    }

    /// Issues one that is valid for this long, and puts it where the kubeconfig looks for it.
    fn issue(&self, valid: Duration) {
        let at = |time: Timestamp| time.strftime("%Y%m%d%H%M%SZ").to_string();
        let (begin, end) = (at(Timestamp::now() - LONG), at(Timestamp::now() + valid));
        let authority = "-config settings -cert ca.crt -keyfile ca.key";
        self.openssl(&format!("ca -batch -notext {authority} -startdate {begin} -enddate {end} -in client.csr -out issued.crt"));
        replace(
            &self.file("client.crt"),
            &fs::read_to_string(self.file("issued.crt")).expect("a certificate"),
        );
    }

    /// A kubeconfig that names the files, as K3s writes them for its agents.
    fn kubeconfig(&self, plane: &ControlPlane) -> PathBuf {
        let path = self.file("client.kubeconfig");
        let authority = field(&plane.kubeconfig("admin"), "certificate-authority");
        let text = format!(
            "{{apiVersion: v1, kind: Config, current-context: a, contexts: [{{name: a, context: {{cluster: a, user: a}}}}],
            clusters: [{{name: a, cluster: {{server: \"{}\", certificate-authority: \"{authority}\"}}}}],
            users: [{{name: a, user: {{client-certificate: client.crt, client-key: client.key}}}}]}}",
            plane.url()
        );
        fs::write(&path, text).expect("a kubeconfig");
        path
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn openssl(&self, arguments: &str) {
        let output = Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(&self.directory)
            .output();
        let output = output.expect("openssl is installed (tests/run installs it)");
        assert!(
            output.status.success(),
            "openssl {arguments}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

/// The API server is started anew on the way, without streamed lists for whoever comes next.
pub fn a_certificate_that_ends_is_named_and_its_successor_used(
    lab: &Lab,
    plane: &mut ControlPlane,
    authority: &Authority,
) {
    authority.issue(LONG);
    let kubeconfig = authority.kubeconfig(plane);
    let mut running = lab
        .pinnace()
        .unset("PINNACE_MANIFESTS")
        .set("PINNACE_KUBECONFIG", kubeconfig.display())
        .start_ready();
    let certified = |pods| web("certified").with_pods(pods);
    plane.apply(&certified(&lab.pods[..1]));
    let vip = address(plane, "certified", TAKEOVER);
    let served_by = |pod: usize| {
        let reply = lab.client.tcp(vip, 80).map_err(|failure| failure.to_string())?;
        ensure(reply.pod == lab.pods[pod].name, || format!("{} answers", reply.pod))
    };
    eventually("a client is served", PATIENCE, || served_by(0));

    // The Lease notices: the API server looks at the date with every request. Watches that run go
    // on.
    let complaint = format!(
        "does not accept the client certificate in {}: it expired at 20",
        kubeconfig.display()
    );
    authority.issue(SHORT);
    running.complains(&complaint);
    let status = String::from_utf8(running.pinnace().run(&["status"]).stdout).expect("text");
    assert!(
        status.contains(&complaint) && status.contains("renew it, it is read again by itself"),
        "{status}"
    );
    eventually("it leaves the writing to others", PATIENCE, || {
        let here = running.pinnace().status()?.0["leader"]["here"].clone();
        ensure(here == false, || here.to_string())
    });

    // Nor does it hear anything any more once they are cut.
    plane.add_argument(Component::ApiServer, "--feature-gates=WatchList=false");
    plane.stop(Component::ApiServer);
    running.complains("does not answer");
    plane.resume(Component::ApiServer);
    plane.apply(&certified(&lab.pods[1..]));
    running.complains(&complaint);
    served_by(0).expect("packets flow as before");
    assert_eq!(lab.client.neighbour(vip), Some(lab.node.mac()), "it is announced");
    assert!(published(plane, "certified").contains(&vip));

    authority.issue(LONG);
    running.recovers();
    eventually("it hears again", PATIENCE, || served_by(1));
    plane.apply(&web("renewed").with_pods(&lab.pods));
    address(plane, "renewed", TAKEOVER);
    assert_eq!(address(plane, "certified", PATIENCE), vip, "nothing moved");
    assert!(running.terminate().success(), "it is the process that was started");
}
