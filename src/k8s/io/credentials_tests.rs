use super::*;

/// A directory that goes away with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path =
            env::temp_dir().join(format!("pinnace-credentials-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn what_is_named_wins_then_the_pod_then_what_k3s_keeps() {
    let root = Scratch::new("choice");
    let none = choose(None, false, &root.0).unwrap_err();
    for word in
        ["PINNACE_KUBECONFIG", "service account", "/etc/rancher/k3s/k3s.yaml", "PINNACE_MANIFESTS"]
    {
        assert!(none.to_string().contains(word), "{word} is not in {none}");
    }
    let agent = root.write("var/lib/rancher/k3s/agent/kubeproxy.kubeconfig", "");
    assert_eq!(choose(None, false, &root.0), Ok(Credentials::Found(agent)));
    let server = root.write("etc/rancher/k3s/k3s.yaml", "");
    assert_eq!(choose(None, false, &root.0), Ok(Credentials::Found(server)));
    assert_eq!(choose(None, true, &root.0), Ok(Credentials::ServiceAccount));
    assert_eq!(
        choose(Some(Path::new("/k")), true, &root.0),
        Ok(Credentials::Kubeconfig("/k".into()))
    );
}

const TWO_CLUSTERS: &str = r#"
apiVersion: v1
kind: Config
current-context: here
contexts: [{name: here, context: {cluster: b, user: me}}]
clusters:
- {name: a, cluster: {server: "https://10.0.0.1:6443", certificate-authority: ca.pem}}
- {name: b, cluster: {server: "https://10.0.0.2:6443", certificate-authority: ca.pem}}
- {name: c, cluster: {server: "https://10.9.9.9:6443", certificate-authority: other.pem}}
users: [{name: me, user: {token: secret}}]
"#;

#[tokio::test]
async fn only_the_cluster_of_the_context_is_asked_and_servers_that_are_named_replace_it() {
    let dir = Scratch::new("servers");
    let path = dir.write("kubeconfig", TWO_CLUSTERS);
    dir.write("ca.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let credentials = Credentials::Kubeconfig(path.clone());
    let loaded = load(&credentials, &[]).await.unwrap();
    let shown = |servers: &[Uri]| servers.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(
        shown(&loaded.servers),
        ["https://10.0.0.2:6443/"],
        "a and c are other clusters, whoever vouches for them"
    );
    assert_eq!(loaded.files, [path.clone(), dir.0.join("ca.pem")]);
    let named = ["https://x:1", "https://y:1"].map(|uri| uri.parse().unwrap());
    let loaded = load(&credentials, &named).await.unwrap();
    assert_eq!(shown(&loaded.servers), ["https://x:1/", "https://y:1/"]);
    assert_eq!(loaded.config.cluster_url.to_string(), "https://x:1/");
}

#[tokio::test]
async fn a_kubeconfig_that_cannot_be_used_is_named_with_the_reason() {
    let dir = Scratch::new("broken");
    for (text, reason) in [
        ("clusters: [", "cannot be used"),
        (
            &*TWO_CLUSTERS.replace("{token: secret}", "{exec: {command: aws, apiVersion: v1}}"),
            "user \"me\" of its context \"here\" logs in by the exec plugin \"aws\", and Pinnace starts no programs; give that user a token",
        ),
        (
            &*TWO_CLUSTERS.replace("{token: secret}", "{auth-provider: {name: gcp, config: {}}}"),
            "user \"me\" of its context \"here\" logs in by the auth provider \"gcp\"",
        ),
        ("apiVersion: v1\nkind: Config\n", "current context"),
    ] {
        let path = dir.write("kubeconfig", text);
        let error = load(&Credentials::Kubeconfig(path.clone()), &[]).await.unwrap_err();
        assert!(error.contains(reason) && error.contains(path.to_str().unwrap()), "{error}");
    }
    let error = load(&Credentials::Kubeconfig("/nowhere".into()), &[]).await.unwrap_err();
    assert!(error.contains("/nowhere"), "{error}");
}

#[test]
fn a_file_replaced_or_moved_behind_a_link_has_another_stamp() {
    let dir = Scratch::new("stamps");
    let first = dir.write("1/kubeconfig", "a");
    let second = dir.write("2/kubeconfig", "a");
    let link = dir.0.join("link");
    std::os::unix::fs::symlink(&first, &link).unwrap();
    let files = [link.clone()];
    let before = stamps(&files);
    fs::remove_file(&link).unwrap();
    assert_ne!(stamps(&files), before);
    assert_eq!(stamps(&files), [None]);
    std::os::unix::fs::symlink(&second, &link).unwrap();
    assert_ne!(stamps(&files), before, "the same text, another file");
}
