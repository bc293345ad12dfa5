#!/usr/bin/env python3
"""Records what TLS clients send first, one file a client, for `sniff_captures.rs`.

    record.py DIRECTORY [CLIENT...]

Each client connects to a listener on loopback that reads and never answers. A client that is not installed is
reported and left out. The recordings differ from run to run in their random values and in nothing that the tests
look at, unless the client has changed.
"""

import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

NAME = "cloud.example.com"
# Long enough for a hello of several records of 512 bytes.
MANY_PROTOCOLS = ",".join(f"protocol-{i:02}-{'x' * 40}" for i in range(20))

JAVA = f"""
import javax.net.ssl.*;
public class Hello {{
    public static void main(String[] arguments) throws Exception {{
        var socket = (SSLSocket) SSLSocketFactory.getDefault().createSocket("127.0.0.1", Integer.parseInt(arguments[0]));
        var parameters = socket.getSSLParameters();
        parameters.setServerNames(java.util.List.of(new SNIHostName("{NAME}")));
        parameters.setApplicationProtocols(new String[] {{"h2", "http/1.1"}});
        socket.setSSLParameters(parameters);
        socket.startHandshake();
    }}
}}
"""


def openssl(*options):
    return lambda port, _: ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", *options]


def chromium(port, scratch):
    return [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={scratch}", f"--host-resolver-rules=MAP {NAME}:443 127.0.0.1:{port}",
        "--dump-dom", f"https://{NAME}/",
    ]


def nss(port, scratch):
    subprocess.run(["certutil", "-N", "-d", scratch, "--empty-password"], check=True)
    return ["tstclnt", "-h", "127.0.0.1", "-p", str(port), "-a", NAME, "-d", scratch, "-o", "-Q"]


def java(port, scratch):
    source = Path(scratch, "Hello.java")
    source.write_text(JAVA)
    return ["java", str(source), str(port)]


def node(port, _):
    options = f"{{host: '127.0.0.1', port: {port}, servername: '{NAME}', ALPNProtocols: ['http/1.1']}}"
    return ["node", "-e", f"require('tls').connect({options}).on('error', () => 0)"]


def python(port, _):
    script = f"""
import socket, ssl
context = ssl.create_default_context()
context.set_alpn_protocols(["h2", "http/1.1"])
context.wrap_socket(socket.create_connection(("127.0.0.1", {port})), server_hostname="{NAME}")
"""
    return [sys.executable, "-c", script]


CLIENTS = {
    "openssl-tls13": openssl("-servername", NAME, "-alpn", "h2,http/1.1"),
    "openssl-tls12": openssl("-servername", NAME, "-tls1_2"),
    "openssl-tls10": openssl("-servername", NAME, "-tls1", "-cipher", "ALL:@SECLEVEL=0"),
    "openssl-no-name": openssl("-noservername"),
    "openssl-acme": openssl("-servername", NAME, "-alpn", "acme-tls/1"),
    "openssl-three-records": openssl("-servername", NAME, "-max_send_frag", "512", "-alpn", MANY_PROTOCOLS),
    "gnutls": lambda port, _: ["gnutls-cli", "--no-ca-verification", "--sni-hostname", NAME, "--alpn", "h2",
                               "-p", str(port), "127.0.0.1"],
    "curl": lambda port, _: ["curl", "--resolve", f"{NAME}:{port}:127.0.0.1", f"https://{NAME}:{port}/"],
    "curl-address": lambda port, _: ["curl", f"https://127.0.0.1:{port}/"],
    "python": python,
    "chromium": chromium,
    "nss": nss,
    "java": java,
    "node": node,
}


def first_bytes(listener):
    """All that a client sends before it waits."""
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(1)
        received = b""
        try:
            while piece := connection.recv(65536):
                received += piece
        except TimeoutError:
            pass
        return received


def record(client):
    scratch = tempfile.mkdtemp()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)
        command = CLIENTS[client](listener.getsockname()[1], scratch)
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            return first_bytes(listener)
        finally:
            process.kill()
            process.wait()
            shutil.rmtree(scratch, ignore_errors=True)


def main():
    directory = Path(sys.argv[1])
    for client in sys.argv[2:] or CLIENTS:
        try:
            received = record(client)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"{client}: left out: {error}", file=sys.stderr)
            continue
        (directory / f"{client}.bin").write_bytes(received)
        print(f"{client}: {len(received)} bytes")


main()
