//! `api.Reverse`, and nothing of how it is served.

use proto::api::{ReverseRequest, ReverseResponse, reverse_server};
use tonic::{Request, Response, Status};

/// Returns what it is given with its Unicode scalar values in reverse order.
///
/// Scalar values are what Rust calls `char`: a letter with a combining accent is two of them, and
/// they change places.
#[derive(Debug, Clone, Copy)]
pub struct Reverse;

#[tonic::async_trait]
impl reverse_server::Reverse for Reverse {
    async fn reverse(
        &self,
        request: Request<ReverseRequest>,
    ) -> Result<Response<ReverseResponse>, Status> {
        let content = request.into_inner().content.chars().rev().collect();
        Ok(Response::new(ReverseResponse { content }))
    }
}

#[cfg(test)]
mod tests {
    use proto::api::reverse_server::Reverse as _;

    use super::*;

    async fn reverse(content: &str) -> String {
        let request = Request::new(ReverseRequest {
            content: content.to_owned(),
        });
        Reverse.reverse(request).await.unwrap().into_inner().content
    }

    #[tokio::test]
    async fn scalar_values_change_places() {
        assert_eq!(reverse("").await, "");
        assert_eq!(reverse("reverse").await, "esrever");
        assert_eq!(reverse("Grüße").await, "eßürG");
        assert_eq!(reverse("a🦀b").await, "b🦀a");
        // A combining accent goes before its letter: scalar values, not what a reader sees as one.
        assert_eq!(reverse("e\u{301}").await, "\u{301}e");
    }

    #[tokio::test]
    async fn any_length_up_to_the_limit() {
        let content = "aß".repeat(grpc_service::MAX_MESSAGE / 3);
        let reversed = reverse(&content).await;
        assert_eq!(reversed.len(), content.len());
        assert_eq!(reverse(&reversed).await, content);
    }
}
