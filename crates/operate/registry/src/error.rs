//! What is refused, in the API's own words: a code, a status, and a sentence that says why.

use http::StatusCode;
use std::io;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    BlobUnknown,
    BlobUploadInvalid,
    BlobUploadUnknown,
    Busy,
    Denied,
    DigestInvalid,
    Full,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestUnknown,
    NameInvalid,
    NameUnknown,
    NotFound,
    PaginationInvalid,
    RangeInvalid,
    SizeInvalid,
    TooLarge,
    TooManyRequests,
    TooSlow,
    Unauthorized,
    Unavailable,
    Unknown,
    Unsupported,
}

impl Code {
    /// As the API calls it; what it has no name for has the nearest one.
    pub fn name(self) -> &'static str {
        match self {
            Code::BlobUnknown => "BLOB_UNKNOWN",
            Code::BlobUploadInvalid | Code::Busy | Code::RangeInvalid | Code::TooSlow => "BLOB_UPLOAD_INVALID",
            Code::BlobUploadUnknown => "BLOB_UPLOAD_UNKNOWN",
            Code::Denied | Code::Full => "DENIED",
            Code::DigestInvalid => "DIGEST_INVALID",
            Code::ManifestBlobUnknown => "MANIFEST_BLOB_UNKNOWN",
            Code::ManifestInvalid => "MANIFEST_INVALID",
            Code::ManifestUnknown => "MANIFEST_UNKNOWN",
            Code::NameInvalid => "NAME_INVALID",
            Code::NameUnknown => "NAME_UNKNOWN",
            Code::PaginationInvalid => "PAGINATION_NUMBER_INVALID",
            Code::SizeInvalid | Code::TooLarge => "SIZE_INVALID",
            Code::TooManyRequests => "TOOMANYREQUESTS",
            Code::Unauthorized => "UNAUTHORIZED",
            Code::Unavailable => "UNAVAILABLE",
            Code::NotFound | Code::Unsupported => "UNSUPPORTED",
            Code::Unknown => "UNKNOWN",
        }
    }

    pub fn status(self) -> StatusCode {
        match self {
            Code::BlobUnknown
            | Code::BlobUploadUnknown
            | Code::ManifestUnknown
            | Code::NameUnknown
            | Code::NotFound => StatusCode::NOT_FOUND,
            Code::BlobUploadInvalid
            | Code::DigestInvalid
            | Code::ManifestBlobUnknown
            | Code::ManifestInvalid
            | Code::NameInvalid
            | Code::PaginationInvalid
            | Code::SizeInvalid => StatusCode::BAD_REQUEST,
            Code::Busy => StatusCode::CONFLICT,
            Code::Denied => StatusCode::FORBIDDEN,
            Code::Full => StatusCode::INSUFFICIENT_STORAGE,
            Code::RangeInvalid => StatusCode::RANGE_NOT_SATISFIABLE,
            Code::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Code::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            Code::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Code::Unauthorized => StatusCode::UNAUTHORIZED,
            Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Code::Unsupported => StatusCode::METHOD_NOT_ALLOWED,
            Code::Unknown => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub code: Code,
    pub message: String,
}

pub type Result<T> = std::result::Result<T, Refused>;

pub fn refuse<T>(code: Code, message: impl Into<String>) -> Result<T> {
    Err(refused(code, message))
}

pub fn refused(code: Code, message: impl Into<String>) -> Refused {
    Refused {
        code,
        message: message.into(),
    }
}

impl Refused {
    pub fn body(&self) -> String {
        serde_json::json!({"errors": [{"code": self.code.name(), "message": self.message}]}).to_string()
    }
}

/// What the disk says is told to the log; a client learns no paths.
impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Refused {
        tracing::warn!(%error, "the registry's directory");
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                refused(Code::Full, "the registry's disk is full")
            }
            _ => refused(Code::Unknown, "the registry can't read or write its files"),
        }
    }
}
