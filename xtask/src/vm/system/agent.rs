//! The host's access to the machine: a shell behind a virtio serial port, which needs neither a network nor a
//! login.
//!
//! A request is a line with a length, followed by that many bytes of script. The answer is a line with the
//! exit code and a length, followed by that many bytes of the script's output.

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use lab::wait;

/// Where the agent is in the image.
pub(super) const PROGRAM: &str = "usr/local/sbin/lab-agent";
/// The name of its port.
pub(super) const PORT: &str = "lab";
/// It tells that it listens.
const READY: &str = "ready";
pub(super) const SCRIPT: &str = "#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C
exec 3<>/dev/virtio-ports/lab
cd /root
echo ready >&3
while read -r length <&3; do
    head -c \"$length\" <&3 >/run/lab-request
    timeout 900 sh -e /run/lab-request >/run/lab-answer 2>&1 </dev/null 3>&-
    echo \"$? $(wc -c </run/lab-answer)\" >&3
    cat /run/lab-answer >&3
done
";

/// Its unit: after everything else, so that an answer means that the machine has booted.
pub(super) fn unit() -> String {
    format!(
        "[Unit]\nDescription=Takes orders of the lab\nAfter=ssh.service\n\n\
         [Service]\nExecStart=/{PROGRAM}\nRestart=always\nRestartSec=1s\n\n[Install]\nWantedBy=multi-user.target\n"
    )
}

/// The line to the agent.
pub(super) struct Agent {
    stream: BufReader<UnixStream>,
}

impl Agent {
    /// Connects to the port's socket as soon as qemu has it, and waits until the agent speaks.
    pub(super) fn connect(socket: &Path, limit: Duration) -> Result<Self> {
        wait::until_true("qemu's socket", wait::SOON, || socket.exists())?;
        let stream = UnixStream::connect(socket).context("connecting to the agent's port")?;
        stream.set_read_timeout(Some(limit))?;
        let mut agent = Self { stream: BufReader::new(stream) };
        let line = agent.line().context("the machine did not boot")?;
        ensure!(line == READY, "the agent began with {line:?}");
        Ok(agent)
    }

    /// Runs a script that must succeed, and gives what it printed.
    pub(super) fn run(&mut self, script: &str) -> Result<String> {
        match self.attempt(script)? {
            (0, text) => Ok(text),
            (code, text) => bail!("`{}` ended with {code}: {}", script.trim(), text.trim()),
        }
    }

    /// Runs a script; its exit code and what it printed.
    pub(super) fn attempt(&mut self, script: &str) -> Result<(i32, String)> {
        self.send(script)?;
        let line = self.line()?;
        // It was killed and started again: the request is lost.
        ensure!(line != READY, "the agent was started again during `{}`", script.trim());
        let (code, length) = line.split_once(' ').with_context(|| format!("not an answer: {line:?}"))?;
        let mut text = vec![0; length.parse()?];
        self.stream.read_exact(&mut text)?;
        Ok((code.parse()?, String::from_utf8_lossy(&text).into_owned()))
    }

    /// Sends a script whose answer cannot be waited for: it turns the machine off.
    pub(super) fn send(&mut self, script: &str) -> Result<()> {
        let mut stream = self.stream.get_ref();
        Ok(stream.write_all(format!("{}\n{script}", script.len()).as_bytes())?)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let length = self.stream.read_line(&mut line).context("waiting for the agent")?;
        ensure!(length > 0, "the machine has turned itself off");
        Ok(line.trim_end().to_owned())
    }
}
