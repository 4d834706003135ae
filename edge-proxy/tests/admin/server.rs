//! A server of either kind, and who asks it.

use std::{net::SocketAddr, sync::Arc};

use edge_proxy::control_plane::{
    admin::{self, State, probes},
    status::Report,
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
};

use crate::support::{self, Asked};

/// A server and where it listens; it ends with this.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    asked: Arc<Asked>,
    pub(crate) stop: Option<oneshot::Sender<()>>,
    pub(crate) task: JoinHandle<()>,
}

impl Server {
    pub(crate) async fn admin(report: Report) -> Self {
        let (state, asked) = support::state(report);
        Self::start(state, asked, true).await
    }

    pub(crate) async fn probes(report: Report) -> Self {
        let (state, asked) = support::state(report);
        Self::start(state, asked, false).await
    }

    pub(crate) async fn start(state: State, asked: Arc<Asked>, is_admin: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async {
            let _ = stopped.await;
        };
        let task = tokio::spawn(async move {
            if is_admin {
                admin::serve(listener, state, shutdown).await;
            } else {
                probes::serve(listener, state, shutdown).await;
            }
        });
        Self {
            address,
            asked,
            stop: Some(stop),
            task,
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        self.ask("GET", path, &[("host", "localhost:8090")]).await
    }

    pub(crate) async fn post(&self, path: &str) -> Response {
        self.ask("POST", path, &[("host", "localhost:8090")]).await
    }

    pub(crate) async fn json(&self, path: &str) -> Value {
        let response = self.get(path).await;
        assert_eq!(
            response.header("content-type"),
            Some("application/json"),
            "{path}"
        );
        serde_json::from_str(&response.body).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    pub(crate) async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Response {
        let mut request = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
        for (name, value) in headers {
            request += &format!("{name}: {value}\r\n");
        }
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream
            .write_all(format!("{request}\r\n").as_bytes())
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        Response {
            head: head.to_ascii_lowercase(),
            body: body.to_owned(),
        }
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.0.lock().unwrap().clone()
    }
}

/// An answer; its head in lower case.
#[derive(Debug)]
pub(crate) struct Response {
    head: String,
    pub(crate) body: String,
}

impl Response {
    pub(crate) fn status(&self) -> u16 {
        self.head["http/1.1 ".len()..][..3].parse().unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut fields = self.head.lines().filter_map(|line| line.split_once(": "));
        fields.find(|(n, _)| *n == name).map(|(_, value)| value)
    }
}
