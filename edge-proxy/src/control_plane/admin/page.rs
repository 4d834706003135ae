//! The page for people: one document with its style, its script and its first data inside.
//!
//! Everything that changes is drawn by the script, from the same JSON that it then asks for every two
//! seconds; so there is one place that decides how a thing looks. The policy lets the browser run
//! exactly this script and load nothing from elsewhere; the script only ever sets text, never HTML.

use axum::{
    http::header,
    response::{Html, IntoResponse, Response},
};
use uuid::Uuid;

use super::overview::Overview;

/// The page with `overview` as its first data.
pub(super) fn render(overview: &Overview<'_>) -> Response {
    // In a data block of HTML, `<` could end it (`</script>`); in JSON it can be written so.
    let data = serde_json::to_string(overview).unwrap_or_else(|_| "null".to_owned());
    let data = data.replace('<', "\\u003c");
    let nonce = Uuid::new_v4().simple().to_string();
    let page = PAGE
        .replace("{{nonce}}", &nonce)
        .replace("{{style}}", STYLE)
        .replace("{{script}}", SCRIPT)
        // Last: nothing in the data may be taken for a placeholder.
        .replacen("{{data}}", &data, 1);
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; \
         connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    ([(header::CONTENT_SECURITY_POLICY, policy)], Html(page)).into_response()
}

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
