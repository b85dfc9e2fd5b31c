//! Tells a 403 that is about the credentials from one that is about a single object: admission
//! policies and a namespace that is being deleted answer 403 as well.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::Client;
use kube::api::{Api, PostParams};
use tokio::sync::Mutex;
use tokio::time::timeout;
use tracing::debug;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an answer is used: a policy that refuses many objects costs one review in this time.
const MAX_AGE: Duration = Duration::from_secs(5);

/// A permission: verb, resource of the core group, and subresource or "".
pub type AccessCheck = (&'static str, &'static str, &'static str);

/// Asks the API server about one permission, and remembers its answers for [`MAX_AGE`].
pub struct Permissions {
    reviews: Api<SelfSubjectAccessReview>,
    check: AccessCheck,
    /// By namespace, "" for all of them.
    answers: Mutex<BTreeMap<String, (Instant, bool)>>,
}

impl Permissions {
    pub fn new(client: Client, check: AccessCheck) -> Permissions {
        Permissions { reviews: Api::all(client), check, answers: Mutex::default() }
    }

    /// Whether the API server denies the permission in `namespace` ("" for all namespaces). False
    /// without an answer.
    pub async fn denied(&self, namespace: &str) -> bool {
        // Locked during the request: other tasks wait for the same answer.
        let mut answers = self.answers.lock().await;
        answers.retain(|_, (at, _)| at.elapsed() < MAX_AGE);
        if let Some((_, denied)) = answers.get(namespace) {
            return *denied;
        }
        let answer = timeout(
            REQUEST_TIMEOUT,
            self.reviews.create(&PostParams::default(), &review(self.check, namespace)),
        )
        .await;
        match answer.map(|answer| answer.map(|review| review.status)) {
            Ok(Ok(Some(status))) => {
                answers.insert(namespace.to_owned(), (Instant::now(), !status.allowed));
                !status.allowed
            }
            other => {
                debug!(answer = ?other, "access review without an answer");
                false
            }
        }
    }
}

/// For all namespaces none is named.
fn review((verb, resource, subresource): AccessCheck, namespace: &str) -> SelfSubjectAccessReview {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let resource_attributes = ResourceAttributes {
        verb: some(verb),
        resource: some(resource),
        subresource: some(subresource),
        namespace: some(namespace),
        ..ResourceAttributes::default()
    };
    let spec = SelfSubjectAccessReviewSpec {
        resource_attributes: Some(resource_attributes),
        ..SelfSubjectAccessReviewSpec::default()
    };
    SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() }
}
