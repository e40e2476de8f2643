//! What the hub answers when it refuses: status, error code and name as IoT Hub's REST and SDKs know them.

use std::time::Duration;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::clock;

/// The sort of refusal; the SDKs map the code and the name to their exceptions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    InvalidProtocolVersion,
    ArgumentInvalid,
    Unauthorized,
    DeviceNotFound,
    ModuleNotFound,
    NotFound,
    JobNotFound,
    ConfigurationNotFound,
    DeviceNotOnline,
    DeviceAlreadyExists,
    JobAlreadyExists,
    ConfigurationAlreadyExists,
    PreconditionFailed,
    TooLarge,
    ServerError,
    NotImitated,
    DeviceTimeout,
}

impl Kind {
    /// HTTP status, numeric code, name.
    pub fn parts(self) -> (u16, u32, &'static str) {
        match self {
            Kind::InvalidProtocolVersion => (400, 400_001, "InvalidProtocolVersion"),
            Kind::ArgumentInvalid => (400, 400_004, "ArgumentInvalid"),
            Kind::Unauthorized => (401, 401_002, "IotHubUnauthorizedAccess"),
            Kind::DeviceNotFound => (404, 404_001, "DeviceNotFound"),
            Kind::ModuleNotFound => (404, 404_010, "ModuleNotFound"),
            Kind::NotFound => (404, 404_000, "NotFound"),
            Kind::ConfigurationNotFound => (404, 404_000, "ConfigurationNotFound"),
            Kind::JobNotFound => (404, 404_002, "JobNotFound"),
            Kind::DeviceNotOnline => (404, 404_103, "DeviceNotOnline"),
            Kind::DeviceAlreadyExists => (409, 409_001, "DeviceAlreadyExists"),
            Kind::ConfigurationAlreadyExists => (409, 409_000, "ConfigurationAlreadyExists"),
            Kind::JobAlreadyExists => (409, 409_000, "JobAlreadyExists"),
            Kind::PreconditionFailed => (412, 412_001, "PreconditionFailed"),
            Kind::TooLarge => (413, 413_001, "MessageTooLarge"),
            Kind::ServerError => (500, 500_001, "ServerError"),
            Kind::NotImitated => (501, 501_000, "NotImitated"),
            Kind::DeviceTimeout => (504, 504_101, "GatewayTimeout"),
        }
    }
}

/// One refusal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct HubError {
    pub kind: Kind,
    pub message: String,
    /// Direct methods nest their error as JSON inside `Message`.
    nested: bool,
    /// What a call waited in vain.
    waited: Option<Duration>,
}

impl HubError {
    pub fn new(kind: Kind, message: impl Into<String>) -> HubError {
        HubError { kind, message: message.into(), nested: false, waited: None }
    }

    /// Nothing came within this time.
    pub fn after(self, waited: Duration) -> HubError {
        HubError { waited: Some(waited), ..self }
    }

    /// In the shape that method calls answer with.
    pub fn for_method(mut self) -> HubError {
        self.nested = true;
        self
    }

    fn message_field(&self, tracking: &str) -> String {
        let (_, code, name) = self.kind.parts();
        if !self.nested {
            return format!("ErrorCode:{name};{}", self.message);
        }
        let stamp = clock::now();
        let mut field = json!({"errorCode": code, "trackingId": tracking, "message": self.message, "timestampUtc": stamp});
        if let (Some(waited), Some(field)) = (self.waited, field.as_object_mut()) {
            let (minutes, seconds) = (waited.as_secs() / 60, waited.as_secs() % 60);
            field.insert("info".into(), json!({"timeout": format!("00:{minutes:02}:{seconds:02}")}));
        }
        field.to_string()
    }
}

impl From<crate::twin::TwinError> for HubError {
    fn from(error: crate::twin::TwinError) -> HubError {
        HubError::new(Kind::ArgumentInvalid, error.to_string())
    }
}

impl From<anyhow::Error> for HubError {
    fn from(error: anyhow::Error) -> HubError {
        HubError::new(Kind::ServerError, format!("{error:#}"))
    }
}

impl IntoResponse for HubError {
    fn into_response(self) -> Response {
        let (status, _, name) = self.kind.parts();
        let tracking = format!("{}-TimeStamp:{}", crate::clock::unique(), clock::now());
        let exception = if self.nested { String::new() } else { format!("Tracking ID:{tracking}") };
        let body = json!({"Message": self.message_field(&tracking), "ExceptionMessage": exception});
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, [("iothub-errorcode", name)], axum::Json(body)).into_response()
    }
}
