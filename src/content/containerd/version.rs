//! Which containerd it is.

use std::path::Path;
use std::time::Duration;

use containerd_client::services::v1::version_client::VersionClient;

use super::{Explained, StoreError, channel};

/// containerd answers in a millisecond, on a machine that is starting in tens of them.
const LIMIT: Duration = Duration::from_secs(2);

/// What the containerd at this socket says of itself, as its build spells it: `1.6.20~ds1`, `v2.1.9`. Waits for it for
/// two seconds; [`StoreError::Unreachable`] where it is not there, may not be asked, or is silent.
pub async fn version(socket: &Path) -> Result<String, StoreError> {
    let unreachable = |reason: String| {
        let socket = socket.display();
        StoreError::Unreachable(format!("version.Version at {socket}: {reason}"))
    };
    let mut client = VersionClient::new(channel(socket));
    match tokio::time::timeout(LIMIT, client.version(())).await {
        Ok(Ok(response)) => Ok(response.into_inner().version),
        Ok(Err(status)) => Err(unreachable(Explained(&status).to_string())),
        Err(_) => Err(unreachable(format!("no answer within {LIMIT:?}"))),
    }
}
