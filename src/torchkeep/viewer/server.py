"""Serving the page to this machine alone: 127.0.0.1, an address nobody can guess, reading only.

A page elsewhere can make a browser send requests here, also under a name that it lets point at 127.0.0.1 (DNS
rebinding). So the path begins with a random token, the Host header must name this machine, and nothing is answered that
another origin could read.
"""

from __future__ import annotations

import hmac
import json
import secrets
from collections.abc import Generator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

from torchkeep.errors import CheckpointError, NotFoundError
from torchkeep.viewer.answers import Line, answer, fault_of
from torchkeep.viewer.page import render
from torchkeep.viewer.subject import Subject

ADDRESS = "127.0.0.1"
TOKEN_BYTES = 24
HOSTS = frozenset({ADDRESS, "localhost"})
_LONGEST_QUESTION = 8_000
_TIMEOUT_SECONDS = 60
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Server(ThreadingHTTPServer):
    """Serves one subject until it is shut down.

    Attributes:
        url: The address to open, token included.

    Raises:
        OSError: The port is taken.
    """

    daemon_threads = True
    allow_reuse_address = False

    def __init__(self, subject: Subject, port: int = 0) -> None:
        self.subject = subject
        self.token = secrets.token_urlsafe(TOKEN_BYTES)
        self.page = render().encode()
        super().__init__((ADDRESS, port), _Handler)
        self.url = f"http://{ADDRESS}:{self.server_port}/{self.token}/"


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    timeout = _TIMEOUT_SECONDS
    server_version, sys_version = "torchkeep", ""

    def do_GET(self) -> None:
        """Answer with the page, or with the lines of an answer."""
        self.close_connection = True
        if self.host not in HOSTS:
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST, "this server answers to 127.0.0.1 and localhost only")
            return
        target = urlsplit(self.path)
        token, _, place = target.path.removeprefix("/").partition("/")
        if not hmac.compare_digest(token.encode(), self.server.token.encode()):
            self._refuse(HTTPStatus.NOT_FOUND, "nothing here; open the address that torchkeep view printed")
        elif not place:
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", self.server.page)
        elif len(target.query) > _LONGEST_QUESTION:
            self._refuse(HTTPStatus.REQUEST_URI_TOO_LONG, "the question is too long")
        else:
            self._answer(place, dict(parse_qsl(target.query, keep_blank_values=True)))

    do_HEAD = do_GET  # noqa: N815 - http.server's name

    @property
    def host(self) -> str:
        """The name in the Host header, without a port: a tunnel may give it another one."""
        name, colon, port = self.headers.get("Host", "").rpartition(":")
        return name if colon and port.isdecimal() else f"{name}{colon}{port}"

    def _answer(self, question: str, asked: dict[str, str]) -> None:
        lines = answer_lines(self.server.subject, question, asked)
        first = next(lines)
        status = HTTPStatus.UNPROCESSABLE_ENTITY if "fault" in first else HTTPStatus.OK
        self._begin(status, "application/x-ndjson; charset=utf-8")
        try:
            self._write_line(first)
            for line in lines:
                self._write_line(line)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the page has moved on
        finally:
            lines.close()

    def _write_line(self, line: Line) -> None:
        if self.command != "HEAD":
            self.wfile.write(json.dumps(line, separators=(",", ":"), allow_nan=False).encode() + b"\n")

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self._begin(status, kind, {"Content-Length": str(len(content))})
        if self.command != "HEAD":
            self.wfile.write(content)

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self._send(status, "text/plain; charset=utf-8", f"{why}\n".encode())

    def _begin(self, status: HTTPStatus, kind: str, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Connection": "close", **_HEADERS, **(more or {})}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        """Say nothing: the address has the token in it."""


def answer_lines(subject: Subject, question: str, asked: dict[str, str]) -> Generator[Line]:
    """The lines of an answer; an error of ours is the last of them, as ``{"fault": ...}``."""
    try:
        yield from answer(subject, question, asked)
    except CheckpointError as error:
        yield {"fault": fault_of(error)}
    except OSError as error:
        yield {"fault": fault_of(NotFoundError(error.strerror or "cannot be read", where=error.filename))}
