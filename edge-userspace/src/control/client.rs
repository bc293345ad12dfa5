//! The client of the control API: one request over the Unix socket; failures are explained in words.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
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
/// The longest line of an answer that is read line by line.
const MAX_LINE: usize = 1024 * 1024;

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

    /// Asks for what is at `path`, and passes on each line of the answer as it comes.
    pub async fn each_line<T: DeserializeOwned>(
        &self,
        path: &str,
        mut each: impl FnMut(T),
    ) -> Result<(), ClientError> {
        let lines = async {
            let response = self.send(Method::GET, path, Bytes::new()).await?;
            if response.status() != StatusCode::OK {
                return self.read(response).await.map(drop);
            }
            let mut body = response.into_body();
            let mut begun = Vec::new();
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|error| self.io(io::Error::other(error)))?;
                begun.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
                while let Some(end) = begun.iter().position(|&byte| byte == b'\n') {
                    let line: Vec<u8> = begun.drain(..=end).collect();
                    each(Answer { socket: self.socket.clone(), body: line.into() }.read()?);
                }
                if begun.len() > MAX_LINE {
                    let message = format!("a line of more than {MAX_LINE} bytes");
                    return Err(ClientError::NotEdged(self.socket.clone(), message));
                }
            }
            Ok(())
        };
        tokio::time::timeout(ANSWER_TIMEOUT, lines).await.map_err(|_| ClientError::Timeout)?
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
