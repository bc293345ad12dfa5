//! The daemon of the imagination on a control socket of its own.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use edge::control::ControlSocket;
use tokio::sync::oneshot;

use crate::fake::Fake;

/// A fake that runs; it ends when dropped.
pub(crate) struct Running {
    pub(crate) socket: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
    _directory: tempfile::TempDir,
}

impl Running {
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("control.sock");
        let (stop, stopped) = oneshot::channel();
        let control = ControlSocket::bind(&socket).unwrap();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let stopped = async { drop(stopped.await) };
            runtime.block_on(edge::control::serve(control, Arc::new(Fake::default()), stopped)).unwrap();
        });
        Self { socket, stop: Some(stop), thread: Some(thread), _directory: directory }
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            ended.unwrap();
            assert!(!self.socket.exists(), "the socket goes with its daemon");
        }
    }
}
