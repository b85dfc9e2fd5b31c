//! Directories of manifests of a given size.
//!
//! Every Service has one TCP port and one slice; one more, `measured`, is the one of the packet
//! measurements, with [`PODS`] endpoints that exist. The slice that changes, of Service `changing`,
//! has a file of its own in every layout.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::{fmt, fs};

use crate::lab::{PODS, VIP, pod};

/// How many Services and endpoints, all together; endpoints are spread evenly.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Services.
    pub services: u32,
    /// Endpoints, a multiple of the Services.
    pub endpoints: u32,
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}×{}", self.services, self.endpoints)
    }
}

/// How objects are laid out in files.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// YAML, a hundred Services and their slices in each file.
    Hundreds,
    /// JSON, every object in a file of its own.
    Single,
}

/// The node that runs Pinnace.
pub const NODE: &str = "bench-node";
const OTHER: &str = "other-node";

/// Where files are that are measured: in memory, so that a disk that is busy is not taken for what
/// is measured.
pub fn memory() -> PathBuf {
    let shared = Path::new("/dev/shm");
    if shared.is_dir() { shared.into() } else { std::env::temp_dir() }
}

/// A directory of manifests, and beside it the state directory; deleted on drop.
pub struct Manifests {
    root: PathBuf,
    each: u32,
    step: u32,
}

impl Manifests {
    /// Writes them; `local`: the measured pods run on our own node. `name` must be unique on the
    /// machine.
    pub fn write(name: &str, size: Size, layout: Layout, local: bool) -> Result<Manifests, String> {
        let root = memory().join(format!("pinnace-bench-{name}"));
        let manifests = Manifests { root, each: size.endpoints / size.services, step: 0 };
        let (dir, state) = (manifests.dir(), manifests.state());
        fs::create_dir_all(&dir)
            .and_then(|()| fs::create_dir_all(state))
            .map_err(|e| format!("{}: {e}", dir.display()))?;
        let mut file = String::new();
        for s in 0..size.services {
            let first = s * manifests.each;
            let addresses: Vec<_> = (first..first + manifests.each).map(endpoint).collect();
            let name = if s == 0 { "changing".into() } else { format!("app-{s}") };
            if s == 0 {
                put(&dir.join("changing.json"), &slice_json(&name, &addresses))?;
            }
            match layout {
                Layout::Hundreds => {
                    let _ = write!(file, "{}", service_yaml(&name));
                    if s > 0 {
                        let _ = write!(file, "{}", slice_yaml(&name, &addresses));
                    }
                    if s % 100 == 99 || s + 1 == size.services {
                        put(
                            &dir.join(format!("apps-{}.yaml", s / 100)),
                            &std::mem::take(&mut file),
                        )?;
                    }
                }
                Layout::Single => {
                    put(&dir.join(format!("{name}-service.json")), &service_json(&name))?;
                    if s > 0 {
                        put(&dir.join(format!("{name}.json")), &slice_json(&name, &addresses))?;
                    }
                }
            }
        }
        put(&dir.join("measured.yaml"), &measured(local))?;
        Ok(manifests)
    }

    /// For PINNACE_MANIFESTS.
    pub fn dir(&self) -> PathBuf {
        self.root.join("manifests")
    }

    /// For PINNACE_STATE_DIR.
    pub fn state(&self) -> PathBuf {
        self.root.join("state")
    }

    /// Nothing on disk: for [`Manifests::make_change`] alone.
    pub fn changing(size: Size) -> Manifests {
        Manifests { root: PathBuf::new(), each: size.endpoints / size.services, step: 0 }
    }

    /// Prepares the next change of one endpoint; [`Change::apply`] makes it.
    pub fn next_change(&mut self) -> Result<Change, String> {
        let change = self.make_change();
        put(&change.ready, &change.json())?;
        Ok(change)
    }

    /// The next change of one endpoint. In turn: another address, one fewer, one more.
    pub fn make_change(&mut self) -> Change {
        let fresh = |step: u32| Ipv4Addr::from(0x0ab0_0000 + step % 60_000);
        let (kind, last) = match self.step % 3 {
            0 => ("replace", Some(fresh(self.step + 3))),
            1 => ("remove", None),
            _ => ("add", Some(fresh(self.step + 1))),
        };
        // The address that appears, or on removal the one that goes, which the step before has put
        // there.
        let touched = last.unwrap_or_else(|| fresh(self.step + 2));
        self.step += 1;
        let addresses = (0..self.each - 1).map(endpoint).chain(last).collect();
        Change {
            kind,
            touched,
            addresses,
            ready: self.root.join("changing.new"),
            target: self.dir().join("changing.json"),
        }
    }
}

impl Drop for Manifests {
    fn drop(&mut self) {
        if !self.root.as_os_str().is_empty() {
            let _ = fs::remove_dir_all(&self.root);
        }
    }
}

/// A change of one endpoint, not yet made.
pub struct Change {
    /// replace, remove or add.
    pub kind: &'static str,
    /// The address that the kernel must hear of.
    pub touched: Ipv4Addr,
    addresses: Vec<Ipv4Addr>,
    ready: PathBuf,
    target: PathBuf,
}

impl Change {
    /// The slice as it becomes.
    pub fn json(&self) -> String {
        slice_json("changing", &self.addresses)
    }

    /// One rename(2).
    pub fn apply(&self) -> Result<(), String> {
        fs::rename(&self.ready, &self.target).map_err(|e| format!("{}: {e}", self.target.display()))
    }
}

fn put(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}

/// The n-th endpoint of all.
pub fn endpoint(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0aa0_0000 + n)
}

fn service_yaml(name: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: bench\nspec:\n  type: LoadBalancer\n  ipFamilies: [IPv4]\n  \
         selector:\n    app: {name}\n  ports:\n  - name: http\n    port: 80\n    protocol: TCP\n    targetPort: 8080\n"
    )
}

fn slice_yaml(name: &str, addresses: &[Ipv4Addr]) -> String {
    let mut text = format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}-1\n  namespace: bench\n  labels:\n    \
         kubernetes.io/service-name: {name}\naddressType: IPv4\nports:\n- name: http\n  port: 8080\n  protocol: TCP\nendpoints:\n"
    );
    for address in addresses {
        let _ = write!(
            text,
            "- addresses:\n  - {address}\n  conditions:\n    ready: true\n    serving: true\n    terminating: false\n  nodeName: {OTHER}\n"
        );
    }
    text
}

fn service_json(name: &str) -> String {
    format!(
        r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"{name}","namespace":"bench"}},"spec":{{"type":"LoadBalancer","ipFamilies":["IPv4"],
        "selector":{{"app":"{name}"}},"ports":[{{"name":"http","port":80,"protocol":"TCP","targetPort":8080}}]}}}}"#
    )
}

/// The slice of a Service.
pub fn slice_json(name: &str, addresses: &[Ipv4Addr]) -> String {
    let endpoints: Vec<_> = addresses
        .iter()
        .map(|a| {
            format!(r#"{{"addresses":["{a}"],"conditions":{{"ready":true,"serving":true,"terminating":false}},"nodeName":"{OTHER}"}}"#)
        })
        .collect();
    format!(
        r#"{{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{{"name":"{name}-1","namespace":"bench",
        "labels":{{"kubernetes.io/service-name":"{name}"}}}},"addressType":"IPv4","ports":[{{"name":"http","port":8080,"protocol":"TCP"}}],
        "endpoints":[{}]}}"#,
        endpoints.join(",\n")
    )
}

/// The Service behind [`VIP`]: port 80 for SYNs, 81 for streams.
fn measured(local: bool) -> String {
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: measured\n  namespace: bench\n  annotations:\n    pinnace.dev/addresses: {VIP}\nspec:\n  \
         type: LoadBalancer\n  ipFamilies: [IPv4]\n  ports:\n  - {{name: syn, port: 80, targetPort: 8080}}\n  - {{name: stream, port: 81, targetPort: 9000}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: measured-1\n  namespace: bench\n  labels:\n    \
         kubernetes.io/service-name: measured\naddressType: IPv4\nports:\n- {{name: syn, port: 8080}}\n- {{name: stream, port: 9000}}\nendpoints:\n"
    );
    for n in 0..PODS {
        let node = if local { NODE } else { OTHER };
        let _ = writeln!(text, "- {{addresses: [{}], nodeName: {node}}}", pod(n));
    }
    text
}
