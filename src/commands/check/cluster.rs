//! The Kubernetes API: whether it answers, and what the credentials of this node may do there.

use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ListParams, PostParams};
use kube::{Api, ResourceExt};

use super::finding::Finding;
use super::others;
use crate::config::Settings;
use crate::daemon::{NoSource, Source, lease_namespace};
use crate::k8s::io::client::Connection;
use crate::k8s::io::failure::Failure;
use crate::k8s::io::lease;
use crate::manifests::kube_vip;

/// How long the API server may take to answer all questions together.
const API_TIMEOUT: Duration = Duration::from_secs(15);

/// Verb, API group, resource, subresource.
type AccessCheck = (&'static str, &'static str, &'static str, &'static str);

/// What every node needs.
const READ: &[AccessCheck] = &[
    ("list", "", "services", ""),
    ("watch", "", "services", ""),
    ("list", "discovery.k8s.io", "endpointslices", ""),
    ("watch", "discovery.k8s.io", "endpointslices", ""),
    ("list", "", "nodes", ""),
    ("watch", "", "nodes", ""),
];
/// What the leader needs besides; a node without it serves as a follower.
const WRITE: &[AccessCheck] = &[
    ("patch", "", "services", "status"),
    ("create", "", "events", ""),
    ("create", "coordination.k8s.io", "leases", ""),
    ("update", "coordination.k8s.io", "leases", ""),
];

pub(super) async fn examine(settings: &Settings) -> Vec<Finding> {
    let credentials = match Source::choose(settings) {
        Ok(Source::Manifests(_)) => return Vec::new(),
        Ok(Source::Api(credentials)) => credentials,
        Err(error @ NoSource::Two) => return vec![Finding::error("source", error.to_string())],
        Err(error) => return vec![Finding::warning("source", error.to_string())],
    };
    let findings = async {
        let connection = Connection::open(credentials, settings.api_servers.clone()).await?;
        let asked =
            tokio::time::timeout(API_TIMEOUT, ask(&connection, &lease_namespace(settings))).await;
        asked.unwrap_or_else(|_| {
            Err(format!(
                "the API server {} does not answer within {} s",
                connection.server(),
                API_TIMEOUT.as_secs()
            ))
        })
    };
    match findings.await {
        Ok(findings) => findings,
        Err(error) => vec![Finding::error("api-server", error).why(
            "Services come from there; until it answers, only what was known before is served",
        )],
    }
}

async fn ask(connection: &Connection, namespace: &str) -> Result<Vec<Finding>, String> {
    let reviews: Api<SelfSubjectAccessReview> = Api::all(connection.client());
    let (mut unread, mut unwritten) = (Vec::new(), Vec::new());
    for (rights, missing) in [(READ, &mut unread), (WRITE, &mut unwritten)] {
        for right in rights {
            let answer =
                reviews.create(&PostParams::default(), &review(right, namespace)).await.map_err(
                    |error| connection.sentence(&Failure::of(&error), "its own access rights"),
                )?;
            if !answer.status.is_some_and(|status| status.allowed) {
                missing.push(shown(right));
            }
        }
    }
    let who = connection.credentials();
    let mut findings = vec![Finding::ok(
        "api-server",
        format!("the API server {} answers; credentials: {who}", connection.server()),
    )];
    if unread.is_empty() {
        findings.push(Finding::ok(
            "api-read",
            "the credentials may list and watch services, endpointslices and nodes",
        ));
    } else {
        findings.push(
            Finding::error("api-read", format!("the credentials may not {}", unread.join(", ")))
                .why("without that no Service is known")
                .fix("kubectl create clusterrole pinnace-read --verb=get,list,watch --resource=services,nodes,endpointslices.discovery.k8s.io")
                .fix("kubectl create clusterrolebinding pinnace-read --clusterrole=pinnace-read --user=…   # or --serviceaccount=namespace:name"),
        );
    }
    if unwritten.is_empty() {
        findings.push(Finding::ok(
            "api-write",
            "the credentials may write the status of Services, events and leases",
        ));
    } else {
        findings.push(
            Finding::note("api-write", format!("the credentials may not {}", unwritten.join(", ")))
                .why("this node runs as follower only and never writes status; one node of the cluster has to"),
        );
    }
    findings.extend(servicelb(connection).await);
    findings.extend(ranges_of_kube_vip(connection).await);
    Ok(findings)
}

/// ServiceLB keeps a DaemonSet for every Service it serves. Credentials that may not look say
/// nothing about it.
async fn servicelb(connection: &Connection) -> Option<Finding> {
    let sets: Api<DaemonSet> = Api::namespaced(connection.client(), "kube-system");
    let names: Vec<String> = sets
        .list_metadata(&ListParams::default().limit(500))
        .await
        .ok()?
        .iter()
        .map(ResourceExt::name_any)
        .collect();
    let found: Vec<&str> =
        names.iter().map(String::as_str).filter(|name| name.starts_with("svclb-")).collect();
    let (first, more) = (found.first()?, found.len() - 1);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    Some(others::servicelb(format!(
        "K3s ServiceLB serves in this cluster (DaemonSet {first}{more} in kube-system)"
    )))
}

/// The pools of kube-vip's cloud provider, as Pinnace's setting. Credentials that may not look say nothing
/// about them.
async fn ranges_of_kube_vip(connection: &Connection) -> Option<Finding> {
    let maps: Api<ConfigMap> = Api::namespaced(connection.client(), "kube-system");
    let found = maps.get_opt(kube_vip::NAME).await.ok()??;
    Some(Finding::note("kube-vip", kube_vip::advice(found.data.iter().flatten())))
}

fn review(
    (verb, group, resource, subresource): &AccessCheck,
    namespace: &str,
) -> SelfSubjectAccessReview {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_string());
    let resource_attributes = ResourceAttributes {
        verb: some(verb),
        group: some(group),
        resource: some(resource),
        subresource: some(subresource),
        // Leases are kept in one namespace, everything else is read and written in all.
        namespace: (*resource == "leases").then(|| namespace.to_string()),
        // Permissions may be granted for the one Lease alone; what is to be created has no name yet.
        name: (*resource == "leases" && *verb != "create").then(|| lease::NAME.to_string()),
        ..ResourceAttributes::default()
    };
    let spec = SelfSubjectAccessReviewSpec {
        resource_attributes: Some(resource_attributes),
        ..SelfSubjectAccessReviewSpec::default()
    };
    SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() }
}

fn shown((verb, _, resource, subresource): &AccessCheck) -> String {
    let slash = if subresource.is_empty() { "" } else { "/" };
    format!("{verb} {resource}{slash}{subresource}")
}
