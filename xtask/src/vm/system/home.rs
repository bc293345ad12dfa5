//! Home, in a network namespace of the guest, at the other end of a tunnel of the kernel's WireGuard. It
//! consists of systemd units, so that it returns after a reboot. Neither it nor edged depends on the other.

/// Installs home and its tunnel and starts them. Afterwards 100.64.0.2 is home, as in the README.
pub(super) const INSTALL: &str = r#"
umask 077
mkdir -p /etc/lab
for side in vps home; do
    test -f /etc/lab/$side.key || wg genkey >/etc/lab/$side.key
    wg pubkey </etc/lab/$side.key >/etc/lab/$side.pub
done
umask 022
cat >/usr/local/sbin/lab-home <<'END'
#!/bin/sh -e
ip netns add home
ip -n home link set lo up
ip link add street type veth peer name street netns home
ip address add 198.51.100.1/30 dev street
ip -n home address add 198.51.100.2/30 dev street
ip link set street up
ip -n home link set street up
ip -n home link add wg0 type wireguard
ip netns exec home wg set wg0 listen-port 51820 private-key /etc/lab/home.key \
    peer "$(cat /etc/lab/vps.pub)" allowed-ips 100.64.0.1/32
ip -n home address add 100.64.0.2/24 dev wg0
ip -n home link set wg0 up
END
cat >/usr/local/sbin/lab-echo <<'END'
import asyncio
async def serve(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    writer.close()
async def main():
    server = await asyncio.start_server(serve, "100.64.0.2", 443, backlog=4096)
    await server.serve_forever()
asyncio.run(main())
END
chmod 755 /usr/local/sbin/lab-home
cat >/etc/systemd/system/lab-home.service <<'END'
[Unit]
Description=Home
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/lab-home
[Install]
WantedBy=multi-user.target
END
cat >/etc/systemd/system/lab-echo.service <<'END'
[Unit]
Description=The service at home
Requires=lab-home.service
After=lab-home.service
[Service]
ExecStart=ip netns exec home python3 /usr/local/sbin/lab-echo
LimitNOFILE=65536
[Install]
WantedBy=multi-user.target
END
cat >/etc/wireguard/wg0.conf <<END
[Interface]
PrivateKey = $(cat /etc/lab/vps.key)
Address = 100.64.0.1/24
[Peer]
PublicKey = $(cat /etc/lab/home.pub)
Endpoint = 198.51.100.2:51820
AllowedIPs = 100.64.0.2/32
PersistentKeepalive = 5
END
chmod 600 /etc/wireguard/wg0.conf
mkdir -p /etc/systemd/system/wg-quick@wg0.service.d
printf '[Unit]\nAfter=lab-home.service\n' >/etc/systemd/system/wg-quick@wg0.service.d/lab.conf
systemctl daemon-reload
systemctl enable --quiet --now lab-home lab-echo wg-quick@wg0
ping -c1 -W5 100.64.0.2 >/dev/null 2>&1 || timeout 10 sh -c 'until wg show wg0 latest-handshakes | grep -qv "	0$"; do :; done'
modinfo -n wireguard
"#;
