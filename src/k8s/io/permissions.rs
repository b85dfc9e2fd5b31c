//! Whether a 403 means these credentials, or one object: admission policies and a namespace that is
//! being deleted answer 403 as well.

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

/// For one question.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an answer counts: a policy that refuses many objects costs one question in this time.
const KEPT: Duration = Duration::from_secs(5);

/// A right these credentials may have: verb, resource of the core group, and subresource or "".
pub type AccessCheck = (&'static str, &'static str, &'static str);

/// Asks the API server about one right, and remembers what it said.
pub struct Permissions {
    reviews: Api<SelfSubjectAccessReview>,
    right: AccessCheck,
    /// By namespace, "" for all of them.
    answers: Mutex<BTreeMap<String, (Instant, bool)>>,
}

impl Permissions {
    /// About `right`.
    pub fn new(client: Client, right: AccessCheck) -> Permissions {
        Permissions { reviews: Api::all(client), right, answers: Mutex::default() }
    }

    /// Whether the API server says that the credentials do not have the right in `namespace` ("":
    /// in all of them). False without an answer.
    pub async fn denied(&self, namespace: &str) -> bool {
        // Held while it asks: whoever else was refused meanwhile takes the same answer.
        let mut answers = self.answers.lock().await;
        answers.retain(|_, (at, _)| at.elapsed() < KEPT);
        if let Some((_, denied)) = answers.get(namespace) {
            return *denied;
        }
        let answer = timeout(
            REQUEST_TIMEOUT,
            self.reviews.create(&PostParams::default(), &review(self.right, namespace)),
        )
        .await;
        match answer.map(|answer| answer.map(|review| review.status)) {
            Ok(Ok(Some(status))) => {
                answers.insert(namespace.to_owned(), (Instant::now(), !status.allowed));
                !status.allowed
            }
            other => {
                debug!(answer = ?other, "the API server does not say what the credentials may do");
                false
            }
        }
    }
}

/// The question. All namespaces: without one.
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
