//! A line on the terminal while the operator waits. It goes to standard error, vanishes, and is left out elsewhere.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use super::{Output, units};

/// Shorter work shows nothing.
const PATIENCE: Duration = Duration::from_millis(400);
/// Between two pictures.
const EVERY: Duration = Duration::from_millis(200);

/// The line.
pub(super) struct Progress {
    is_shown: bool,
    began: Instant,
}

impl Progress {
    pub(super) fn new(output: Output) -> Self {
        let can_erase = std::env::var_os("TERM").is_some_and(|name| name != "dumb");
        Self { is_shown: !output.json && can_erase && io::stderr().is_terminal(), began: Instant::now() }
    }

    /// Waits for `work` and shows what is waited for, and for how long already.
    pub(super) async fn during<T>(&self, what: &str, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        let mut pause = PATIENCE.saturating_sub(self.began.elapsed());
        loop {
            tokio::select! {
                done = &mut work => {
                    self.write("");
                    return done;
                }
                () = tokio::time::sleep(pause.max(EVERY)) => {}
            }
            pause = EVERY;
            let seconds = units::age(Duration::from_secs(self.began.elapsed().as_secs().max(1)));
            self.write(&format!("{what} ({seconds})"));
        }
    }

    /// Where standard error is closed nobody is left to be told.
    fn write(&self, line: &str) {
        if self.is_shown {
            let _ = write!(io::stderr(), "\r{line}\x1b[K");
        }
    }
}
