"""The server: to this machine alone, to whoever has the token, for reading what was named and nothing else."""

from __future__ import annotations

import http.client
import json
import os
import socket

import pytest
from tests.viewer.serving import serving

from torchkeep.viewer.answers import QUESTIONS


def ask(server, path: str, *, method: str = "GET", headers: dict[str, str] | None = None, token: str | None = None):
    """Send one request; the status, headers and body that come back."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=200)
    place = f"/{server.token if token is None else token}/{path}"
    connection.request(method, place, headers=headers or {})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, answer.headers, body


def lines(body: bytes) -> list[dict[str, object]]:
    return [json.loads(line) for line in body.splitlines()]


def test_it_listens_on_127_0_0_1_alone_and_its_address_cannot_be_guessed(server, run):
    assert server.server_address == ("127.0.0.1", server.server_port)
    assert server.url == f"http://127.0.0.1:{server.server_port}/{server.token}/"
    assert len(server.token) >= 32
    with serving(run) as other:
        assert other.token != server.token


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8888", "localhost", "localhost:1", "localhost:65535"])
def test_a_host_header_that_names_this_machine_is_answered_at_any_port_since_tunnels_change_it(server, host):
    assert ask(server, "", headers={"Host": host})[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:80",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "evil.example@127.0.0.1",
        "127.0.0.1:80:80",
        "127.0.0.1:x",
        "0.0.0.0",
        "LOCALHOST.",
        "",
    ],
)
@pytest.mark.parametrize("path", ["", "subject"])
def test_a_name_that_somebody_lets_point_here_is_refused_though_it_has_the_token(server, host, path):
    status, _, body = ask(server, path, headers={"Host": host})
    assert status == 421
    assert body == b"this server answers to 127.0.0.1 and localhost only\n"


def test_without_a_host_header_nothing_is_answered(server):
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=200) as raw:
        raw.sendall(f"GET /{server.token}/ HTTP/1.0\r\n\r\n".encode())
        assert raw.makefile("rb").readline().split()[1] == b"421"


@pytest.mark.parametrize("token", ["", "x", "..", "%2e%2e", "%C3%A9", "a" * 32])
@pytest.mark.parametrize("path", ["", "subject", "checkpoint?of=step-00000100"])
def test_without_the_token_there_is_nothing(server, token, path):
    status, headers, body = ask(server, path, token=token)
    assert status == 404
    assert body == b"nothing here; open the address that torchkeep view printed\n"
    assert server.token not in str(headers)


def test_a_path_of_any_bytes_is_refused(server):
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=200) as raw:
        raw.sendall(b"GET /\xff\xc3\xa9/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert raw.makefile("rb").readline().split()[1] == b"404"


def test_the_token_is_compared_whole(server):
    for token in (server.token[:-1], server.token + "x", server.token.swapcase()):
        assert ask(server, "subject", token=token)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"])
def test_nothing_but_reading_is_understood(server, method):
    assert ask(server, "subject", method=method)[0] == 501


def test_head_says_what_get_would_and_sends_no_body(server):
    for path in ("", "subject"):
        status, headers, body = ask(server, path, method="HEAD")
        assert (status, body) == (200, b"")
        assert headers["Content-Type"] == ask(server, path)[1]["Content-Type"]


@pytest.mark.parametrize("path", ["", "subject", "no-such-question", "checkpoint?of=nothing"])
def test_no_answer_can_be_read_embedded_or_kept_by_others(server, path):
    _, headers, _ = ask(server, path)
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Content-Security-Policy"] == "frame-ancestors 'none'"
    assert headers["Access-Control-Allow-Origin"] is None
    assert "Python" not in headers["Server"]


@pytest.mark.parametrize(
    "checkpoint_id",
    [
        "../run/step-00000100",
        "step-00000100/../step-00000200",
        "/etc/passwd",
        "step-00000100/checkpoint.json",
        "step-1",
        "step-00000100\0",
        ".lock",
        "beside-1",
        "file",
        "",
    ],
)
@pytest.mark.parametrize(
    ("question", "parameters"),
    [
        ("checkpoint", "of={}"),
        ("tensor", "of={}&at=0"),
        ("movement", "from={}&to=step-00000100"),
        ("plan", "from=step-00000100&into={}"),
    ],
)
def test_only_what_was_named_is_opened(server, checkpoint_id, question, parameters):
    from urllib.parse import quote

    status, _, body = ask(server, f"{question}?{parameters.format(quote(checkpoint_id, safe=''))}")
    (line,) = lines(body)
    assert status == 422
    assert line["fault"]["what"] == f"nothing here is called {checkpoint_id!r}"


def test_files_of_the_run_are_not_served_as_such(server, run):
    for name in ["step-00000100/checkpoint.json", "step-00000100", ".lock", "../run", "assets/main.js"]:
        assert ask(server, name)[0] == 422


@pytest.mark.parametrize(
    "question",
    [
        "subjects",
        "subject?x=1",
        "checkpoint",
        "checkpoint?of=step-00000100&more=1",
        "tensor?of=step-00000100",
        "__class__",
        "movement?from=step-00000100",
    ],
)
def test_a_question_that_is_none_is_a_fault(server, question):
    status, _, body = ask(server, question)
    (line,) = lines(body)
    assert (status, line["fault"]["what"]) == (422, f"there is no such question: {question.partition('?')[0]}")


@pytest.mark.parametrize("at", ["-1", "100000", "x", "", "1e3", "٣", "9" * 5000])
def test_a_tensor_that_is_not_there_is_a_fault(server, at):
    from urllib.parse import quote

    status, _, body = ask(server, f"tensor?of=step-00000100&at={quote(at)}")
    assert status == 422
    assert "there is no tensor" in lines(body)[0]["fault"]["what"]


def test_a_question_of_any_length_is_refused_before_it_is_read(server):
    assert ask(server, f"checkpoint?of={'x' * 9000}")[0] == 414


def test_a_checkpoint_that_is_damaged_while_it_is_looked_at_is_named(tmp_path):
    import torch

    import torchkeep as tk

    path = tk.save({"w": torch.ones(1000)}, tmp_path / "ckpt").path
    with serving(path) as server:
        shard = next(path.glob("*.safetensors"))
        shard.chmod(0o644)
        with shard.open("r+b") as file:
            file.seek(-8, os.SEEK_END)
            file.write(b"damaged!")
        status, _, body = ask(server, "tensor?of=file&at=0")
        assert status == 422
        assert "differ from their digest" in lines(body)[0]["fault"]["what"]


def test_looking_changes_nothing(run):
    def state():
        return {
            path: (path.stat().st_mtime_ns, path.stat().st_ino, path.is_file() and path.read_bytes())
            for path in sorted(run.rglob("*"))
        }

    before = state()
    with serving(run) as server:
        for question in ["subject", "checkpoint?of=step-00000600", "tensor?of=step-00000600&at=0&beside=step-00000100"]:
            assert ask(server, question)[0] == 200
        assert ask(server, "movement?from=step-00000100&to=step-00000600")[0] == 200
        assert ask(server, "plan?from=step-00000100&into=step-00000600&rules=suggested")[0] == 200
    assert state() == before


def test_a_page_that_goes_away_ends_its_answer_and_nothing_else(server):
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", server.server_port)) as raw:
            raw.sendall(f"GET /{server.token}/movement?from=step-00000100&to=step-00000600 HTTP/1.1\r\n".encode())
            raw.sendall(b"Host: localhost\r\n\r\n")
    assert ask(server, "subject")[0] == 200


def test_every_question_is_one_that_these_tests_know():
    assert set(QUESTIONS) == {"subject", "checkpoint", "tensor", "movement", "plan"}
