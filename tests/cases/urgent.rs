//! Urgent (out-of-band) data: what stands behind an urgent byte arrives at once and whole, in every tier, either way,
//! while first bytes are read and while a connection is handed over. The urgent byte itself is skipped, as most
//! servers do; `sockmap` takes it for an ordinary one, and a flow leaves it to the other side.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    process::Command,
    thread,
};

use lab::{
    Context, Edged, Host, Lab, Result, ensure,
    hello::ClientHello,
    stream::{self, End, Pace, Pattern},
    wait::{self, SOON, patient},
};
use rustix::process::Signal;
use socket2::SockRef;

use crate::{case, expect};

const NAME: &str = "urgent.example";
/// Stands for an urgent byte in what is sent; the rest does not have it.
const URGENT: u8 = b'!';
/// First, last, alone, several, and two in a row.
const SCRIPTS: [&str; 6] =
    ["aaaaaaaa!bbbbbbbb", "!bbbbbbbb", "aaaaaaaa!", "!", "aaaa!bbbb!cccc!dddd", "aaaa!!bbbb"];

macro_rules! with_each_tier {
    ($($case:ident),+ $(,)?) => {
        mod copy { $(#[test] fn $case() -> lab::Result<()> { super::$case("copy") })+ }
        mod splice { $(#[test] fn $case() -> lab::Result<()> { super::$case("splice") })+ }
        mod sockmap { $(#[test] fn $case() -> lab::Result<()> { super::$case("sockmap") })+ }
        mod flow { $(#[test] fn $case() -> lab::Result<()> { super::$case("flow") })+ }
        mod auto { $(#[test] fn $case() -> lab::Result<()> { super::$case("auto") })+ }
    };
}

with_each_tier!(what_stands_behind_arrives_at_once, an_end_behind_loses_nothing, sprinkled_from_the_start);

/// Sends a text in which each `!` is an urgent byte.
fn say(stream: &mut TcpStream, text: &[u8]) -> Result<()> {
    for piece in text.split_inclusive(|byte| *byte == URGENT) {
        match piece {
            [before @ .., URGENT] => {
                stream.write_all(before)?;
                SockRef::from(&*stream).send_out_of_band(&[URGENT])?;
            }
            all => stream.write_all(all)?,
        }
    }
    Ok(())
}

fn without_urgent(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().copied().filter(|byte| *byte != URGENT).collect()
}

/// Whether `got` is all of `text`. One urgent byte is skipped, except by `sockmap`; of several, those that another
/// overtakes become ordinary ones for any receiver.
fn is_whole(tier: &str, text: &[u8], got: &[u8]) -> bool {
    let is_single = text.split(|byte| *byte == URGENT).count() == 2;
    let expected = without_urgent(text);
    if is_single && tier != "sockmap" { got == expected } else { without_urgent(got) == expected }
}

fn hello() -> Vec<u8> {
    ClientHello::new(NAME).post_quantum().records()
}

fn edged(lab: &Lab, tier: &str, extra: &str) -> Result<Edged> {
    let route = format!("{extra}[[route]]\nhost = \"{NAME}\"\nto = \"{}\"\n", lab.home_address());
    Edged::plan(lab, &route).daemon(&format!("datapath = \"{tier}\"")).start()
}

fn accept(listener: &TcpListener) -> Result<TcpStream> {
    listener.set_nonblocking(true)?;
    let (stream, _) = wait::until("a connection at home", SOON, || listener.accept().ok())?;
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(patient(SOON)))?;
    stream.set_write_timeout(Some(patient(SOON)))?;
    Ok(stream)
}

/// Both ends of a connection, behind the hello.
fn connected(lab: &Lab, listener: &TcpListener) -> Result<(TcpStream, TcpStream)> {
    let mut client = lab.client.connect(lab.edge.at(443))?;
    client.write_all(&hello())?;
    let mut home = accept(listener)?;
    let mut got = vec![0; hello().len()];
    home.read_exact(&mut got).context("reading the hello")?;
    ensure!(got == hello(), "the hello was changed");
    Ok((client, home))
}

/// The same once the tier carries: after bulk, where that decides.
fn carried(lab: &Lab, edged: &Edged, listener: &TcpListener, tier: &str) -> Result<(TcpStream, TcpStream)> {
    const BULK: u64 = 8 << 20;
    let (mut client, mut home) = connected(lab, listener)?;
    home.write_all(b"answer")?;
    expect(&mut client, "answer")?;
    if ["splice", "auto"].contains(&tier) {
        for (from, to) in [(&client, &home), (&home, &client)] {
            thread::scope(|scope| {
                let sending = scope.spawn(|| Pattern::new(7).send(&mut &*from, BULK, Pace::Steady));
                Pattern::new(7).receive_exactly(&mut &*to, BULK, Pace::Steady)?;
                sending.join().unwrap_or_else(|_| lab::bail!("the sender panicked"))
            })?;
        }
    }
    let becomes = if tier == "auto" { "flow" } else { tier };
    if ["sockmap", "flow"].contains(&becomes) {
        wait::until_ok(&format!("{becomes} to carry"), SOON, || {
            let connections = edged.edgectl().list("connections")?;
            let youngest = connections.iter().max_by_key(|connection| connection["id"].as_u64());
            ensure!(youngest.is_some_and(|connection| connection["datapath"] == becomes), "{connections:?}");
            Ok(())
        })?;
    }
    Ok((client, home))
}

/// Has everything reach the edge before the daemon looks, so that one event stands for all of it.
fn at_one_look(
    edged: &Edged,
    from: &Host,
    stream: &TcpStream,
    act: impl FnOnce() -> Result<()>,
) -> Result<()> {
    edged.signal(Signal::STOP)?;
    let done = act().and_then(|()| acknowledged(from, stream.local_addr()?));
    edged.signal(Signal::CONT)?;
    done
}

/// Waits until all that a socket was given is acknowledged, its FIN included.
fn acknowledged(host: &Host, local: SocketAddr) -> Result<()> {
    wait::until_ok("everything to be acknowledged", SOON, || {
        let mut ss = Command::new("ss");
        ss.args(["-tnH"]);
        let text = host.text_of(ss)?;
        let queue = text.lines().find_map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            (*fields.get(3)? == local.to_string()).then(|| fields.get(2).map(|queue| (*queue).to_owned()))?
        });
        ensure!(queue.as_deref() == Some("0"), "{queue:?} octets");
        Ok(())
    })
}

fn what_stands_behind_arrives_at_once(tier: &str) -> Result<()> {
    case(|lab| {
        let listener = lab.home.listen(lab.home_at(443))?;
        let edged = edged(lab, tier, "")?;
        let (mut client, mut home) = carried(lab, &edged, &listener, tier)?;
        for text in SCRIPTS {
            // A skipped byte may be the last: a byte of ours marks its place.
            let text = format!("{text}.");
            at_one_look(&edged, &lab.client, &client.try_clone()?, || say(&mut client, text.as_bytes()))?;
            let got = up_to_the_dot(&mut home).with_context(|| format!("{text} from the client"))?;
            ensure!(is_whole(tier, text.as_bytes(), &got), "{text} came as {}", got.escape_ascii());
            at_one_look(&edged, &lab.home, &home.try_clone()?, || say(&mut home, text.as_bytes()))?;
            let got = up_to_the_dot(&mut client).with_context(|| format!("{text} from home"))?;
            ensure!(is_whole(tier, text.as_bytes(), &got), "{text} came back as {}", got.escape_ascii());
        }
        Ok(())
    })
}

fn up_to_the_dot(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut got = Vec::new();
    while got.last() != Some(&b'.') {
        let mut byte = [0];
        stream
            .read_exact(&mut byte)
            .with_context(|| format!("after {:?}", got.escape_ascii().to_string()))?;
        got.extend(byte);
    }
    Ok(got)
}

fn an_end_behind_loses_nothing(tier: &str) -> Result<()> {
    case(|lab| {
        let listener = lab.home.listen(lab.home_at(443))?;
        let edged = edged(lab, tier, "")?;
        for text in SCRIPTS {
            for from_home in [false, true] {
                let (client, home) = carried(lab, &edged, &listener, tier)?;
                let (host, mut from, mut to) =
                    if from_home { (&lab.home, home, client) } else { (&lab.client, client, home) };
                at_one_look(&edged, host, &from.try_clone()?, || {
                    say(&mut from, text.as_bytes())?;
                    Ok(from.shutdown(Shutdown::Write)?)
                })?;
                let (got, end) =
                    stream::read_to_end(&mut to).with_context(|| format!("{text}, {from_home}"))?;
                ensure!(
                    is_whole(tier, text.as_bytes(), &got) && end == End::Fin,
                    "{text} (from home: {from_home}) came as {}, then {end:?}",
                    got.escape_ascii()
                );
                // The other direction lives on.
                to.write_all(b"still there")?;
                expect(&mut from, "still there")?;
                drop(to);
                stream::read_to_end(&mut from)?;
            }
        }
        Ok(())
    })
}

/// From the first byte on, so that every change of tier has urgent bytes around it.
fn sprinkled_from_the_start(tier: &str) -> Result<()> {
    const BLOCK: usize = 64 << 10;
    const BLOCKS: u8 = 64;
    case(|lab| {
        let listener = lab.home.listen(lab.home_at(443))?;
        let _edged = edged(lab, tier, "")?;
        let blocks = || (0..BLOCKS).map(|number| vec![128 + number; BLOCK]);
        for round in 0..8 {
            let (client, home) = connected(lab, &listener)?;
            let (mut from, mut to) = if round % 2 == 0 { (client, home) } else { (home, client) };
            let (got, end) = thread::scope(|scope| {
                let sending = scope.spawn(|| {
                    for mut block in blocks() {
                        block.push(URGENT);
                        say(&mut from, &block)?;
                    }
                    Ok(from.shutdown(Shutdown::Write)?)
                });
                let got = stream::read_to_end(&mut to);
                sending.join().unwrap_or_else(|_| lab::bail!("the sender panicked")).context("sending")?;
                got
            })?;
            let got = without_urgent(&got);
            let expected = blocks().collect::<Vec<_>>().concat();
            let differs = got.iter().zip(&expected).position(|(got, expected)| got != expected);
            ensure!(
                end == End::Fin && got == expected,
                "round {round}: {} bytes, then {end:?}; it differs at {differs:?}",
                got.len()
            );
        }
        Ok(())
    })
}

#[test]
fn first_bytes_with_an_urgent_one_among_them_are_read() -> Result<()> {
    case(|lab| {
        let listener = lab.home.listen(lab.home_at(443))?;
        let edged = edged(lab, "auto", "[limits]\nhello_timeout = \"20s\"\n")?;
        let hello = hello();
        for at in [0, 1, 5, 40, 1000, hello.len() - 1, hello.len()] {
            for stopped in [true, false] {
                let mut text = hello.clone();
                ensure!(!text.contains(&URGENT), "the hello has the sign in it");
                text.insert(at, URGENT);
                text.extend(b"behind");
                let mut client = lab.client.connect(lab.edge.at(443))?;
                let socket = client.try_clone()?;
                if stopped {
                    at_one_look(&edged, &lab.client, &socket, || say(&mut client, &text))?;
                } else {
                    say(&mut client, &text)?;
                }
                let mut home = accept(&listener).with_context(|| format!("behind {at} bytes"))?;
                let mut got = vec![0; hello.len() + "behind".len()];
                home.read_exact(&mut got).with_context(|| format!("behind {at} bytes"))?;
                ensure!(got == without_urgent(&text), "behind {at} bytes: changed");
                home.write_all(b"ok")?;
                expect(&mut client, "ok")?;
                say(&mut client, b"on!ward")?;
                expect(&mut home, "onward")?;
            }
        }
        Ok(())
    })
}

#[test]
fn a_proxy_header_and_a_postgresql_greeting_with_urgent_bytes_are_read() -> Result<()> {
    const SSL_REQUEST: &[u8] = &[0, 0, 0, 8, 4, 210, 22, 47];
    case(|lab| {
        let listener = lab.home.listen(lab.home_at(443))?;
        let edged = edged(
            lab,
            "auto",
            &format!(
                "[[listener]]\nname = \"l\"\nbind = [\"[::]:443\"]\nprotocol = \"tls\"\naccept_proxy = [\"{}\"]\n\
                 [[listener]]\nname = \"p\"\nbind = [\"[::]:5432\"]\nprotocols = [\"postgres\"]\n\
                 [[route]]\nhost = \"*\"\nprotocol = [\"postgres\"]\nto = \"{}\"\n",
                lab.client.v4,
                lab.home_at(443)
            ),
        )?;
        for at in [0, 3, 20, 44] {
            let mut text = b"PROXY TCP4 192.0.2.1 192.0.2.2 4000 443\r\n".to_vec();
            text.extend(hello());
            text.insert(at, URGENT);
            let mut client = lab.client.connect(lab.edge.at(443))?;
            let socket = client.try_clone()?;
            at_one_look(&edged, &lab.client, &socket, || say(&mut client, &text))?;
            let mut home = accept(&listener).with_context(|| format!("behind {at} bytes"))?;
            let mut got = vec![0; hello().len()];
            home.read_exact(&mut got)?;
            ensure!(got == hello(), "behind {at} bytes: changed");
        }
        for at in [0, 4, 8] {
            let mut text = SSL_REQUEST.to_vec();
            text.insert(at, URGENT);
            let mut client = lab.client.connect(lab.edge.at(5432))?;
            let socket = client.try_clone()?;
            at_one_look(&edged, &lab.client, &socket, || say(&mut client, &text))?;
            expect(&mut client, "S")?;
            client.write_all(&hello())?;
            let mut home = accept(&listener)?;
            let mut asked = [0; 8];
            home.read_exact(&mut asked)?;
            ensure!(asked == SSL_REQUEST, "{asked:?}");
            say(&mut home, b"!S")?;
            let mut got = vec![0; hello().len()];
            home.read_exact(&mut got).with_context(|| format!("behind {at} bytes"))?;
            ensure!(got == hello(), "behind {at} bytes: changed");
        }
        Ok(())
    })
}
