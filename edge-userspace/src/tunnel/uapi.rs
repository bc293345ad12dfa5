//! Reads the peers of a user-space WireGuard (wireguard-go, boringtun) through the cross-platform interface
//! over a Unix socket (<https://www.wireguard.com/xplatform/>).

use std::{
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use super::peer::Peer;

/// Where the sockets are, one a device.
const DIRECTORY: &str = "/var/run/wireguard";
/// The longest answer that is read: some 10,000 peers.
const MAX_ANSWER: u64 = 4 << 20;
const TIMEOUT: Duration = Duration::from_secs(1);

/// The socket of a device, if there is one.
pub(super) fn socket(device: &str) -> Option<PathBuf> {
    let path = Path::new(DIRECTORY).join(format!("{device}.sock"));
    path.exists().then_some(path)
}

/// Asks for the peers.
pub(super) async fn peers(socket: &Path) -> io::Result<Vec<Peer>> {
    let ask = async {
        let mut stream = UnixStream::connect(socket).await?;
        stream.write_all(b"get=1\n\n").await?;
        let mut answer = Vec::new();
        let mut stream = stream.take(MAX_ANSWER);
        // The socket stays open for the next question; the answer ends with an empty line.
        while !answer.ends_with(b"\n\n") {
            if stream.read_buf(&mut answer).await? == 0 {
                break;
            }
        }
        let text = String::from_utf8(answer).map_err(io::Error::other)?;
        parse(&text).ok_or_else(|| io::Error::other("an answer that is not the WireGuard interface's"))
    };
    tokio::time::timeout(TIMEOUT, ask).await?
}

/// Reads an answer; `None` if it is incomplete, an error or malformed. Unknown keys are skipped.
pub(super) fn parse(answer: &str) -> Option<Vec<Peer>> {
    let mut peers: Vec<Peer> = Vec::new();
    let mut handshake = (0_u64, 0_u32);
    for line in answer.lines() {
        let Some((key, value)) = line.split_once('=') else { continue };
        if key == "errno" {
            return (value == "0").then_some(peers);
        }
        if key == "public_key" {
            let key = key_of(value)?;
            peers.push(Peer {
                key,
                endpoint: None,
                allowed: Vec::new(),
                handshake: None,
                received: 0,
                sent: 0,
            });
            handshake = (0, 0);
            continue;
        }
        // The lines before the first peer describe the device.
        let Some(peer) = peers.last_mut() else { continue };
        match key {
            "endpoint" => peer.endpoint = value.parse().ok(),
            "allowed_ip" => peer.allowed.push(value.parse().ok()?),
            "rx_bytes" => peer.received = value.parse().ok()?,
            "tx_bytes" => peer.sent = value.parse().ok()?,
            "last_handshake_time_sec" => handshake.0 = value.parse().ok()?,
            "last_handshake_time_nsec" => handshake.1 = value.parse().ok()?,
            _ => continue,
        }
        peer.handshake = match handshake {
            (0, 0) => None,
            // The fraction is below a second; more of it would carry, and the sum may not fit.
            (seconds, nanos) => Duration::from_secs(seconds)
                .checked_add(Duration::from_nanos(nanos.into()))
                .and_then(|since_epoch| SystemTime::UNIX_EPOCH.checked_add(since_epoch)),
        };
    }
    None
}

fn key_of(hex: &str) -> Option<[u8; 32]> {
    let mut key = [0; 32];
    // `from_str_radix` alone would take a sign for the first digit.
    if hex.len() != 64 || !hex.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (at, byte) in key.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[at * 2..at * 2 + 2], 16).ok()?;
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer() -> String {
        let one = "77dc9ac0b3f0c5e75bb8d3422d88ec92d13a3423229087821551571969dea044";
        let two = "ccaf10e1a9d7d05ff2bdd2a0f1782d97469a1cf7be880f6875a779935d1d2175";
        format!(
            "private_key={zero}\nlisten_port=51820\npublic_key={one}\npreshared_key={zero}\n\
             protocol_version=1\nendpoint=192.0.2.1:51820\nlast_handshake_time_sec=1769415834\n\
             last_handshake_time_nsec=262671874\ntx_bytes=1917056\nrx_bytes=30426264\n\
             persistent_keepalive_interval=25\nallowed_ip=10.0.0.2/32\nallowed_ip=fd00::/64\n\
             public_key={two}\nendpoint=[2001:db8::1]:51820\nlast_handshake_time_sec=0\n\
             last_handshake_time_nsec=0\ntx_bytes=148\nrx_bytes=0\nerrno=0\n\n",
            zero = "0".repeat(64),
        )
    }

    #[test]
    fn peers_are_read() {
        let peers = parse(&answer()).unwrap();
        assert_eq!(peers.len(), 2);
        assert_eq!(peers[0].key[..2], [0x77, 0xdc]);
        assert_eq!(peers[0].endpoint, Some("192.0.2.1:51820".parse().unwrap()));
        assert_eq!(peers[0].allowed, ["10.0.0.2/32", "fd00::/64"].map(|net| net.parse().unwrap()));
        assert_eq!((peers[0].received, peers[0].sent), (30_426_264, 1_917_056));
        let handshake = SystemTime::UNIX_EPOCH + Duration::new(1_769_415_834, 262_671_874);
        assert_eq!(peers[0].handshake, Some(handshake));
        assert_eq!((peers[1].handshake, peers[1].sent), (None, 148));
    }

    #[test]
    fn a_handshake_beyond_time_is_none() {
        let late = format!("last_handshake_time_sec={}", u64::MAX);
        let answer = answer()
            .replace("last_handshake_time_sec=1769415834", &late)
            .replace("last_handshake_time_nsec=262671874", "last_handshake_time_nsec=4294967295");
        assert_eq!(parse(&answer).unwrap()[0].handshake, None);
    }

    #[test]
    fn what_is_cut_or_broken_is_nothing() {
        let whole = answer();
        let end = whole.find("errno").unwrap();
        for len in (0..end).filter(|&len| whole.is_char_boundary(len)) {
            assert_eq!(parse(&whole[..len]), None, "after {len} bytes");
        }
        assert_eq!(parse(&whole.replace("public_key=77", "public_key=7 ")), None);
        assert_eq!(parse(&whole.replace("public_key=77", "public_key=+7")), None);
        assert_eq!(parse("errno=-13\n\n"), None);
        assert_eq!(parse("errno=0\n\n"), Some(Vec::new()));
    }
}
