//! Who decides.

/// Who decides which Service has which virtual address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Manifests: every node for itself, and the state file remembers.
    #[default]
    Alone,
    /// The API: what `status` of the Service says, as far as it is in our pools.
    Follower,
    /// The API, and this node holds the Lease: it allocates addresses to Services that have none and
    /// writes them to their status.
    Leader,
}
