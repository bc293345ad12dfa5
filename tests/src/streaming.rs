//! A stream through an echo, in both directions at once, for as long as a case takes: every byte must come
//! back, whatever the case does meanwhile.

use std::{
    io::Read,
    net::{Shutdown, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    stream::{End, Pace, Pattern},
    wait::{self, SOON},
};

/// Bytes after which another pattern begins.
const ROUND: u64 = 1 << 20;

/// A stream that goes on until it is ended.
#[derive(Debug)]
pub struct Streaming {
    over: Arc<AtomicBool>,
    back: Arc<AtomicU64>,
    sending: JoinHandle<Result<u64>>,
    receiving: JoinHandle<Result<u64>>,
}

impl Streaming {
    /// Begins. On the other end has to be an [`echo`](crate::service::echo) that owes nothing yet.
    pub fn start(stream: TcpStream) -> Result<Self> {
        let (over, back) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let sending = thread::spawn({
            let (over, mut stream) = (Arc::clone(&over), stream.try_clone()?);
            move || {
                let mut rounds = 0;
                while !over.load(Ordering::Relaxed) {
                    Pattern::new(rounds).send(&mut stream, ROUND, Pace::Uneven)?;
                    rounds += 1;
                }
                stream.shutdown(Shutdown::Write)?;
                Ok(rounds)
            }
        });
        let receiving = thread::spawn({
            let back = Arc::clone(&back);
            move || {
                for rounds in 0.. {
                    match Pattern::new(rounds).receive(&mut (&stream).take(ROUND), Pace::Uneven)? {
                        (ROUND, _) => drop(back.fetch_add(ROUND, Ordering::Relaxed)),
                        (0, End::Fin) => return Ok(rounds),
                        (received, end) => bail!("{end:?} {received} bytes into round {rounds}"),
                    }
                }
                bail!("it has no end")
            }
        });
        Ok(Self { over, back, sending, receiving })
    }

    /// Waits until so many more bytes than now have come back.
    pub fn wait_for_more(&self, bytes: u64) -> Result<()> {
        let goal = self.back.load(Ordering::Relaxed) + bytes;
        wait::until("the stream to go on", SOON, || {
            // Errors are reported at the end.
            let is_there = self.back.load(Ordering::Relaxed) >= goal || self.receiving.is_finished();
            is_there.then_some(())
        })
    }

    /// Ends the stream in order; gives the bytes that went each way.
    pub fn end(self) -> Result<u64> {
        self.over.store(true, Ordering::Relaxed);
        let join = |thread: JoinHandle<Result<u64>>| {
            thread.join().unwrap_or_else(|_| bail!("a thread of the stream panicked"))
        };
        let (received, sent) = (join(self.receiving), join(self.sending));
        let (received, sent) = (received.context("receiving")?, sent.context("sending")?);
        ensure!(received == sent, "{received} of {sent} MiB came back");
        Ok(sent * ROUND)
    }
}
