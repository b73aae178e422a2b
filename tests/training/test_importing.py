"""`lacuna import`: one bad line costs no other, what is away for a moment is waited for, and all of it is told."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.training.commands import Run, refused
from tests.training.tiny import ITEMS, events, lines, write_vectors
from training import importing
from training.importing import Kind, Line, Refusal, read_lines

BOM = "\ufeff"
Fault = tuple[int, dict[str, str], bytes] | None  # status, headers and body instead of the service's own; None: hang up


class Service(BaseHTTPRequestHandler):
    """Answers as the service does: items whose id is known exist already, feedback on unknown items is rejected, a
    title `bad` is invalid, and a row with `poison` spoils its request. `faults` come before that, one a request, once
    `sound` requests were answered."""

    posted: list[tuple[str, dict[str, Any], str | None]]
    known: set[str]
    faults: list[Fault]
    sound: int
    most: int

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.posted.append((self.path, body, self.headers.get("Authorization")))
        faulty = self.faults and len(self.posted) > self.sound
        fault = self.faults.pop(0) if faulty else self._whole(body)
        if fault is None:
            self.close_connection = True
            return
        status, headers, content = fault
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _whole(self, body: dict[str, Any]) -> Fault:
        rows = body.get("items", body.get("feedback"))
        if any("poison" in row for row in rows):
            return problem(422, "this row cannot even be read")
        if len(rows) > self.most:
            return problem(422, f"this may have {self.most} rows at most")
        return 200, {}, json.dumps(self._items(rows) if "items" in body else self._feedback(rows)).encode()

    def _items(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        answers = []
        for index, item in enumerate(rows):
            if item["id"] in self.known:
                found = {"type": "/problems/item-exists", "title": "Item exists", "detail": f"{item['id']} exists"}
                answers.append({"index": index, "id": item["id"], "status": 409, "problem": found})
            elif item.get("title") == "bad":
                found = {"type": "/problems/invalid-input", "title": "Invalid input", "detail": "/title: it is bad"}
                answers.append({"index": index, "id": item["id"], "status": 422, "problem": found})
            else:
                self.known.add(item["id"])
                answers.append({"index": index, "id": item["id"], "status": 201})
        return {"items": answers}

    def _feedback(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        bad = [
            {"index": index, "detail": f"There is no item {event['item']!r}."}
            for index, event in enumerate(rows)
            if event["item"] not in self.known
        ]
        return {"accepted": len(rows) - len(bad), "rejected": bad}

    def log_message(self, *_: object) -> None:
        """Quiet."""


def problem(status: int, detail: str, **headers: str) -> Fault:
    return status, headers, json.dumps({"detail": detail}).encode()


Serving = tuple[str, type[Service]]
BUSY = problem(503, "it is busy", **{"Retry-After": "3"})


@pytest.fixture
def service() -> Iterator[Serving]:
    handler = type("Handler", (Service,), {"posted": [], "known": set(), "faults": [], "sound": 0, "most": 1000})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were waited, none of which a test waits."""
    waited: list[float] = []
    monkeypatch.setattr(importing.time, "sleep", waited.append)
    return waited


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("importing") / "tiny"
    write_vectors(folder)
    return folder


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """A file of these lines."""

    def write(*rows: str | bytes, end: str = "\n") -> Path:
        file = tmp_path / "rows.jsonl"
        file.write_bytes(b"\n".join(row if isinstance(row, bytes) else row.encode() for row in rows) + end.encode())
        return file

    return write


def rows(count: int, **more: Any) -> list[str]:
    return [json.dumps({"id": f"row-{number}", "title": f"Lamp {number}", **more}) for number in range(count)]


# --- what is sent ----------------------------------------------------------------------------------------------------


def test_items(lacuna: Run, data: Path, service: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, handler = service
    monkeypatch.setitem(importing.SENT_AT_ONCE, Kind.ITEMS, 25)
    key = tmp_path / "key"
    key.write_text("k1\n")
    code, _, err = lacuna("import", "items", data / "items.jsonl", "--url", url, "--key-file", key)
    assert code == 0
    assert [len(body["items"]) for _, body, _ in handler.posted] == [25, 25, 10]
    assert [row for _, body, _ in handler.posted for row in body["items"]] == lines(data / "items.jsonl")
    assert {(path, key) for path, _, key in handler.posted} == {("/items/batch", "Bearer k1")}
    assert "sending items" in err
    assert "60 items accepted, 0 refused" in err


def test_feedback(lacuna: Run, data: Path, service: Serving, written: Callable[..., Path]) -> None:
    url, handler = service
    handler.known = {f"item-{row}" for row in range(ITEMS)}
    assert lacuna("import", "feedback", data / "feedback.jsonl", "--url", url)[0] == 0
    (path, body, key) = handler.posted[0]
    assert (path, key, body["feedback"]) == ("/feedback", None, events())
    bad = [json.dumps({"user": "u", "item": item, "type": "click"}) for item in ("item-1", "ghost", "ghoul")]
    code, _, err = lacuna("import", "feedback", written(*bad, end=""), "--url", url)
    assert code == 1
    assert "1 feedback accepted, 2 refused" in err
    assert "line 3: There is no item 'ghoul'." in err
    assert "2 refused: There is no item '...'." in err


def test_requests_stay_below_the_size_limit(
    lacuna: Run, data: Path, service: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, handler = service
    monkeypatch.setattr(importing, "SENT_BYTES", 1000)
    assert lacuna("import", "items", data / "items.jsonl", "--url", url)[0] == 0
    assert len(handler.posted) > 5
    assert sum(len(body["items"]) for _, body, _ in handler.posted) == ITEMS


def test_a_second_time_everything_is_left_as_it_is(lacuna: Run, data: Path, service: Serving) -> None:
    url, _ = service
    assert lacuna("import", "items", data / "items.jsonl", "--url", url)[0] == 0
    code, _, err = lacuna("import", "items", data / "items.jsonl", "--url", url)
    assert code == 0
    assert "0 items accepted, 60 left as they are, since they exist, 0 refused" in err


# --- bad lines -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ('{"id":"x","title":"cut', "this is no valid JSON: "),
        ('{"id":"x"},', "this is no valid JSON: "),
        ('{"id":"x",}', "this is no valid JSON: trailing comma is not allowed, column 10"),
        ('{"id":"x","metadata":{"price":NaN}}', "this is no valid JSON: "),
        ('{"id":"x","metadata":{"price":-Infinity}}', "this is no valid JSON: "),
        (b'{"id":"x","title":"\xff"}', "this is no valid JSON: "),
        (b'{"id":"x","title":"\xed\xa0\x80"}', "this is no valid JSON: "),
        ('{"id":"x","title":"\\ud83d"}', "this is no valid JSON: "),
        ('{"id":"x"}{"id":"y"}', "this is no valid JSON: "),
        ("{'id':'x'}", "this is no valid JSON: "),
        ("id,title", "this is no valid JSON: "),
        ("\0\0\0", "this is no valid JSON: "),
        ("[" * 5000, "this is no valid JSON: "),
        ("[1]", "this is no JSON object"),
        ('"x"', "this is no JSON object"),
        ("null", "this is no JSON object"),
        ('{"id":"x","title":"' + "y" * 300 + '"}', "the line is longer than 300 bytes"),
        ('{"id":"x","title":"bad"}', "/title: it is bad"),
        ('{"id":"x","poison":1}', "this row cannot even be read"),
    ],
)
def test_a_bad_line_costs_no_other(
    lacuna: Run,
    service: Serving,
    written: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bad: str | bytes,
    said: str,
) -> None:
    url, handler = service
    monkeypatch.setattr(importing, "LONGEST_LINE", 300 if "longer" in said else 1 << 20)
    good = rows(45)
    file = written(*good[:20], "", " \t\r", bad, *good[20:])
    report = tmp_path / "report.jsonl"
    code, _, err = lacuna("import", "items", file, "--url", url, "--report", report)
    assert code == 1, err
    assert handler.known == {f"row-{number}" for number in range(45)}
    assert "45 items accepted, 1 refused" in err
    assert f"line 23: {said}" in err
    (one,) = lines(report)
    assert one["line"] == 23
    assert one["detail"].startswith(said)
    assert one.get("id") == ("x" if "/title" in said or "row" in said else None)


def test_a_byte_order_mark_and_carriage_returns_are_no_fault(
    lacuna: Run, service: Serving, written: Callable[..., Path]
) -> None:
    url, handler = service
    file = written(BOM + rows(3)[0] + "\r", *(f"{row}\r" for row in rows(3)[1:]), end="")
    assert lacuna("import", "items", file, "--url", url)[0] == 0
    assert handler.known == {"row-0", "row-1", "row-2"}


def test_refusals_are_reported_in_the_order_of_the_file_and_counted_by_reason(
    lacuna: Run, service: Serving, written: Callable[..., Path], tmp_path: Path
) -> None:
    url, _ = service
    bad = ['{"id":"a","title":"bad"}', "[1]", '{"id":"b","title":"bad"}', "x", "[2]", '{"id":"c","title":"bad"}']
    report = tmp_path / "report.jsonl"
    report.write_text("from yesterday")
    code, _, err = lacuna("import", "items", written(*bad * 5), "--url", url, "--report", report)
    assert code == 1
    assert [one["line"] for one in lines(report)] == list(range(1, 31))
    assert [one.get("id") for one in lines(report)[:6]] == ["a", None, "b", None, None, "c"]
    assert err.splitlines()[-5:] == [
        "line 20: " + lines(report)[19]["detail"],
        "... and 10 more (--report FILE lists all)",
        "15 refused: Invalid input",
        "10 refused: this is no JSON object",
        "5 refused: this is no valid JSON",
    ]


def test_a_file_without_one_good_line(lacuna: Run, service: Serving, written: Callable[..., Path]) -> None:
    url, handler = service
    code, _, err = lacuna("import", "items", written("no", "json", "here"), "--url", url)
    assert (code, handler.posted) == (1, [])
    assert "0 items accepted, 3 refused" in err
    assert lacuna("import", "items", written("", "\r", end=""), "--url", url)[0] == 0


def test_lines_of_too_many_bytes_are_passed_over_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "LONGEST_LINE", 10)
    longest, longer = b'{"a":1234}', b'{"a":' + b"1" * 95 + b"}"
    found = list(read_lines(io.BytesIO(longest + b"\n" + longer + b"\n" + longest + b"\n" + longer)))
    assert [type(one) for one in found] == [Line, Refusal, Line, Refusal]
    assert [one.number if isinstance(one, Line) else one.line for one in found] == [1, 2, 3, 4]


# --- a service in trouble --------------------------------------------------------------------------------------------


def test_a_service_that_takes_fewer_rows_gets_fewer(lacuna: Run, data: Path, service: Serving) -> None:
    url, handler = service
    handler.most = 20
    assert lacuna("import", "items", data / "items.jsonl", "--url", url)[0] == 0
    assert len(handler.known) == ITEMS


def test_what_is_away_for_a_moment_is_waited_for(
    lacuna: Run, data: Path, service: Serving, pauses: list[float]
) -> None:
    url, handler = service
    slow_down = problem(429, "slow down", **{"Retry-After": "7"})
    handler.faults = [BUSY, slow_down, (502, {}, b"<html>"), problem(503, "?", **{"Retry-After": "soon"})]
    code, _, err = lacuna("import", "items", data / "items.jsonl", "--url", url)
    assert code == 0
    assert pauses == [3, 7, 4, 8]  # where none is asked for, twice as long each time
    assert "the service answers 429; trying again in 7 s" in err
    assert "60 items accepted" in err


def test_a_service_that_stays_busy_ends_it(lacuna: Run, data: Path, service: Serving, pauses: list[float]) -> None:
    url, handler = service
    endless = problem(503, "it is busy", **{"Retry-After": "86400"})
    handler.faults = [endless] * 20
    sentence = refused(lacuna("import", "items", data / "items.jsonl", "--url", url))
    assert "line 1 and after: 503 it is busy; nothing was sent before" in sentence
    assert pauses == [60] * (importing.ATTEMPTS - 1)
    handler.faults = [(502, {}, b"<html>")] * 20
    sentence = refused(lacuna("import", "items", data / "items.jsonl", "--url", url))
    assert "line 1 and after: 502 Bad Gateway; nothing was sent before" in sentence


def test_halves_of_a_request_count_as_sent(lacuna: Run, service: Serving, written: Callable[..., Path]) -> None:
    url, handler = service
    handler.most = 30
    handler.sound = 3  # all, the first half, its first half
    handler.faults = [problem(401, "the key is no longer valid")]
    answer = lacuna("import", "items", written(*rows(80)), "--url", url)
    assert refused(answer).endswith("line 21 and after: 401 the key is no longer valid; all up to line 20 was sent")
    assert "20 items accepted, 0 refused" in answer[2]


@pytest.mark.parametrize("again", [True, False])
def test_a_service_that_goes_away_midway(
    lacuna: Run,
    service: Serving,
    written: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    again: bool,
) -> None:
    url, handler = service
    monkeypatch.setitem(importing.SENT_AT_ONCE, Kind.ITEMS, 10)
    report = tmp_path / "report.jsonl"
    handler.sound, handler.faults = 2, [None] * (3 if again else 100)
    file = written(*rows(5), "[1]", "", *rows(40)[5:])
    answer = lacuna("import", "items", file, "--url", url, "--report", report)
    assert len(lines(report)) == 1
    if again:
        assert answer[0] == 1
        assert len(handler.known) == 40
        return
    sentence = refused(answer)
    assert f"the service at {url} does not answer: " in sentence
    assert sentence.endswith("all up to line 21 was sent")
    assert handler.known == {f"row-{number}" for number in range(19)}
    assert "19 items accepted, 1 refused" in answer[2]


def test_interrupted_it_says_how_far_it_came(
    lacuna: Run, service: Serving, written: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, handler = service
    monkeypatch.setitem(importing.SENT_AT_ONCE, Kind.ITEMS, 10)
    send = httpx.Client.post

    def post(self: httpx.Client, *address: str, **request: Any) -> httpx.Response:
        if len(handler.posted) == 3:
            raise KeyboardInterrupt
        return send(self, *address, **request)

    monkeypatch.setattr(httpx.Client, "post", post)
    code, _, err = lacuna("import", "items", written(*rows(50)), "--url", url)
    assert code == 130
    assert "interrupted; all up to line 30 was sent" in err
    assert "30 items accepted, 0 refused" in err


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (problem(401, "a key is needed"), "line 1 and after: 401 a key is needed; nothing was sent before"),
        (problem(507, "there is no room"), "line 1 and after: 507 there is no room"),
        ((404, {}, b'"nothing"'), "line 1 and after: 404 nothing"),
        ((200, {}, b"<html>another server</html>"), "is no Lacuna service: it answers 200 and no JSON"),
        ((301, {"Location": "/"}, b""), "is no Lacuna service: it answers 301 and no JSON"),
        ((200, {}, b"[]"), "is no Lacuna service: it answers something else"),
        ((200, {}, b'{"items":[{"index":9999,"problem":{}}]}'), "is no Lacuna service: it answers something else"),
        ((200, {}, b'{"items":[{"index":-1,"problem":{}}]}'), "is no Lacuna service: it answers something else"),
        ((200, {}, b'{"items":[{"index":0,"problem":"?"}]}'), "is no Lacuna service: it answers something else"),
        (None, "does not answer: Server disconnected without sending a response"),
    ],
)
def test_a_service_that_will_have_nothing(
    lacuna: Run, data: Path, service: Serving, fault: Fault, message: str
) -> None:
    url, handler = service
    handler.faults = [fault]
    assert message in refused(lacuna("import", "items", data / "items.jsonl", "--url", url))
    assert len(handler.posted) == 1


# --- what cannot be used ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1:9", "the service at http://127.0.0.1:9 does not answer"),
        ("http://me:s3cret@127.0.0.1:9", "the service at http://127.0.0.1:9 does not answer"),
        ("localhost:8000", "is no URL: "),
        ("http://127.0.0.1:port", "'http://127.0.0.1:port' is no URL: "),
        ("http://", "is no URL: "),
        ("", "is no URL: "),
        ("ftp://x", "is no URL: "),
        ("http://a..b", "does not answer: "),
        ("http://127.0.0.1:99999", "127.0.0.1:99999"),
        ("http://\udcff", "is no URL: "),
        ("http://nosuch.invalid", "does not answer"),
    ],
)
def test_where_nothing_answers(lacuna: Run, data: Path, url: str, message: str) -> None:
    sentence = refused(lacuna("import", "items", data / "items.jsonl", "--url", url))
    assert message in sentence
    if "9 does" in message:
        assert "s3cret" not in sentence


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("\u00fc", "the API key holds characters"),
        ("a\0b", "the API key holds characters"),
        ("a\nb", "holds no one line"),
        ("", "holds no one line"),
        ("\udcff", "it is no text"),
    ],
)
def test_a_key_that_no_header_can_hold(lacuna: Run, data: Path, tmp_path: Path, key: str, said: str) -> None:
    file = tmp_path / "key"
    file.write_bytes(key.encode("utf-8", "surrogateescape"))
    assert said in refused(lacuna("import", "items", data / "items.jsonl", "--key-file", file))


def test_a_key_is_no_option(lacuna: Run, data: Path) -> None:
    code, _, said = lacuna("import", "items", data / "items.jsonl", "--key", "s3cret")
    assert (code, "--key-file" in said, "s3cret" in said) == (2, True, False)


def test_a_proxy_that_is_none(lacuna: Run, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "odd://proxy")
    assert "proxy" in refused(lacuna("import", "items", data / "items.jsonl", "--url", "http://nosuch.invalid"))


def test_files_that_are_none(lacuna: Run, data: Path, tmp_path: Path, service: Serving) -> None:
    url, handler = service
    for file, said in ((tmp_path / "absent.jsonl", "absent.jsonl does not exist"), (tmp_path, "is a folder, no file")):
        assert said in refused(lacuna("import", "items", file, "--url", url))
    source = tmp_path / "items.jsonl"
    source.write_bytes((data / "items.jsonl").read_bytes())
    link = tmp_path / "link"
    link.symlink_to(source)
    reports = [
        (link, "would replace"),
        (tmp_path / "nowhere" / "report", "No such file"),
        (tmp_path, "Is a directory"),
    ]
    for report, said in reports:
        assert said in refused(lacuna("import", "items", source, "--url", url, "--report", report))
    assert source.read_bytes() == (data / "items.jsonl").read_bytes()
    assert handler.posted == []


def test_a_picture_given_as_a_path_is_read_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"picture")
    rows = [
        {"id": "a", "modalities": {"image": "a.png"}, "metadata": {"big": 2**70}},
        {"id": "b", "modalities": {"image": "b.png"}},
        {"id": "c", "modalities": {"image": "../c.png"}},
        {"id": "d", "title": "plain"},
    ]
    stream = io.BytesIO("\n".join(map(json.dumps, rows)).encode())
    first, *refusals, last = read_lines(stream, tmp_path)
    assert isinstance(first, Line)
    assert json.loads(first.data) == {
        "id": "a", "modalities": {"image": {"base64": "cGljdHVyZQ=="}}, "metadata": {"big": 2**70}
    }  # fmt: skip
    assert [refusal.line for refusal in refusals if isinstance(refusal, Refusal)] == [2, 3]
    assert isinstance(last, Line)
    assert last.data == json.dumps(rows[-1]).encode()
