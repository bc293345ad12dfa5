//! The terminal below the screen of `edgectl top`: keys, signals, time. It is left as it was found, also after a panic.

use std::{future::pending, io, thread, time::Duration};

use ratatui::crossterm::{
    event::{self, Event, KeyEventKind},
    style::force_color_output,
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::{
    super::{Client, ClientError, Failure, Output},
    Sample,
    screen::{Screen, Wish},
};

/// Keys that may wait: a paste.
const KEYS: usize = 256;

/// The terminal as it was before, when this is dropped.
struct Restored;

impl Drop for Restored {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// Draws until the operator or a signal ends it, or `count` samples were shown.
pub(super) async fn run(
    daemon: &Client,
    output: Output,
    interval: Duration,
    count: Option<u64>,
) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    // Before the screen: a socket that is missing or forbidden is said like everywhere.
    let first = Sample::take(daemon).await?;
    force_color_output(output.colours);
    // This also restores the terminal when something panics.
    let mut terminal = ratatui::try_init()?;
    let _restored = Restored;
    let mut events = events()?;
    let mut screen = Screen::new(output, interval);
    screen.take(first);
    let (mut interval, mut taken) = (interval, 1);
    let mut next = Instant::now() + interval;
    let mut sample = None;
    loop {
        terminal.draw(|frame| screen.draw(frame))?;
        if count.is_some_and(|count| taken >= count) {
            return Ok(());
        }
        tokio::select! {
            () = sleep_until(next), if sample.is_none() => sample = Some(Box::pin(Sample::take(daemon))),
            result = async { match &mut sample { Some(sample) => sample.await, None => pending().await } } => {
                sample = None;
                next = Instant::now() + interval;
                match result {
                    Ok(sample) => {
                        taken += 1;
                        screen.take(sample);
                    }
                    // A daemon that restarts is back soon.
                    Err(Failure::Call(error)) => screen.lose(lost(&error)),
                    Err(other) => return Err(other),
                }
            }
            event = events.recv() => match event {
                Some(Event::Key(key)) if key.kind != KeyEventKind::Release => match screen.press(key) {
                    Wish::Quit => return Ok(()),
                    Wish::Refresh => next = Instant::now(),
                    Wish::Interval(new) => {
                        interval = new;
                        next = next.min(Instant::now() + interval);
                    }
                    Wish::Draw => {}
                },
                // Another size: drawn anew.
                Some(_) => {}
                None => return Ok(()),
            },
            () = signals.any() => return Ok(()),
        }
    }
}

fn lost(error: &ClientError) -> String {
    match error {
        ClientError::Refused(_) | ClientError::NotEdged(..) | ClientError::Permission(_) => error.to_string(),
        _ => "edged cannot be reached; waiting until it is back".to_owned(),
    }
}

/// The input of the terminal, read on a thread of its own, which ends with the process or the terminal.
fn events() -> io::Result<mpsc::Receiver<Event>> {
    let (sender, receiver) = mpsc::channel(KEYS);
    thread::Builder::new().name("keys".into()).spawn(move || {
        while let Ok(event) = event::read() {
            if sender.blocking_send(event).is_err() {
                break;
            }
        }
    })?;
    Ok(receiver)
}

/// The signals that end a program on a terminal.
struct Signals {
    terminate: Signal,
    hangup: Signal,
    interrupt: Signal,
    quit: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
        })
    }

    async fn any(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.quit.recv() => {}
        }
    }
}
