//! A disk that takes seconds for each fsync: the call that changes something waits for it, and nothing else does.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, net::UnixDatagram},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use lab::{
    Context, Edged, Lab, Result, ensure,
    require::{self, Need},
    service,
    wait::SOON,
};

use crate::greeting;

/// The delay that strace(1) adds to each fsync; a change needs three.
const DELAY: Duration = Duration::from_secs(3);
/// The service manager's patience: shorter than one fsync.
const WATCHDOG: Duration = Duration::from_millis(2500);

#[test]
fn a_slow_disk_delays_the_answer_and_nothing_else() -> Result<()> {
    if require::all(&[Need::Namespaces, Need::Program("strace", "strace")]) {
        Lab::case(slow_disk)
    } else {
        Ok(())
    }
}

fn slow_disk(lab: &Lab) -> Result<()> {
    let one = service::named(&lab.home, lab.home_at(1001), "one")?;
    let _two = service::named(&lab.home, lab.home_at(1002), "two")?;
    let (first, second) = (lab.home_at(1001).to_string(), lab.home_at(1002).to_string());
    let body = format!(
        "[[pool]]\nname = \"p\"\nhealth = {{ kind = \"tcp\", interval = \"200ms\", timeout = \"1s\", rise = 2, fall = 2 }}\n\
         [[pool.backend]]\nto = \"{first}\"\n[[pool.backend]]\nto = \"{second}\"\n\
         [[route]]\nhost = \"pool.example\"\nto = \"p\"\n"
    );
    let path = lab.directory().join("notify.sock");
    let manager = UnixDatagram::bind(&path)?;
    // As systemd's own is.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777))?;
    manager.set_read_timeout(Some(Duration::from_millis(100)))?;
    let delay = format!("inject=fsync:delay_exit={}", DELAY.as_micros());
    let edged = Edged::plan(lab, &body)
        .environment("NOTIFY_SOCKET", &path.to_string_lossy())
        .environment("WATCHDOG_USEC", &WATCHDOG.as_micros().to_string())
        // -D: edged stays the process that was started.
        .by(&[
            "strace",
            "-D",
            "-f",
            "--seccomp-bpf",
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            "trace=fsync",
            "-e",
            &delay,
        ])
        .start()?;
    let edgectl = edged.edgectl();
    let is = |state: &str| {
        edgectl.until(&["backends", "list"], |backends| {
            let all = backends.as_array().context("a list")?;
            let backend = all.iter().find(|backend| backend["to"] == first).context("not listed")?;
            ensure!(backend["state"] == state, "{backend}");
            Ok(())
        })
    };
    let over = AtomicBool::new(false);
    let longest = std::thread::scope(|scope| {
        let watching = scope.spawn(|| -> Result<Duration> {
            let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
            let mut buffer = [0; 4096];
            while !over.load(Ordering::Relaxed) {
                if let Ok(length) = manager.recv(&mut buffer)
                    && String::from_utf8_lossy(&buffer[..length]).contains("WATCHDOG=1")
                {
                    (last, longest) = (Instant::now(), longest.max(last.elapsed()));
                }
            }
            Ok(longest.max(last.elapsed()))
        });
        let tried = (|| {
            let adding = scope.spawn(|| {
                let started = Instant::now();
                edgectl.text(&["routes", "add", "new.example", &second])?;
                Ok::<_, lab::Error>(started.elapsed())
            });
            // Meanwhile a backend dies, which its checks notice, and other calls are answered.
            is("up")?;
            let died = Instant::now();
            drop(one);
            is("down")?;
            let noticed = died.elapsed();
            ensure!(!adding.is_finished(), "the disk was not slow: {noticed:?}");
            ensure!(greeting(lab, "pool.example")? == "two");
            let took = adding.join().map_err(|_| lab::Error::msg("a panic"))??;
            ensure!(took >= DELAY * 3, "answered before the disk: {took:?}");
            // On disk and in effect when it was answered.
            ensure!(fs::read_to_string(edged.state().join("state.toml"))?.contains("new.example"));
            ensure!(greeting(lab, "new.example")? == "two");
            eprintln!("a change took {took:?}, a dead backend was noticed and shown after {noticed:?}");
            Ok(())
        })();
        over.store(true, Ordering::Relaxed);
        let longest = watching.join().map_err(|_| lab::Error::msg("a panic"))??;
        tried.map(|()| longest)
    })?;
    eprintln!("the longest time between two signs of life: {longest:?}");
    ensure!(longest < WATCHDOG, "the watchdog would have killed it: {longest:?}");
    ensure!(WATCHDOG < DELAY && DELAY * 3 < SOON);
    Ok(())
}
