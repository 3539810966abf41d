"""An OpenID Connect issuer on the loopback."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm


def public(key: Any, kid: str, **fields: str) -> dict[str, Any]:
    """The JWK of a private key's public half."""
    kind = {rsa.RSAPrivateKey: RSAAlgorithm, ec.EllipticCurvePrivateKey: ECAlgorithm}
    algorithm: Any = next((value for type_, value in kind.items() if isinstance(key, type_)), OKPAlgorithm)
    return {**json.loads(algorithm.to_jwk(key.public_key())), "kid": kid, "use": "sig", **fields}


class Issuer:
    """Answers discovery and publishes `keys`, as they are at that moment; `asked` counts."""

    def __init__(self, keys: list[dict[str, Any]]) -> None:
        self.keys = keys
        self.asked: list[str] = []
        self.fails = False
        self.said_issuer: str | None = None
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked.append(self.path)
                pages = {
                    "/.well-known/openid-configuration": {
                        "issuer": issuer.said_issuer or issuer.url,
                        "jwks_uri": f"{issuer.url}/keys",
                    },
                    "/keys": {"keys": issuer.keys},
                }
                self.send_response(500 if issuer.fails else 200)
                self.end_headers()
                self.wfile.write(json.dumps(pages[self.path]).encode())

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def key_requests(self) -> int:
        return self.asked.count("/keys")
