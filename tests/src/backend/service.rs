//! The tests' own service: what each RPC's metadata asks for, and the journal's line when its client has gone.

use std::{
    collections::HashSet,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;
use tonic::{Code, Request, Response, Status, Streaming, metadata::MetadataMap};

use crate::{
    journal::{ID, Journal},
    pb::{Message, test_server::Test},
};

#[derive(Clone)]
pub(super) struct TestService {
    pub(super) journal: Journal,
    pub(super) gates: Arc<watch::Sender<HashSet<String>>>,
}

impl TestService {
    /// Reads what the RPC is to do; from here on its end is noticed.
    fn begin(&self, metadata: &MetadataMap) -> Call {
        let text = |name: &str| Some(metadata.get(name)?.to_str().ok()?.to_owned());
        let number = |name: &str| text(name)?.parse::<usize>().ok();
        let status =
            |name: &str| number(name).map(|code| Status::new(Code::from_i32(code as i32), FAILED));
        let mut give = MetadataMap::new();
        if let Some(value) = metadata.get("x-test-give") {
            give.insert("x-test-give", value.clone());
        }
        if let Some(value) = metadata.get_bin("x-test-give-bin") {
            give.insert_bin("x-test-give-bin", value.clone());
        }
        Call {
            gate: text("x-test-gate"),
            late_gate: text("x-test-late-gate"),
            status: status("x-test-status"),
            late_status: status("x-test-late-status"),
            reply_bytes: number("x-test-reply-bytes"),
            replies: number("x-test-replies").unwrap_or(1),
            interval: number("x-test-interval").map(|millis| Duration::from_millis(millis as u64)),
            give,
            gates: self.gates.subscribe(),
            end: End {
                id: text(ID).unwrap_or_default(),
                journal: self.journal.clone(),
                reached: false,
            },
        }
    }
}

/// One RPC's instructions, and its end.
struct Call {
    gate: Option<String>,
    late_gate: Option<String>,
    status: Option<Status>,
    late_status: Option<Status>,
    reply_bytes: Option<usize>,
    replies: usize,
    interval: Option<Duration>,
    give: MetadataMap,
    gates: watch::Receiver<HashSet<String>>,
    end: End,
}

impl Call {
    async fn first_gate(&mut self) -> Result<(), Status> {
        pass(&mut self.gates, self.gate.as_deref()).await;
        match self.status.take() {
            Some(status) => {
                self.end.reached = true;
                Err(status)
            }
            None => Ok(()),
        }
    }

    fn reply(&self, message: Message) -> Message {
        match self.reply_bytes {
            Some(length) => Message {
                data: Bytes::from(vec![b'r'; length]),
            },
            None => message,
        }
    }

    fn response<T>(&self, body: T) -> Response<T> {
        let mut response = Response::new(body);
        *response.metadata_mut() = self.give.clone();
        response
    }
}

/// Dropped before it is `reached`: the RPC was cancelled.
struct End {
    id: String,
    journal: Journal,
    reached: bool,
}

impl Drop for End {
    fn drop(&mut self) {
        if !self.reached {
            let entry = (std::mem::take(&mut self.id), Instant::now());
            self.journal.add(|all| all.cancelled.push(entry));
        }
    }
}

/// The replies of a stream, and its end.
pub(super) struct Replies {
    receiver: mpsc::Receiver<Result<Message, Status>>,
    end: End,
}

impl Stream for Replies {
    type Item = Result<Message, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.receiver.poll_recv(cx);
        if matches!(next, Poll::Ready(None | Some(Err(_)))) {
            self.end.reached = true;
        }
        next
    }
}

#[tonic::async_trait]
impl Test for TestService {
    type DownloadStream = Replies;
    type ChatStream = Replies;

    async fn unary(&self, request: Request<Message>) -> Result<Response<Message>, Status> {
        let mut call = self.begin(request.metadata());
        call.first_gate().await?;
        let reply = call.reply(request.into_inner());
        call.end.reached = true;
        Ok(call.response(reply))
    }

    async fn upload(
        &self,
        request: Request<Streaming<Message>>,
    ) -> Result<Response<Message>, Status> {
        let mut call = self.begin(request.metadata());
        call.first_gate().await?;
        let mut messages = request.into_inner();
        let mut all = Vec::new();
        while let Some(message) = messages.message().await? {
            self.journal.add(|entries| entries.messages += 1);
            all.extend_from_slice(&message.data);
        }
        let reply = call.reply(Message { data: all.into() });
        call.end.reached = true;
        Ok(call.response(reply))
    }

    async fn download(&self, request: Request<Message>) -> Result<Response<Replies>, Status> {
        let mut call = self.begin(request.metadata());
        call.first_gate().await?;
        let reply = call.reply(request.into_inner());
        let (sender, receiver) = mpsc::channel(1);
        let (late_gate, late_status, replies) =
            (call.late_gate.take(), call.late_status.take(), call.replies);
        let (mut gates, interval) = (call.gates.clone(), call.interval);
        tokio::spawn(async move {
            for count in 0..replies {
                if let Some(interval) = interval {
                    tokio::time::sleep(interval).await;
                }
                if sender.send(Ok(reply.clone())).await.is_err() {
                    return;
                }
                if count == 0 {
                    pass(&mut gates, late_gate.as_deref()).await;
                }
            }
            if let Some(status) = late_status {
                // Nobody waits for it any more: the RPC was cancelled.
                let _ = sender.send(Err(status)).await;
            }
        });
        let response = call.response(());
        Ok(response.map(|()| Replies {
            receiver,
            end: call.end,
        }))
    }

    async fn chat(
        &self,
        request: Request<Streaming<Message>>,
    ) -> Result<Response<Replies>, Status> {
        let mut call = self.begin(request.metadata());
        call.first_gate().await?;
        let mut messages = request.into_inner();
        let (sender, receiver) = mpsc::channel(1);
        let (journal, late_status) = (self.journal.clone(), call.late_status.take());
        let (reply_bytes, interval) = (call.reply_bytes, call.interval);
        tokio::spawn(async move {
            while let Ok(Some(message)) = messages.message().await {
                journal.add(|entries| entries.messages += 1);
                if let Some(interval) = interval {
                    tokio::time::sleep(interval).await;
                }
                let reply = match reply_bytes {
                    Some(length) => Message {
                        data: Bytes::from(vec![b'r'; length]),
                    },
                    None => message,
                };
                if sender.send(Ok(reply)).await.is_err() {
                    return;
                }
            }
            if let Some(status) = late_status {
                // As above.
                let _ = sender.send(Err(status)).await;
            }
        });
        let response = call.response(());
        Ok(response.map(|()| Replies {
            receiver,
            end: call.end,
        }))
    }
}

async fn pass(gates: &mut watch::Receiver<HashSet<String>>, gate: Option<&str>) {
    if let Some(gate) = gate {
        // The sender is gone when the backend is.
        let _ = gates.wait_for(|open| open.contains(gate)).await;
    }
}

/// The message of every failure that is asked for: with a character that has to be percent-encoded.
pub const FAILED: &str = "failed, as the test says: 100 %";
