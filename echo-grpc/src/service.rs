//! `api.Echo`, and nothing of how it is served.

use proto::api::{EchoRequest, EchoResponse, echo_server};
use tonic::{Request, Response, Status};

/// Returns what it is given.
#[derive(Debug, Clone, Copy)]
pub struct Echo;

#[tonic::async_trait]
impl echo_server::Echo for Echo {
    async fn echo(&self, request: Request<EchoRequest>) -> Result<Response<EchoResponse>, Status> {
        let EchoRequest { content } = request.into_inner();
        Ok(Response::new(EchoResponse { content }))
    }
}

#[cfg(test)]
mod tests {
    use proto::api::echo_server::Echo as _;

    use super::*;

    #[tokio::test]
    async fn content_comes_back_unchanged() {
        for content in ["", "echo", "Grüße 🦀\n\0"] {
            let request = Request::new(EchoRequest {
                content: content.to_owned(),
            });
            assert_eq!(
                Echo.echo(request).await.unwrap().into_inner().content,
                content
            );
        }
    }
}
