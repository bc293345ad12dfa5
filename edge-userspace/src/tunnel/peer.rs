//! Decides when a WireGuard peer counts as dead. Pure: it is fed with the device's list of peers from time to
//! time.
//!
//! An old handshake alone means nothing: a tunnel without traffic and keepalive has none. But a side that
//! sends starts a handshake if the last one is too old, and retries every five seconds. A peer is therefore
//! silent if its handshake is old *and* packets were sent to it *and* nothing was received.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant, SystemTime},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::state::Fault;

/// Time to answer for a peer that was just woken: one retry of the handshake (`REKEY_TIMEOUT`, WireGuard
/// paper §6.1).
const GRACE: Duration = Duration::from_secs(5);

/// A silent peer that nothing was sent to for this long gets another chance: only traffic can show that it is
/// back, and a backend that is down gets none. WireGuard itself retries for 90 s (`REKEY_ATTEMPT_TIME`),
/// which counts as sending.
const FORGIVEN: Duration = Duration::from_mins(1);

/// A WireGuard peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its public key.
    pub key: [u8; 32],
    /// Where it was last seen or is configured to be.
    pub endpoint: Option<SocketAddr>,
    /// The addresses behind it.
    pub allowed: Vec<IpNet>,
    /// The last handshake; `None` means never.
    pub handshake: Option<SystemTime>,
    /// Bytes received from it.
    pub received: u64,
    /// Bytes sent to it.
    pub sent: u64,
}

/// Watches the peers of one device.
#[derive(Debug)]
pub(super) struct Vigil {
    limit: Duration,
    peers: Vec<Peer>,
    doubts: HashMap<[u8; 32], Doubt>,
}

/// A peer whose last handshake is too old.
#[derive(Clone, Copy, Debug)]
struct Doubt {
    received: u64,
    sent: u64,
    /// When it was first seen that something had been sent since.
    tried: Option<Instant>,
    /// The bytes sent as of the last look, and since when the count has not changed.
    last: (u64, Instant),
    silent: bool,
}

impl Vigil {
    /// `limit` is the age from which a handshake is too old.
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, peers: Vec::new(), doubts: HashMap::new() }
    }

    /// Takes in the device's peers at `now`. `wall` is the same moment on the wall clock, which handshake
    /// times use.
    pub(super) fn observe(&mut self, now: Instant, wall: SystemTime, peers: Vec<Peer>) {
        let mut before = std::mem::take(&mut self.doubts);
        for peer in &peers {
            // A handshake in the future is one that the clock has been set back behind.
            let age = peer.handshake.map(|at| wall.duration_since(at).unwrap_or_default());
            if age.is_some_and(|age| age <= self.limit) {
                continue;
            }
            let last = (peer.sent, now);
            let fresh = Doubt { received: peer.received, sent: peer.sent, tried: None, last, silent: false };
            let mut doubt = match before.remove(&peer.key) {
                // It lives, whatever the clock says.
                Some(known) if known.received != peer.received => fresh,
                Some(known) if known.last.0 != peer.sent => Doubt { last, ..known },
                Some(known) if known.silent && now.duration_since(known.last.1) >= FORGIVEN => fresh,
                Some(known) => known,
                None => fresh,
            };
            if doubt.tried.is_none() && peer.sent > doubt.sent {
                doubt.tried = Some(now);
            }
            doubt.silent = doubt.tried.is_some_and(|tried| now.duration_since(tried) >= GRACE);
            self.doubts.insert(peer.key, doubt);
        }
        self.peers = peers;
    }

    /// The reason why `address` cannot be reached through the device.
    pub(super) fn fault(&self, address: IpAddr) -> Option<Fault> {
        let nets = self.peers.iter().flat_map(|peer| peer.allowed.iter().map(move |net| (net, peer)));
        let best = nets.filter(|(net, _)| net.contains(&address)).max_by_key(|(net, _)| net.prefix_len());
        match best {
            None => Some(Fault::NoPeer),
            Some((_, peer)) if self.doubts.get(&peer.key).is_some_and(|doubt| doubt.silent) => {
                Some(Fault::Silent(self.limit))
            }
            Some(_) => None,
        }
    }

    /// Whether something may change soon, so that looking more often is worth it.
    pub(super) fn is_uneasy(&self) -> bool {
        self.doubts.values().any(|doubt| doubt.tried.is_some())
    }

    pub(super) fn peers(&self) -> &[Peer] {
        &self.peers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_mins(3);

    /// A device with one peer, looked at as time goes by.
    struct Scene {
        vigil: Vigil,
        start: (Instant, SystemTime),
        peer: Peer,
    }

    impl Scene {
        fn new() -> Self {
            Self {
                vigil: Vigil::new(LIMIT),
                start: (Instant::now(), SystemTime::now()),
                peer: Peer {
                    key: [1; 32],
                    endpoint: None,
                    allowed: vec!["10.0.0.0/24".parse().unwrap()],
                    handshake: None,
                    received: 0,
                    sent: 0,
                },
            }
        }

        fn shake_hands(&mut self, seconds: u64) {
            self.peer.handshake = Some(self.start.1 + Duration::from_secs(seconds));
        }

        fn at(&mut self, seconds: u64) -> Option<Fault> {
            let passed = Duration::from_secs(seconds);
            self.vigil.observe(self.start.0 + passed, self.start.1 + passed, vec![self.peer.clone()]);
            self.vigil.fault("10.0.0.2".parse().unwrap())
        }
    }

    #[test]
    fn a_peer_that_never_answers_is_silent() {
        let mut scene = Scene::new();
        assert_eq!(scene.at(0), None);
        scene.peer.sent = 148;
        assert_eq!(scene.at(5), None, "it may be about to answer");
        assert!(scene.vigil.is_uneasy());
        assert_eq!(scene.at(10), Some(Fault::Silent(LIMIT)));
        scene.shake_hands(11);
        assert_eq!(scene.at(11), None);
        assert!(!scene.vigil.is_uneasy());
    }

    #[test]
    fn a_tunnel_that_sleeps_is_no_tunnel_that_died() {
        let mut scene = Scene::new();
        scene.shake_hands(0);
        (scene.peer.sent, scene.peer.received) = (1000, 1000);
        for seconds in [0, 170, 200, 3600, 7200] {
            assert_eq!(scene.at(seconds), None, "after {seconds} s");
        }
        scene.peer.sent += 148;
        assert_eq!(scene.at(7201), None, "just woken");
        scene.peer.received += 92;
        scene.shake_hands(7202);
        assert_eq!(scene.at(7207), None);
    }

    #[test]
    fn one_that_died_is_noticed() {
        let mut scene = Scene::new();
        scene.shake_hands(0);
        for seconds in (0..300).step_by(5) {
            scene.peer.sent += 200;
            let expected = (seconds >= 195).then_some(Fault::Silent(LIMIT));
            assert_eq!(scene.at(seconds), expected, "after {seconds} s");
        }
    }

    #[test]
    fn one_that_nobody_tries_any_more_gets_another_chance() {
        let mut scene = Scene::new();
        scene.at(0);
        scene.peer.sent = 148;
        scene.at(5);
        assert_eq!(scene.at(10), Some(Fault::Silent(LIMIT)));
        scene.peer.sent += 148;
        assert_eq!(scene.at(60), Some(Fault::Silent(LIMIT)), "still being tried");
        assert_eq!(scene.at(119), Some(Fault::Silent(LIMIT)));
        assert_eq!(scene.at(120), None);
        scene.peer.sent += 148;
        assert_eq!(scene.at(130), None);
        assert_eq!(scene.at(135), Some(Fault::Silent(LIMIT)), "tried again in vain");
    }

    #[test]
    fn a_jump_of_the_clock_kills_nobody() {
        let mut scene = Scene::new();
        scene.shake_hands(0);
        scene.at(0);
        // Set forward by an hour; traffic goes on both ways.
        for seconds in (3600..3700).step_by(5) {
            scene.peer.sent += 200;
            scene.peer.received += 200;
            assert_eq!(scene.at(seconds), None);
        }
        // And back.
        scene.shake_hands(4000);
        assert_eq!(scene.at(10), None);
    }

    #[test]
    fn the_most_specific_peer_is_asked() {
        let mut vigil = Vigil::new(LIMIT);
        let peer = Scene::new().peer;
        let wide = Peer { key: [2; 32], allowed: vec!["0.0.0.0/0".parse().unwrap()], ..peer.clone() };
        let now = (Instant::now(), SystemTime::now());
        vigil.observe(now.0, now.1, vec![peer.clone(), wide.clone()]);
        let sent = Peer { sent: 1, ..wide };
        vigil.observe(now.0 + GRACE, now.1, vec![peer.clone(), sent.clone()]);
        vigil.observe(now.0 + GRACE * 2, now.1, vec![peer, sent]);
        assert_eq!(vigil.fault("10.0.0.2".parse().unwrap()), None);
        assert_eq!(vigil.fault("10.0.1.2".parse().unwrap()), Some(Fault::Silent(LIMIT)));
        assert_eq!(vigil.fault("2001:db8::1".parse().unwrap()), Some(Fault::NoPeer));
    }
}
