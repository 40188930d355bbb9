"""A WebSocket server made of Python's `websockets`, to stand behind the proxy.

    python3 ws_server.py [--subprotocols A,B] [--cert FILE --key FILE [--client-ca FILE]]

Takes a free port of 127.0.0.1 and prints `listening on PORT`. It accepts permessage-deflate, with
full windows, and messages of any size. With a certificate it speaks TLS, and with a client CA only
with those who have a certificate of that. Paths:

    /close/CODE?reason=R  a Close right after the handshake
    /refuse/STATUS        no handshake: that HTTP status and a body
    /closes               plain HTTP: JSON list of the ends so far: {path, code, reason}
    any other             echoes every message
"""

import argparse
import json
import ssl
from urllib.parse import parse_qs, urlsplit

from websockets.exceptions import ConnectionClosed
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.sync.server import serve

closes = []


def answer(connection, request):
    """Answers what is not to become a WebSocket; None has the handshake go on."""
    path = urlsplit(request.path).path
    if path == "/closes":
        return connection.respond(200, json.dumps(closes))
    if path.startswith("/refuse/"):
        status = int(path.removeprefix("/refuse/"))
        return connection.respond(status, f"refused with {status}\n")
    return None


def handle(connection):
    url = urlsplit(connection.request.path)
    try:
        if url.path.startswith("/close/"):
            reason = parse_qs(url.query).get("reason", [""])[0]
            connection.close(int(url.path.removeprefix("/close/")), reason)
        for message in connection:
            connection.send(message)
        connection.recv()  # The loop above ends silently at a normal Close: have it raised.
    except ConnectionClosed as closed:
        end = closed.rcvd
        closes.append({
            "path": connection.request.path,
            "code": end.code if end else None,
            "reason": end.reason if end else None,
        })


def tls(options):
    """What TLS is spoken with; None for none."""
    if options.cert is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=options.client_ca)
    context.load_cert_chain(options.cert, options.key)
    if options.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--subprotocols", type=lambda text: text.split(","), default=[])
    parser.add_argument("--cert")
    parser.add_argument("--key")
    parser.add_argument("--client-ca")
    options = parser.parse_args()
    known = options.subprotocols

    def first_known(_, offered):
        # The library's own choice refuses a client that offers none.
        return next((name for name in offered if name in known), None)

    settings = {
        "subprotocols": known,
        "select_subprotocol": first_known,
        "compression": None,
        "extensions": [ServerPerMessageDeflateFactory()],
        "process_request": answer,
        "max_size": None,
        "ssl": tls(options),
    }
    with serve(handle, "127.0.0.1", 0, **settings) as server:
        print(f"listening on {server.socket.getsockname()[1]}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
