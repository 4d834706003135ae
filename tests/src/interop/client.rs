//! gRPC's interoperability cases, of a client on tonic.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use rustls::ClientConfig;
use tokio::{sync::mpsc, task::JoinSet, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Request, Response, Status, Streaming, body::Body, codec::CompressionEncoding,
    transport::Channel,
};
use tower::ServiceExt as _;

use super::{
    CONCURRENT, INITIAL, LARGE, Soak, TRAILING, noting, payload,
    pb::{
        BoolValue, EchoStatus, Empty, ResponseParameters, SimpleRequest, SimpleResponse,
        StreamingInputCallRequest, StreamingOutputCallRequest, StreamingOutputCallResponse,
        test_service_client, unimplemented_service_client::UnimplementedServiceClient,
    },
};
use crate::client;

type Client = test_service_client::TestServiceClient<Channel>;

/// Who calls.
pub(super) struct Tonic {
    address: SocketAddr,
    tls: Arc<ClientConfig>,
    channel: Channel,
    client: Client,
}

impl Tonic {
    pub(super) async fn connect(
        address: SocketAddr,
        tls: Arc<ClientConfig>,
    ) -> anyhow::Result<Self> {
        let channel = client::channel(address, tls.clone()).await?;
        Ok(Self {
            address,
            tls,
            client: Client::new(channel.clone()),
            channel,
        })
    }

    /// Performs a case.
    pub(super) async fn perform(&self, case: &str, soak: Soak) -> anyhow::Result<()> {
        let client = self.client.clone();
        match case {
            "empty_unary" => empty_unary(client).await,
            "large_unary" => large_unary(client).await,
            "client_compressed_unary" => client_compressed_unary(client).await,
            "server_compressed_unary" => server_compressed_unary(self.channel.clone()).await,
            "client_streaming" => client_streaming(client).await,
            "server_streaming" => server_streaming(client).await,
            "ping_pong" => ping_pong(client).await,
            "empty_stream" => empty_stream(client).await,
            "custom_metadata" => custom_metadata(client).await,
            "status_code_and_message" => status_code_and_message(client).await,
            "special_status_message" => special_status_message(client).await,
            "unimplemented_method" => unimplemented_method(client).await,
            "unimplemented_service" => unimplemented_service(self.channel.clone()).await,
            "timeout_on_sleeping_server" => timeout_on_sleeping_server(client).await,
            "cancel_after_begin" => cancel_after_begin(client).await,
            "cancel_after_first_response" => cancel_after_first_response(client).await,
            "concurrent_large_unary" => concurrent_large_unary(client).await,
            "rpc_soak" => {
                for _ in 0..soak.rpcs {
                    large_unary(client.clone()).await?;
                }
                Ok(())
            }
            "channel_soak" => {
                for _ in 0..soak.channels {
                    let channel = client::channel(self.address, self.tls.clone()).await?;
                    large_unary(Client::new(channel)).await?;
                }
                Ok(())
            }
            _ => bail!("this client has no such case"),
        }
    }
}

async fn empty_unary(mut client: Client) -> anyhow::Result<()> {
    client.empty_call(Empty {}).await?;
    Ok(())
}

async fn large_unary(mut client: Client) -> anyhow::Result<()> {
    is_large(client.unary_call(large()).await?)
}

async fn client_compressed_unary(mut client: Client) -> anyhow::Result<()> {
    let expecting = |value| SimpleRequest {
        expect_compressed: Some(BoolValue { value }),
        ..large()
    };
    let error = failure(client.unary_call(expecting(true)).await)?;
    ensure!(error.code() == Code::InvalidArgument, "{error}");
    let mut compressing = client.clone().send_compressed(CompressionEncoding::Gzip);
    is_large(compressing.unary_call(expecting(true)).await?)?;
    is_large(client.unary_call(expecting(false)).await?)
}

async fn server_compressed_unary(channel: Channel) -> anyhow::Result<()> {
    for value in [true, false] {
        let compressed = Arc::new(AtomicBool::new(false));
        let note = compressed.clone();
        let channel = channel.clone();
        let channel = channel.map_response(move |response: http::Response<Body>| {
            response.map(|body| noting(body, note.clone()))
        });
        let mut client = test_service_client::TestServiceClient::new(channel)
            .accept_compressed(CompressionEncoding::Gzip);
        let asked = SimpleRequest {
            response_compressed: Some(BoolValue { value }),
            ..large()
        };
        is_large(client.unary_call(asked).await?)?;
        let compressed = compressed.load(Ordering::Relaxed);
        ensure!(compressed == value, "compressed: {compressed}, not {value}");
    }
    Ok(())
}

async fn client_streaming(mut client: Client) -> anyhow::Result<()> {
    let messages = REQUESTS.map(|size| StreamingInputCallRequest {
        payload: Some(payload(size)),
    });
    let reply = client.streaming_input_call(tokio_stream::iter(messages));
    let size = reply.await?.into_inner().aggregated_payload_size;
    ensure!(size == 74_922, "{size} bytes arrived, not 74922");
    Ok(())
}

async fn server_streaming(mut client: Client) -> anyhow::Result<()> {
    let asked = StreamingOutputCallRequest {
        response_parameters: RESPONSES.map(of_size).into(),
        ..Default::default()
    };
    let mut replies = client.streaming_output_call(asked).await?.into_inner();
    for size in RESPONSES {
        next(&mut replies, size).await?;
    }
    end(&mut replies).await
}

async fn ping_pong(mut client: Client) -> anyhow::Result<()> {
    let (sender, receiver) = mpsc::channel(1);
    let call = client.full_duplex_call(ReceiverStream::new(receiver));
    sender.send(ping(REQUESTS[0], RESPONSES[0])).await?;
    let mut replies = call.await?.into_inner();
    for (number, (request, response)) in REQUESTS.into_iter().zip(RESPONSES).enumerate() {
        if number > 0 {
            sender.send(ping(request, response)).await?;
        }
        next(&mut replies, response).await?;
    }
    drop(sender);
    end(&mut replies).await
}

async fn empty_stream(mut client: Client) -> anyhow::Result<()> {
    let call = client.full_duplex_call(tokio_stream::empty());
    end(&mut call.await?.into_inner()).await
}

async fn custom_metadata(mut client: Client) -> anyhow::Result<()> {
    fn told<T>(message: T) -> Request<T> {
        let mut request = Request::new(message);
        request
            .metadata_mut()
            .insert(INITIAL, VALUE.parse().expect("it is ASCII"));
        let value = tonic::metadata::BinaryMetadataValue::from_bytes(&BINARY);
        request.metadata_mut().insert_bin(TRAILING, value);
        request
    }
    let check = |initial: &tonic::metadata::MetadataMap,
                 trailing: &tonic::metadata::MetadataMap| {
        let value = initial.get(INITIAL);
        ensure!(value.is_some_and(|value| value == VALUE), "{value:?}");
        let value = trailing.get_bin(TRAILING).map(|value| value.to_bytes());
        ensure!(
            value
                .as_ref()
                .is_some_and(|value| matches!(value, Ok(bytes) if bytes[..] == BINARY)),
            "{value:?}"
        );
        anyhow::Ok(())
    };
    let one = SimpleRequest {
        response_size: 1,
        payload: Some(payload(1)),
        ..Default::default()
    };
    // tonic joins the trailers of a good unary RPC to its headers.
    let reply = client.unary_call(told(one)).await?;
    check(reply.metadata(), reply.metadata())?;
    let messages = tokio_stream::iter([ping(1, 1)]);
    let reply = client.full_duplex_call(told(messages)).await?;
    let initial = reply.metadata().clone();
    let mut replies = reply.into_inner();
    next(&mut replies, 1).await?;
    let trailing = replies.trailers().await?.context("no trailers")?;
    check(&initial, &trailing)
}

async fn status_code_and_message(mut client: Client) -> anyhow::Result<()> {
    let status = EchoStatus {
        code: 2,
        message: "test status message".into(),
    };
    let is = |error: &Status| {
        ensure!(error.code() == Code::Unknown, "{error}");
        ensure!(error.message() == "test status message", "{error}");
        anyhow::Ok(())
    };
    let asked = SimpleRequest {
        response_status: Some(status.clone()),
        ..Default::default()
    };
    is(&failure(client.unary_call(asked).await)?)?;
    let asked = StreamingOutputCallRequest {
        response_status: Some(status),
        ..Default::default()
    };
    match client.full_duplex_call(tokio_stream::iter([asked])).await {
        Err(error) => is(&error),
        Ok(replies) => is(&failure(replies.into_inner().message().await)?),
    }
}

async fn special_status_message(mut client: Client) -> anyhow::Result<()> {
    const TEXT: &str = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n";
    let asked = SimpleRequest {
        response_status: Some(EchoStatus {
            code: 2,
            message: TEXT.into(),
        }),
        ..Default::default()
    };
    let error = failure(client.unary_call(asked).await)?;
    ensure!(
        error.code() == Code::Unknown && error.message() == TEXT,
        "{error}"
    );
    Ok(())
}

async fn unimplemented_method(mut client: Client) -> anyhow::Result<()> {
    let error = failure(client.unimplemented_call(Empty {}).await)?;
    ensure!(error.code() == Code::Unimplemented, "{error}");
    Ok(())
}

async fn unimplemented_service(channel: Channel) -> anyhow::Result<()> {
    let mut client = UnimplementedServiceClient::new(channel);
    let error = failure(client.unimplemented_call(Empty {}).await)?;
    ensure!(error.code() == Code::Unimplemented, "{error}");
    Ok(())
}

async fn timeout_on_sleeping_server(mut client: Client) -> anyhow::Result<()> {
    let (sender, receiver) = mpsc::channel(1);
    let asked = StreamingOutputCallRequest {
        payload: Some(payload(27_182)),
        ..Default::default()
    };
    sender.send(asked).await?;
    let mut request = Request::new(ReceiverStream::new(receiver));
    request.set_timeout(Duration::from_millis(1));
    let error = match client.full_duplex_call(request).await {
        Err(error) => error,
        Ok(replies) => failure(replies.into_inner().message().await)?,
    };
    // The client's own clock may be first, and tonic's says it with another code.
    let own = error.code() == Code::Cancelled && error.message() == "Timeout expired";
    ensure!(own || error.code() == Code::DeadlineExceeded, "{error}");
    Ok(())
}

async fn cancel_after_begin(mut client: Client) -> anyhow::Result<()> {
    let (sender, receiver) = mpsc::channel(1);
    let call = client.streaming_input_call(ReceiverStream::new(receiver));
    // Begun, with headers only; dropping it is a tonic client's way to cancel.
    let early = timeout(Duration::from_millis(50), call).await;
    ensure!(early.is_err(), "it ended without its upload's end");
    drop(sender);
    empty_unary(client).await
}

async fn cancel_after_first_response(mut client: Client) -> anyhow::Result<()> {
    let (sender, receiver) = mpsc::channel(1);
    sender.send(ping(27_182, 31_415)).await?;
    let call = client.full_duplex_call(ReceiverStream::new(receiver));
    let mut replies = call.await?.into_inner();
    next(&mut replies, 31_415).await?;
    drop((replies, sender));
    empty_unary(client).await
}

async fn concurrent_large_unary(client: Client) -> anyhow::Result<()> {
    let mut all = JoinSet::new();
    for _ in 0..CONCURRENT {
        all.spawn(large_unary(client.clone()));
    }
    all.join_all().await.into_iter().collect()
}

fn large() -> SimpleRequest {
    SimpleRequest {
        response_size: LARGE.1 as i32,
        payload: Some(payload(LARGE.0)),
        ..Default::default()
    }
}

fn is_large(reply: Response<SimpleResponse>) -> anyhow::Result<()> {
    let size = reply.into_inner().payload.unwrap_or_default().body.len();
    ensure!(size == LARGE.1, "{size} bytes came, not {}", LARGE.1);
    Ok(())
}

fn ping(request: usize, response: usize) -> StreamingOutputCallRequest {
    StreamingOutputCallRequest {
        response_parameters: vec![of_size(response)],
        payload: Some(payload(request)),
        ..Default::default()
    }
}

fn of_size(size: usize) -> ResponseParameters {
    ResponseParameters {
        size: size as i32,
        interval_us: 0,
    }
}

async fn next(
    replies: &mut Streaming<StreamingOutputCallResponse>,
    size: usize,
) -> anyhow::Result<()> {
    let reply = replies.message().await?.context("no more replies")?;
    let came = reply.payload.unwrap_or_default().body.len();
    ensure!(came == size, "{came} bytes came, not {size}");
    Ok(())
}

async fn end(replies: &mut Streaming<StreamingOutputCallResponse>) -> anyhow::Result<()> {
    ensure!(replies.message().await?.is_none(), "a reply too many");
    Ok(())
}

fn failure<T>(result: Result<T, Status>) -> anyhow::Result<Status> {
    result.err().context("it didn't fail")
}

const REQUESTS: [usize; 4] = [27_182, 8, 1_828, 45_904];
const RESPONSES: [usize; 4] = [31_415, 9, 2_653, 58_979];
const VALUE: &str = "test_initial_metadata_value";
const BINARY: [u8; 3] = [0xab, 0xab, 0xab];
