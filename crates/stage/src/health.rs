use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use axum::routing::get;

use crate::exposition;
use crate::metrics::Status;

/// Serves /livez, /readyz and /metrics; gives the address it listens on.
pub(crate) async fn serve(address: SocketAddr, status: Arc<Status>) -> anyhow::Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address} for probes; choose another --health"))?;
    let address = listener.local_addr()?;
    let (ready, metrics) = (Arc::clone(&status), status);
    let routes = Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(move || async move { readiness(&ready) }))
        .route(
            "/metrics",
            get(move |headers: HeaderMap| async move { exposition::answer(metrics.registry(), &headers) }),
        );
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, routes).await {
            tracing::error!(%error, "probes are not answered any more");
        }
    });
    Ok(address)
}

fn readiness(status: &Status) -> impl IntoResponse + use<> {
    // One that is parked does what it should: nothing.
    let is_fine = status.is_ready() || status.is_parked();
    let code = if is_fine { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, format!("{}\n", status.state()))
}
