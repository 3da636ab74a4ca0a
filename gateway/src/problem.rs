//! Errors of the HTTP interface, in one shape: a status, and a JSON body with
//! what went wrong for people and for programs.

use std::time::Duration;

use axum::Json;
use axum::http::header::{ALLOW, CONNECTION, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use proto::error::ErrorCode;
use serde_json::{Map, Value};

/// A request that was not served.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Problem {
    pub(crate) code: ErrorCode,
    pub(crate) message: String,
    /// Further members of the body.
    pub(crate) details: Map<String, Value>,
    allow: Option<&'static str>,
    closes: bool,
    retry_after_secs: Option<u64>,
}

impl Problem {
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            details: Map::new(),
            allow: None,
            closes: false,
            retry_after_secs: None,
        }
    }

    /// Not now, but after so long.
    pub(crate) fn after(self, wait: Duration) -> Self {
        Self {
            // Whoever comes a little early is only sent away again.
            retry_after_secs: Some((wait.as_millis().div_ceil(1_000) as u64).max(1)),
            ..self
        }
    }

    pub(crate) fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.details.insert(name.to_owned(), value.into());
        self
    }

    /// A part of the request has not been read, so that nothing can follow it
    /// on its connection.
    pub(crate) fn closing(self) -> Self {
        Self {
            closes: true,
            ..self
        }
    }

    pub(crate) fn method_not_allowed(allow: &'static str) -> Self {
        let message = format!("this path takes {allow}");
        Self {
            allow: Some(allow),
            ..Self::new(ErrorCode::MethodNotAllowed, message)
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.code.http_status();
        let mut body = self.details;
        body.insert("error".into(), self.message.into());
        body.insert("code".into(), self.code.as_str().into());
        body.insert("status".into(), status.into());
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(Value::Object(body))).into_response();
        let soon = (status == StatusCode::SERVICE_UNAVAILABLE).then_some(1);
        if let Some(secs) = self.retry_after_secs.or(soon) {
            response.headers_mut().insert(RETRY_AFTER, secs.into());
        }
        if let Some(allow) = self.allow {
            response
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static(allow));
        }
        if self.closes {
            response
                .headers_mut()
                .insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
