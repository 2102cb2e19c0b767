"""HTTP by hand, for what no well-made client sends."""

import contextlib
import json
import socket


def connect(server, timeout=60.0):
    return socket.create_connection(("127.0.0.1", server.port), timeout)


def request_bytes(path, body, headers=()):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "host: localhost", "content-type: application/json"]
    lines += [f"content-length: {len(content)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def send_all(connection, data):
    """Sends data and that no more comes; a server may refuse, and close, before it has read them to the end."""
    with contextlib.suppress(OSError):
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)


def read_all(connection):
    """Until the server closes, or has been silent for the connection's timeout."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def status_of(connection):
    return int(connection.recv(1 << 16).split(b" ", 2)[1])
