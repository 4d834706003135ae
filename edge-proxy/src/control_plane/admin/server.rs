//! The HTTP/1.1 server under the admin pages and the probes.
//!
//! It runs on the control plane's thread, so nobody may keep that busy or fill it: few connections,
//! a time limit for request headers, an end for every connection. When all connections are taken, the
//! oldest goes: whoever comes newly (a probe of the node's) always gets in.

use std::{collections::VecDeque, io, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};

/// What one server allows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// Connections open at once.
    pub(super) connections: usize,
    /// From the end of the last response (or from accept) to the end of a request's headers.
    pub(super) headers: Duration,
    /// Of a connection; a response that is on its way then may take [`LAST_RESPONSE`] more.
    pub(super) age: Duration,
    /// More than one request per connection.
    pub(super) keep_alive: bool,
}

/// Serves `router` until `shutdown`, then lets responses end. All tasks end with the returned future.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    rules: Rules,
    shutdown: impl Future<Output = ()>,
) {
    let mut tasks = JoinSet::new();
    let mut open = VecDeque::<AbortHandle>::new();
    tokio::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = tasks.join_next() => continue,
            () = &mut shutdown => break,
        };
        match accepted {
            Ok((stream, _)) => {
                open.retain(|task| !task.is_finished());
                if open.len() >= rules.connections
                    && let Some(oldest) = open.pop_front()
                {
                    oldest.abort();
                }
                open.push_back(tasks.spawn(connection(stream, router.clone(), rules)));
            }
            Err(error) => back_off(&error).await,
        }
    }
    drop(listener);
    let ended = timeout(LAST_RESPONSE, async {
        while tasks.join_next().await.is_some() {}
    });
    // What is still open then is aborted with `tasks`.
    let _ = ended.await;
}

async fn connection(stream: TcpStream, router: Router, rules: Rules) {
    let service = TowerToHyperService::new(router);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(rules.headers)
        .keep_alive(rules.keep_alive)
        .max_buf_size(HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        () = sleep(rules.age) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = timeout(LAST_RESPONSE, connection).await;
}

/// Out of file descriptors, most likely: `accept` would fail again at once.
async fn back_off(error: &io::Error) {
    tracing::warn!(%error, "could not accept a connection to the admin pages or probes");
    sleep(BACK_OFF).await;
}

const LAST_RESPONSE: Duration = Duration::from_secs(5);
const BACK_OFF: Duration = Duration::from_millis(100);
/// Bytes of a request's headers.
const HEADERS: usize = 16 << 10;
