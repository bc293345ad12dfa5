//! `[[listener]]`: its keys, what must not be said twice, and the two listeners that there are where none is written.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use super::{
    document::Section,
    network::{prefixes, spoken_name},
    port_ranges::bind_all,
    problem::Refusal,
    references::{References, label_out_of_place},
    settings::Limits,
    tables::{access, target, unique},
    value::{Value, duration, duration_or_zero, list},
};
use crate::spec::{ClientProtocol, ListenerSpec, Protocol, Target};

/// All listeners; the two that everyone needs where none is written.
pub(super) fn listeners(
    top: &mut Section<'_>,
    references: &mut References,
    limits: &Limits,
) -> Vec<ListenerSpec> {
    let (mut names, mut binds) = (HashMap::new(), HashMap::new());
    let mut written = false;
    let mut listeners = top.sections("listener", "[[listener]]", |table| {
        written = true;
        listener(table, references, limits, (&mut names, &mut binds))
    });
    if !written {
        listeners = default_listeners();
        references.listeners.extend(listeners.iter().map(References::of));
    }
    listeners
}

fn default_listeners() -> Vec<ListenerSpec> {
    let listener = |name: &str, port, protocol| {
        ListenerSpec::new(name, vec![(Ipv6Addr::UNSPECIFIED, port).into()], protocol)
    };
    vec![listener("https", 443, Protocol::Tls), listener("http", 80, Protocol::Http)]
}

fn listener(
    table: &mut Section<'_>,
    references: &mut References,
    limits: &Limits,
    (names, binds): (&mut HashMap<Arc<str>, usize>, &mut HashMap<SocketAddr, usize>),
) -> Option<ListenerSpec> {
    let name = table.required("name", "\"https\"", |value| unique(value, names, "listener"));
    let bind = table.required("bind", "[\"[::]:443\"]", |value| {
        let addresses = value.items("a list of addresses such as [\"[::]:443\"]", |item| {
            bind_all(item).and_then(|addresses| not_taken(addresses, item, binds))
        })?;
        if addresses.is_empty() { value.expected("at least one address") } else { Some(addresses.concat()) }
    });
    let protocol = table.optional("protocol", protocol);
    let protocols = table.optional("protocols", |value| protocols(value, protocol));
    let hello_timeout = table.optional("hello_timeout", duration);
    let silence_timeout = table.optional("silence_timeout", |value| {
        silence_timeout(value, protocols.as_deref(), hello_timeout.unwrap_or(limits.hello_timeout))
    });
    let idle_timeout = table.optional("idle_timeout", duration_or_zero);
    let accept_proxy = table.or("accept_proxy", Vec::new(), prefixes);
    let access = access(table);
    let protocol = protocol.unwrap_or(Protocol::Tls);
    let to = match (table.value("to"), protocol) {
        (Some(value), Protocol::Tcp) => match target(&value, Some(&*references)) {
            Some(Target::Refuse) => value.refuse(
                Refusal::new("a tcp listener that refuses everybody")
                    .hint("leave the listener out, or keep sources out with `allow` and `deny`"),
            ),
            Some(to) if to.has_label() => value.refuse(label_out_of_place()),
            to => to,
        },
        (Some(value), _) => value.refuse(
            Refusal::new("only a tcp listener has a target of its own")
                .hint("for the others write a [[route]], with `listener` if it is for this one alone"),
        ),
        (None, Protocol::Tcp) => table.refuse(
            Refusal::new("a tcp listener has no host to match and needs `to`")
                .hint("add for example to = \"100.64.0.2:5432\""),
        ),
        (None, _) => None,
    };
    let connect_timeout = table.optional("connect_timeout", |value| match &to {
        Some(to) => match references.connect_timeout(to) {
            Ok(()) => duration(value),
            Err(refusal) => value.refuse(refusal),
        },
        None => value.refuse(
            Refusal::new("only a tcp listener connects somewhere itself")
                .hint("for the others write it in the [[route]] or the [[pool]]"),
        ),
    });
    let spec = ListenerSpec {
        protocols: protocols.unwrap_or_default(),
        silence_timeout: silence_timeout.unwrap_or(ListenerSpec::SILENCE),
        hello_timeout,
        idle_timeout,
        accept_proxy,
        access,
        to,
        connect_timeout,
        ..ListenerSpec::new(name?, Vec::new(), protocol)
    };
    references.listeners.push(References::of(&spec));
    Some(ListenerSpec { bind: bind?, ..spec })
}

/// The protocols of a listener that tells them by the first bytes.
fn protocols(value: &Value<'_>, protocol: Option<Protocol>) -> Option<Vec<ClientProtocol>> {
    let mut protocols =
        list("protocols such as [\"tls\", \"ssh\", \"http\"]", spoken_name::<ClientProtocol>)(value)?;
    if protocol.is_some() {
        return value.refuse(
            Refusal::new("`protocol` says already what is spoken there")
                .hint("write `protocol` for one, `protocols` where the first bytes are to tell"),
        );
    }
    protocols.sort_unstable();
    protocols.dedup();
    if protocols.is_empty() { value.expected("at least one protocol") } else { Some(protocols) }
}

fn silence_timeout(
    value: &Value<'_>,
    protocols: Option<&[ClientProtocol]>,
    hello_timeout: Duration,
) -> Option<Duration> {
    let time = duration(value)?;
    if !protocols.is_some_and(|protocols| protocols.contains(&ClientProtocol::Ssh)) {
        return value.refuse(
            Refusal::new("only a client of SSH waits for its server, and this listener takes none")
                .hint("add \"ssh\" to `protocols`, or leave this out"),
        );
    }
    if time >= hello_timeout {
        return value.refuse(
            Refusal::new("a silent client is closed after `hello_timeout`, which is no longer than this")
                .hint("write a shorter time, or a longer `hello_timeout` in this listener"),
        );
    }
    Some(time)
}

fn protocol(value: &Value<'_>) -> Option<Protocol> {
    match value.text("\"tls\", \"http\" or \"tcp\"")? {
        "quic" => value.refuse(
            Refusal::new("this version does not carry QUIC").hint("write \"tls\", \"http\" or \"tcp\""),
        ),
        _ => spoken_name(value),
    }
}

/// Addresses that no listener has; `[::]` has `0.0.0.0` too.
fn not_taken(
    addresses: Vec<SocketAddr>,
    value: &Value<'_>,
    lines: &mut HashMap<SocketAddr, usize>,
) -> Option<Vec<SocketAddr>> {
    let mut taken = None;
    // The kernel picks a free port for each 0.
    for &address in addresses.iter().filter(|address| address.port() != 0) {
        let other = match address.ip() {
            ip if !ip.is_unspecified() => address,
            ip if ip.is_ipv4() => (Ipv6Addr::UNSPECIFIED, address.port()).into(),
            _ => (Ipv4Addr::UNSPECIFIED, address.port()).into(),
        };
        let by_other = lines.get(&other).copied();
        let line = lines.insert(address, value.line()).or(by_other);
        taken = taken.or(line.map(|line| (address, line)));
    }
    match taken {
        Some((address, line)) => value.refuse(
            Refusal::new(format!("{address} is bound already, on line {line}"))
                .hint("one listener takes each address; [::] takes IPv4 too"),
        ),
        None => Some(addresses),
    }
}
