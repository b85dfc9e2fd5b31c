use std::sync::Arc;

use crate::bfd::BfdConfig;
use crate::host::liveness_fence::LivenessFence;

/// What the thread is started with.
#[derive(Clone, Debug, Default)]
pub struct BfdOptions {
    pub config: BfdConfig,
    /// Listen for peers behind routers as well (RFC 5883).
    pub multihop: bool,
    /// Tells other threads whether peers may have declared this node down.
    pub fence: Arc<LivenessFence>,
}
