"""TLS in front of the local hub, by OpenSSL and not by the library of agent and hub: as Azure's own front behaves.

    front.py PORT CERTIFICATE KEY (mqtt|https)

Listens on a free port of 127.0.0.1 and prints it; passes what it decrypts to PORT of this machine, by TLS again.
`mqtt` asks for a client's certificate in the handshake, and lets in who has none. `https` speaks TLS 1.2 and asks for
it by a renegotiation, once the request was read, unless its query says `iothub-no-client-cert=true`. Prints a line of
JSON for each connection. Which suites and groups are offered is OpenSSL's own configuration: OPENSSL_CONF.
"""

import json
import select
import socket
import sys
import threading

from OpenSSL import SSL

PATIENCE = 20


def wait(connection, error):
    """Until OpenSSL can go on."""
    reading = isinstance(error, SSL.WantReadError)
    ready = select.select([connection] if reading else [], [] if reading else [connection], [], PATIENCE)
    if not any(ready):
        raise TimeoutError("the other side is silent")


def carry_out(connection, action, *arguments):
    while True:
        try:
            return action(*arguments)
        except (SSL.WantReadError, SSL.WantWriteError) as error:
            wait(connection, error)


def send(connection, data):
    while data:
        data = data[carry_out(connection, connection.send, data):]


def passed_on(source, target):
    """Passes on what is there; False: the source is at its end."""
    try:
        while True:
            send(target, source.recv(16384))
    except (SSL.WantReadError, SSL.WantWriteError):
        return True


def join(one, other):
    """Passes bytes on until one side ends."""
    try:
        while passed_on(one, other) and passed_on(other, one):
            select.select([one, other], [], [])
    except (SSL.Error, OSError):
        pass


def behind(port):
    """The local hub, which need not prove here who it is."""
    plain = socket.create_connection(("127.0.0.1", port))
    plain.setblocking(False)
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    # Whatever OpenSSL is configured to offer to devices.
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_max_proto_version(SSL.TLS1_3_VERSION)
    connection = SSL.Connection(context, plain)
    connection.set_tlsext_host_name(b"localhost")
    connection.set_connect_state()
    carry_out(connection, connection.do_handshake)
    return connection


def head_of_request(device):
    head = b""
    while b"\r\n\r\n" not in head:
        head += carry_out(device, device.recv, 16384)
    return head


def ask_for_certificate(device):
    """By a second handshake within the first: what only TLS 1.2 has."""
    first = device.get_peer_finished()
    device.set_verify(SSL.VERIFY_PEER, lambda *_: True)
    device.renegotiate()
    carry_out(device, device.do_handshake)
    while device.get_peer_finished() == first:
        # The client has nothing to say but its part of the handshake, which is done by reading.
        try:
            device.recv(1, socket.MSG_PEEK)
        except (SSL.WantReadError, SSL.WantWriteError) as error:
            if device.get_peer_finished() == first:
                wait(device, error)


def subject(device):
    certificate = device.get_peer_certificate()
    return certificate and certificate.get_subject().CN


def serve(plain, context, port, https, seen):
    device = SSL.Connection(context, plain)
    device.set_app_data(seen)
    device.set_accept_state()
    carry_out(device, device.do_handshake)
    seen.update(version=device.get_protocol_version_name(), suite=device.get_cipher_name())
    head = b""
    if https:
        head = head_of_request(device)
        seen["target"] = head.split(b" ")[1].decode()
        if "iothub-no-client-cert=true" not in seen["target"].partition("?")[2].split("&"):
            seen["renegotiated"] = False
            ask_for_certificate(device)
            seen["renegotiated"] = True
    seen["certificate"] = subject(device)
    hub = behind(port)
    send(hub, head)
    return device, hub


def attend(plain, *how):
    seen = {}
    try:
        device, hub = serve(plain, *how, seen)
    except (SSL.Error, OSError) as error:
        seen["error"] = str(error) or type(error).__name__
        plain.close()
    print(json.dumps(seen), flush=True)
    if "error" not in seen:
        join(device, hub)
        for side in (device, hub):
            side.close()


def main():
    port, certificate, key, kind = sys.argv[1:]
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.use_certificate_chain_file(certificate)
    context.use_privatekey_file(key)
    # A session that is resumed asks for no certificate.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(SSL.OP_NO_TICKET)
    if kind == "https":
        context.set_max_proto_version(SSL.TLS1_2_VERSION)
    else:
        context.set_verify(SSL.VERIFY_PEER, lambda *_: True)

    def named(connection):
        connection.get_app_data()["name"] = (connection.get_servername() or b"").decode()

    def offered(connection, protocols):
        connection.get_app_data()["alpn"] = [protocol.decode() for protocol in protocols]
        return SSL.NO_OVERLAPPING_PROTOCOLS

    context.set_tlsext_servername_callback(named)
    context.set_alpn_select_callback(offered)
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    while True:
        plain, _ = listener.accept()
        plain.setblocking(False)
        how = (plain, context, int(port), kind == "https")
        threading.Thread(target=attend, args=how, daemon=True).start()


main()
