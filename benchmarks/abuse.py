"""What the costliest requests cost the service: seconds, memory beyond what it holds anyway, and the longest time for
which nobody else was answered.

Each request is the worst of its kind that fits the limits, or lies just beyond them. While it is sent, another
connection asks for /health/live without pause; the longest of these answers is the stall. The peak is the process's
VmHWM, reset before each request, less what the process held then; what the process takes that decodes a large WebP is
measured apart. The server has one worker and 1,024 file descriptors.

    python benchmarks/abuse.py --bundle build/demo-bundle --json docs/results/service/abuse.json
"""

from __future__ import annotations

import argparse
import base64
import gzip
import http.client
import io
import itertools
import json
import os
import platform
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from models.encoders import decoding

APART = """
import runpy, sys
try:
    runpy.run_path(sys.argv[1], run_name="__main__")
finally:
    print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1], file=sys.stderr)
"""
KEYS = {role: f"key-{role}-0123456789" for role in ("read", "write")}
FILES = 1024
MB = 1 << 20
Do = Callable[["Target"], str]


@dataclass(frozen=True)
class Target:
    """The service under test."""

    port: int
    pid: int

    def send(self, role: str, method: str, path: str, body: bytes, **headers: str) -> str:
        """The status of one request, or what became of the connection."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        given = {"Content-Type": "application/json", "X-API-Key": KEYS[role]}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, body, given)
            answer = connection.getresponse()
            answer.read()
        except OSError as error:
            return type(error).__name__
        finally:
            connection.close()
        return str(answer.status)


class Heart(threading.Thread):
    """Asks whether the service lives, without pause."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.longest = 0.0
        self.stopped = threading.Event()
        self._port = port

    def run(self) -> None:
        """Until it is stopped."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        while not self.stopped.is_set():
            begun = time.perf_counter()
            try:
                connection.request("GET", "/health/live")
                connection.getresponse().read()
            except (OSError, http.client.HTTPException):
                connection.close()
                time.sleep(0.1)
            self.longest = max(self.longest, time.perf_counter() - begun)
            time.sleep(0.002)


# --- bodies -------------------------------------------------------------------------------------------------------


def picture(kind: str, mode: str, size: tuple[int, int] = (5000, 4000), **options: Any) -> bytes:
    """A plain picture, by default of 20 megapixels."""
    stream = io.BytesIO()
    Image.new(mode, size, options.pop("colour", 1 if mode == "1" else 0)).save(stream, kind, **options)
    return stream.getvalue()


def scanned(times: int) -> bytes:
    """A progressive JPEG of 20 megapixels whose last scan comes so many times more."""
    whole = picture("JPEG", "RGB", progressive=True, subsampling=0, quality=50)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + last * times + whole[-2:]


def impute(data: bytes) -> Do:
    """One picture."""
    body = json.dumps({"modalities": {"image": {"base64": base64.b64encode(data).decode()}}}).encode()
    return lambda target: target.send("read", "POST", "/impute", body)


def batch(data: bytes, rows: int) -> Do:
    """The same picture in every row."""
    content = {"image": {"base64": base64.b64encode(data).decode()}}
    ids = itertools.count()

    def send(target: Target) -> str:
        items = [{"id": f"abuse-{next(ids)}", "modalities": content} for _ in range(rows)]
        return target.send("write", "POST", "/items/batch", json.dumps({"items": items}).encode())

    return send


def posted(role: str, path: str, body: bytes, **headers: str) -> Do:
    """A body as it is."""
    return lambda target: target.send(role, "POST", path, body, **headers)


def crowd(*does: Do) -> Do:
    """All of them at once; how many got which answer."""

    def send(target: Target) -> str:
        answers: list[str] = []
        threads = [threading.Thread(target=lambda do=do: answers.append(do(target))) for do in does]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return ", ".join(f"{count} x {answer}" for answer, count in sorted(Counter(answers).items()))

    return send


def fields(count: int, start: bytes = b"{", end: bytes = b"}") -> bytes:
    """An object of so many members that nobody knows."""
    return start + b",".join(b'"%06x":1' % number for number in range(count)) + end


def filled(piece: bytes, size: int = 8 * MB - 64, start: bytes = b"[", end: bytes = b"]") -> bytes:
    """A list of as many pieces as a body may hold."""
    count = (size - len(start) - len(end)) // (len(piece) + 1)
    return start + b",".join([piece] * count) + end


def bad_events(count: int) -> bytes:
    """Feedback of which every field is wrong."""
    row = {"user": "", "item": "a/b", "type": "stare", "value": "5", "text": "", "timestamp": 7, "mood": 1, "more": 2}
    return json.dumps({"feedback": [row] * count}).encode()


def good_events(count: int) -> bytes:
    """Feedback as it should be."""
    rows = [{"user": f"abuse-{row % 500}", "item": f"demo-{1 + row % 900:04d}", "type": "view"} for row in range(count)]
    return json.dumps({"feedback": rows}).encode()


def parts(body: bytes) -> Do:
    """A multipart body around some bytes."""
    head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    whole = head + body + b"\r\n--x--\r\n"
    return lambda target: target.send("read", "POST", "/impute", whole, Content_Type="multipart/form-data; boundary=x")


# --- connections --------------------------------------------------------------------------------------------------


def endless_head(size: int, line: bytes) -> Do:
    """Headers that do not end."""
    piece = line * (MB // len(line) + 1)

    def send(target: Target) -> str:
        with socket.create_connection(("127.0.0.1", target.port), timeout=120) as connection:
            answer = b""
            with suppress(OSError):
                connection.sendall(b"GET /health/live HTTP/1.1\r\n")
                for _ in range(size // len(piece)):
                    connection.sendall(piece)
                connection.sendall(b"\r\n\r\n")
            with suppress(OSError):
                answer = connection.recv(64)
        return answer[9:12].decode() or "closed"

    return send


def silent(count: int) -> Do:
    """Connections that say nothing; whether anybody else is served beside them after twenty seconds."""

    def send(target: Target) -> str:
        held = []
        try:
            for _ in range(count):
                with suppress(OSError):
                    held.append(socket.create_connection(("127.0.0.1", target.port), timeout=5))
            time.sleep(20)
            connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=10)
            try:
                connection.request("GET", "/health/live")
                return f"others are answered {connection.getresponse().status}"
            except OSError as error:
                return f"others see {type(error).__name__}"
        finally:
            for one in held:
                one.close()

    return send


def pipelined(count: int) -> Do:
    """Many requests in one piece."""
    body = b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n" * count

    def send(target: Target) -> str:
        with socket.create_connection(("127.0.0.1", target.port), timeout=60) as connection:
            try:
                connection.sendall(body)
                connection.shutdown(socket.SHUT_WR)
                answers = b"".join(iter(lambda: connection.recv(1 << 16), b"")).count(b"HTTP/1.1 200")
            except OSError as error:
                return type(error).__name__
        return f"{answers} of {count} answered"

    return send


# --- all of them --------------------------------------------------------------------------------------------------


def attacks() -> dict[str, Do]:
    """What is tried, by name."""
    bit = picture("PNG", "1")
    name = "n" * MB
    long_name = json.dumps({"modalities": {name: {f"f{number}": 1 for number in range(200)}}}).encode()
    wide = fields(600_000, b'{"metadata":{', b"}}")
    rows = [{"id": f"a{row}", **{f"f{number}": 1 for number in range(600)}} for row in range(1000)]
    webp = impute(picture("WEBP", "RGBA", lossless=True, method=0))
    numbers = posted("read", "/retrieve", filled(b"1.0625", size=7 * MB, start=b'{"vector":{"text":[', end=b"]}}"))
    return {
        "64 one-bit PNGs of 20 megapixels in a batch": batch(bit, 64),
        "one PNG of 20 megapixels, one bit": impute(bit),
        "one PNG of 20 megapixels, RGBA": impute(picture("PNG", "RGBA", colour=(1, 2, 3, 4))),
        "one PNG of 20 megapixels, 16-bit grey": impute(picture("PNG", "I;16")),
        "one GIF of 20 megapixels": impute(picture("GIF", "P")),
        "one WebP of 20 megapixels, RGBA": webp,
        "one progressive JPEG of 20 megapixels": impute(
            picture("JPEG", "RGB", progressive=True, subsampling=0, quality=50)
        ),
        "a JPEG of 1,000 scans": impute(scanned(1000)),
        "24 of such WebPs and of bodies of a million numbers at once": crowd(*[webp, numbers] * 12),
        "700,000 unknown fields": posted("read", "/recommend", fields(700_000)),
        "a name of 1 MiB with 200 unknown fields": posted("read", "/impute", long_name),
        "8 MiB of empty lists": posted("read", "/recommend", filled(b"[]")),
        "8 MiB of empty objects as pairs": posted("read", "/predict", filled(b"{}", start=b'{"pairs":[', end=b"]}")),
        "a vector of 8 MiB of numbers": posted(
            "read", "/retrieve", filled(b"1.5", start=b'{"vector":{"text":[', end=b"]}}")
        ),
        "a vector of 8 MiB of texts": posted(
            "read", "/retrieve", filled(b'"a"', start=b'{"vector":{"text":[', end=b"]}}")
        ),
        "metadata of 600,000 members": posted("read", "/impute", wide),
        "1,000 bad rows of 600 unknown fields": posted("write", "/items/batch", json.dumps({"items": rows}).encode()),
        "10,000 bad events": posted("write", "/feedback", bad_events(10_000)),
        "10,000 bad events, strict": posted("write", "/feedback?strict=true", bad_events(10_000)),
        "10,000 good events": posted("write", "/feedback", good_events(10_000)),
        "8 MiB of almost boundaries": parts(b"\r\n-" * (8 * MB // 3 - 100)),
        "8 MiB of tiny parts": parts(b'\r\n--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n' * (8 * MB // 60)),
        "12,000 query parameters": posted("read", "/recommend?" + "&".join(f"{n:x}" for n in range(12_000)), b"{}"),
        "a gzip bomb of 1 GiB": posted(
            "read", "/recommend", gzip.compress(bytes(64 * MB), 9) * 16, Content_Encoding="gzip"
        ),
        "a body of 60 MiB": posted("read", "/recommend", bytes(60 * MB)),
        "5,000 requests in one piece": pipelined(5000),
        "80 MiB of headers": endless_head(80 * MB, b"X-A: b\r\n"),
        "one header of 80 MiB": endless_head(80 * MB, b"x" * 8000),
        "1,100 silent connections": silent(1100),
    }


# --- measuring ----------------------------------------------------------------------------------------------------


@dataclass
class Cost:
    """What an attack cost."""

    answer: str
    seconds: float
    peak_mib: float
    stall_ms: float
    tries: int = 1


def status(pid: int, name: str) -> float:
    """A line of the process's status, in MiB."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def measure(target: Target, attack: Do) -> Cost:
    """Run an attack and watch the service."""
    heart = Heart(target.port)
    heart.start()
    time.sleep(0.3)
    heart.longest = 0.0
    Path(f"/proc/{target.pid}/clear_refs").write_text("5")
    before, begun = status(target.pid, "VmRSS"), time.perf_counter()
    answer = attack(target)
    seconds = time.perf_counter() - begun
    time.sleep(0.3)
    heart.stopped.set()
    heart.join()
    return Cost(
        answer, round(seconds, 2), round(status(target.pid, "VmHWM") - before, 1), round(heart.longest * 1e3, 1)
    )


def webp_process_mib() -> float:
    """The most that the process takes that decodes a WebP of 20 megapixels."""
    command = [sys.executable, "-c", APART, decoding.__file__]
    done = subprocess.run(
        command, input=picture("WEBP", "RGBA", lossless=True, method=0), capture_output=True, check=True
    )
    return round(int(done.stderr) / 1024)


def start(bundle: Path, folder: Path, port: int) -> subprocess.Popen[bytes]:
    """The service, ready."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LACUNA_")}
    environment |= {
        "LACUNA_DATA_DIR": str(folder),
        "LACUNA_API_KEYS": ",".join(f"{role}:{role}:{key}" for role, key in KEYS.items()),
        "LACUNA_LOG_LEVEL": "error",
        "OMP_NUM_THREADS": "1",
        "ORT_DISABLE_TELEMETRY": "1",
    }
    command = [sys.executable, "-m", "service", "--bundle", str(bundle), "--port", str(port)]
    process = subprocess.Popen(command, env=environment)
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (FILES, FILES))
    while process.poll() is None:
        with suppress(OSError):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health/ready")
            if connection.getresponse().status == 200:
                return process
        time.sleep(0.2)
    raise RuntimeError("the service did not start")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default="", help="a part of the names of those to be run")
    parser.add_argument("--tries", type=int, default=3, help="the least figures of so many are kept")
    options = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    costs: dict[str, Mapping[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        process = start(options.bundle, Path(folder), port)
        idle = status(process.pid, "VmRSS")
        print(f"the service holds {idle:.0f} MiB")
        try:
            for name, attack in attacks().items():
                if options.only not in name:
                    continue
                found = [measure(Target(port, process.pid), attack) for _ in range(options.tries)]
                cost = Cost(
                    found[0].answer,
                    min(one.seconds for one in found),
                    max(one.peak_mib for one in found),
                    min(one.stall_ms for one in found),
                    len(found),
                )
                costs[name] = vars(cost)
                print(
                    f"{name:48} {cost.answer:32} {cost.seconds:8.2f} s {cost.peak_mib:8.1f} MiB {cost.stall_ms:8.1f} ms"
                )
        finally:
            process.kill()
    if options.json:
        command = " ".join(["python", "benchmarks/abuse.py", *sys.argv[1:]]).replace(
            str(options.bundle.parent), "build"
        )
        machine = f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}"
        result = {
            "what": "what one caller can make a service of the demo bundle spend",
            "command": command,
            "machine": machine,
            "idle_mib": round(idle),
            "webp_mib": webp_process_mib(),
            "costs": costs,
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
