//! The client of the control API: one request over the Unix socket; failures are explained in words.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use super::api::{ErrorBody, ErrorDetail};
use crate::group;

/// How long the daemon may take. A probe and a doctor's round wait for backends that do not answer.
const ANSWER_TIMEOUT: Duration = Duration::from_mins(2);
/// The longest answer: a hundred thousand routes or blocked prefixes fit.
const MAX_ANSWER: usize = 256 * 1024 * 1024;

/// The longest line of an answer that goes on; those of the access log have less than a tenth.
const MAX_LINE: usize = 64 * 1024;

/// Calls the daemon behind one control socket.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No socket in that place.
    #[error(
        "there is no control socket {0}: is edged running? (`systemctl status edged`; --control names another socket)"
    )]
    Missing(PathBuf),
    /// A socket that this user may not use.
    #[error("no permission for the control socket {}: run as root, or {}", .0.display(), group::how_to_join(group::edge()))]
    Permission(PathBuf),
    /// A socket on which nobody listens.
    #[error(
        "nobody answers on the control socket {0}: edged is not running or was killed (`systemctl status edged`)"
    )]
    NobodyThere(PathBuf),
    /// The daemon went away, or something else is wrong with the socket.
    #[error("the control socket {0}: {1}")]
    Io(PathBuf, io::Error),
    /// The daemon took too long.
    #[error("edged did not answer within {} seconds", ANSWER_TIMEOUT.as_secs())]
    Timeout,
    /// Something answers that does not speak the control API.
    #[error("{0} does not answer like edged: {1}")]
    NotEdged(PathBuf, String),
    /// The daemon refused.
    #[error("{}", .0.message)]
    Refused(ErrorDetail),
}

/// A successful answer: the JSON as the daemon wrote it.
#[derive(Clone, Debug)]
pub struct Answer {
    socket: PathBuf,
    body: Bytes,
}

impl Answer {
    /// The JSON, byte for byte.
    pub fn json(&self) -> &[u8] {
        &self.body
    }

    /// The JSON, read.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, ClientError> {
        serde_json::from_slice(&self.body).map_err(|error| {
            ClientError::NotEdged(
                self.socket.clone(),
                format!("{error}; edgectl and edged may be of different versions"),
            )
        })
    }
}

impl Answer {
    /// An item of the JSON, read.
    pub fn item<T: DeserializeOwned>(&self, value: &serde_json::Value) -> Result<T, ClientError> {
        T::deserialize(value).map_err(|error| ClientError::NotEdged(self.socket.clone(), error.to_string()))
    }
}

/// An answer that goes on.
#[derive(Debug)]
pub struct Lines {
    client: Client,
    body: Incoming,
    bytes: BytesMut,
}

impl Lines {
    /// The next line without its end; `None` when the daemon has ended the answer.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            if let Some(end) = self.bytes.iter().position(|byte| *byte == b'\n') {
                let line = self.bytes.split_to(end + 1);
                return Ok(Some(line.freeze().slice(..end)));
            }
            if self.bytes.len() > MAX_LINE {
                let error = format!("a line is longer than {MAX_LINE} bytes");
                return Err(ClientError::NotEdged(self.client.socket.clone(), error));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => self.bytes.extend_from_slice(frame.data_ref().map_or(&[], |data| data)),
                Some(Err(error)) => return Err(self.client.io(io::Error::other(error))),
            }
        }
    }
}

impl Client {
    /// A client of the daemon behind `socket`; it connects with each call.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Asks for what is at `path`.
    pub async fn get(&self, path: &str) -> Result<Answer, ClientError> {
        self.call(Method::GET, path, Bytes::new()).await
    }

    /// Asks for what `fields` select of `path`.
    pub async fn select(&self, path: &str, fields: &(impl Serialize + Sync)) -> Result<Answer, ClientError> {
        let body = self.body(fields)?;
        self.call(Method::GET, path, body).await
    }

    /// Sends `fields` to `path`.
    pub async fn post(&self, path: &str, fields: &(impl Serialize + Sync)) -> Result<Answer, ClientError> {
        let body = self.body(fields)?;
        self.call(Method::POST, path, body).await
    }

    /// Deletes what `fields` name at `path`; `()` where the path alone names it.
    pub async fn delete(&self, path: &str, fields: &(impl Serialize + Sync)) -> Result<Answer, ClientError> {
        let body = self.body(fields)?;
        self.call(Method::DELETE, path, body).await
    }

    fn body(&self, fields: &impl Serialize) -> Result<Bytes, ClientError> {
        let body = serde_json::to_vec(fields).map_err(|error| self.io(io::Error::other(error)))?;
        Ok(body.into())
    }

    async fn call(&self, method: Method, path: &str, body: Bytes) -> Result<Answer, ClientError> {
        tokio::time::timeout(ANSWER_TIMEOUT, self.exchange(method, path, body))
            .await
            .map_err(|_| ClientError::Timeout)?
    }

    /// Asks for an answer that goes on, a line at a time.
    pub async fn lines(&self, path: &str, fields: &(impl Serialize + Sync)) -> Result<Lines, ClientError> {
        let response = self.send(Method::GET, path, self.body(fields)?);
        let response =
            tokio::time::timeout(ANSWER_TIMEOUT, response).await.map_err(|_| ClientError::Timeout)??;
        if response.status() != StatusCode::OK {
            return Err(self.read(response).await.err().unwrap_or(ClientError::Timeout));
        }
        Ok(Lines { client: self.clone(), body: response.into_body(), bytes: BytesMut::new() })
    }

    async fn exchange(&self, method: Method, path: &str, body: Bytes) -> Result<Answer, ClientError> {
        let response = self.send(method, path, body).await?;
        self.read(response).await
    }

    /// Sends the request; returns the head of the answer.
    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>, ClientError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.io(error))?;
        let http = |error: hyper::Error| {
            if error.is_parse() {
                ClientError::NotEdged(self.socket.clone(), error.to_string())
            } else {
                self.io(io::Error::other(error))
            }
        };
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
        // It ends with the stream; its error comes out of the request as well.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "edged")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| self.io(io::Error::other(error)))?;
        sender.send_request(request).await.map_err(http)
    }

    /// Reads the body of an answer.
    async fn read(&self, response: Response<Incoming>) -> Result<Answer, ClientError> {
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await
            .map_err(|error| self.io(io::Error::other(error)))?
            .to_bytes();
        match status {
            StatusCode::OK => Ok(Answer { socket: self.socket.clone(), body }),
            _ => Err(match serde_json::from_slice::<ErrorBody>(&body) {
                Ok(body) => ClientError::Refused(body.error),
                Err(_) => ClientError::NotEdged(self.socket.clone(), format!("HTTP status {status}")),
            }),
        }
    }

    fn io(&self, error: io::Error) -> ClientError {
        let socket = self.socket.clone();
        match error.kind() {
            io::ErrorKind::NotFound => ClientError::Missing(socket),
            io::ErrorKind::PermissionDenied => ClientError::Permission(socket),
            io::ErrorKind::ConnectionRefused => ClientError::NobodyThere(socket),
            _ => ClientError::Io(socket, error),
        }
    }
}
