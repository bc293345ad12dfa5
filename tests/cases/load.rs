//! Changes while clients come and go: not one of them may fail.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use lab::{
    Edged, Lab, Result, ensure,
    hello::ClientHello,
    service,
    stream::{End, Pace, Pattern},
    wait::{self, SOON},
};

use crate::{case, greeting};

/// How many clients at a time.
const CLIENTS: usize = 4;

/// How many of them at least are served beside each change.
const BESIDE: usize = 5;

/// Runs `change` so many `times` while clients ask for `name` without pause and must get `answer` each time.
fn under_load(
    lab: &Lab,
    name: &str,
    answer: &str,
    times: usize,
    change: impl Fn(usize) -> Result<()>,
) -> Result<()> {
    let over = AtomicBool::new(false);
    let served = AtomicUsize::new(0);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        let got = greeting(lab, name)?;
                        ensure!(got == answer, "{name} got {got:?}");
                        served.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        let changed = (0..times).try_for_each(|index| {
            let before = served.load(Ordering::Relaxed);
            change(index)?;
            // A failed client reports it at the end.
            wait::until_true("clients beside the change", SOON, || {
                let is_over = clients.iter().all(thread::ScopedJoinHandle::is_finished);
                is_over || served.load(Ordering::Relaxed) >= before + BESIDE
            })
        });
        over.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().unwrap_or_else(|_| lab::bail!("a client panicked"))?;
        }
        changed
    })
}

#[test]
fn routes_come_and_go_under_load() -> Result<()> {
    case(|lab| {
        let _stable = service::named(&lab.home, lab.home_at(443), "stable")?;
        let _other = service::named(&lab.home, lab.home_at(1001), "other")?;
        let body = format!("[[route]]\nhost = \"stable.example\"\nto = \"{}\"\n", lab.home_address());
        let edged = Edged::start(lab, &body)?;
        let to = lab.home_at(1001).to_string();
        under_load(lab, "stable.example", "stable", 40, |index| {
            let name = format!("r{index}.example");
            edged.edgectl().text(&["routes", "add", &name, &to])?;
            ensure!(greeting(lab, &name)? == "other", "{name} is added but does not lead there");
            edged.edgectl().text(&["routes", "remove", &name])?;
            ensure!(greeting(lab, &name)?.starts_with('\u{15}'), "{name} is removed but still leads there");
            Ok(())
        })
    })
}

#[test]
fn reloads_under_load_fail_no_request() -> Result<()> {
    const LENGTH: u64 = 64 << 20;
    let down = Pattern::new(5);
    case(|lab| {
        let _stable = service::named(&lab.home, lab.home_at(443), "stable")?;
        let hello = ClientHello::new("long.example").records();
        let hello_length = hello.len();
        let _long = service::Service::start(&lab.home, lab.home_at(1001), move |mut stream| {
            std::io::Read::read_exact(&mut stream, &mut vec![0; hello_length])?;
            // The client reads after all reloads.
            stream.set_write_timeout(Some(wait::patient(10 * SOON)))?;
            stream.set_read_timeout(Some(wait::patient(10 * SOON)))?;
            down.send(&mut stream, LENGTH / 2, Pace::Steady)?;
            // The second half goes when the client says so, after all reloads.
            crate::expect(&mut stream, "go")?;
            let whole = down.bytes(usize::try_from(LENGTH)?);
            std::io::Write::write_all(&mut stream, &whole[whole.len() / 2..])?;
            Ok(())
        })?;
        let body = |extra: &str| {
            format!(
                "[[route]]\nhost = \"stable.example\"\nto = \"{}\"\n[[route]]\nhost = \"long.example\"\nto = \"{}\"\n{extra}",
                lab.home_address(),
                lab.home_at(1001)
            )
        };
        let edged = Edged::start(lab, &body(""))?;
        let mut live = lab.client.connect(lab.edge.at(443))?;
        std::io::Write::write_all(&mut live, &hello)?;
        under_load(lab, "stable.example", "stable", 20, |index| {
            let extra = format!("[[route]]\nhost = \"r{index}.example\"\nto = \"{}\"\n", lab.home_address());
            edged.rewrite(&body(&extra))?;
            edged.edgectl().text(&["reload"])?;
            ensure!(greeting(lab, &format!("r{index}.example"))? == "stable");
            edged.signal(lab::Signal::HUP)
        })?;
        std::io::Write::write_all(&mut live, b"go")?;
        let received = down.receive(&mut live, Pace::Steady)?;
        ensure!(received == (LENGTH, End::Fin), "the connection from before: {received:?}");
        Ok(())
    })
}
