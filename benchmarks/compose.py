"""The composition with several replicas, driven from outside: `docker compose up -d --wait --scale service=2`, then

    python benchmarks/compose.py --url http://127.0.0.1:8000 --key KEY --json docs/results/service/compose.json

in the folder of docker-compose.yml. KEY is one with the role admin. It counts who answered, compares the replicas'
lists, kills one replica and Redis while items are written, and looks whether every acknowledged item is there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

ITEMS = 100
INSIDE = """
import json, sys, urllib.request as r
def ask(path):
    headers = {"X-API-Key": sys.argv[1]}
    return r.urlopen(r.Request("http://127.0.0.1:8000" + path, headers=headers)).read().decode()
lists = [json.loads(ask(path))["items"] for path in ("/recommend/shopper-001?n=200", "/recommend/nobody?n=200")]
counted = [line.split() for line in ask("/metrics").splitlines() if line.startswith("lacuna_requests_total")]
writes = sum(float(line[1]) for line in counted if 'POST",route="/items",status="201"' in line[0])
print(json.dumps({"lists": [[one["id"], one["score"]] for some in lists for one in some], "writes": writes}))
"""


def compose(*arguments: str) -> str:
    """What a command of docker compose prints."""
    return subprocess.run(["docker", "compose", *arguments], capture_output=True, text=True, check=True).stdout


def replicas(key: str) -> list[dict[str, Any]]:
    """What each replica says of itself, asked inside its container."""
    names = [line for line in compose("ps", "--format", "{{.Name}}", "service").split() if line]
    return [json.loads(_inside(name, INSIDE, key)) for name in sorted(names)]


def _inside(container: str, code: str, *arguments: str) -> str:
    command = ["docker", "exec", container, "python", "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


class Writer:
    """Creates items one after the other, and remembers what was acknowledged."""

    def __init__(self, client: httpx.Client, name: str) -> None:
        self._client = client
        self._name = name
        self.statuses: Counter[str] = Counter()
        self.acknowledged: list[str] = []

    def write(self, count: int, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Create items; something else happens at the same time."""
        other = threading.Thread(target=meanwhile)
        other.start()
        for number in range(count):
            item = f"{self._name}-{number}"
            try:
                answer = self._client.post("/items", json={"id": item, "title": f"mug {number}"})
            except httpx.TransportError:
                self.statuses["unanswered"] += 1
                continue
            self.statuses[str(answer.status_code)] += 1
            if answer.status_code == 201:
                self.acknowledged.append(item)
        other.join()

    def result(self) -> dict[str, Any]:
        """Statuses, and how many acknowledged items are not there."""
        lost = sum(self._client.get(f"/items/{item}").status_code != 200 for item in self.acknowledged)
        return {"statuses": dict(self.statuses), "acknowledged": len(self.acknowledged), "lost": lost}


def settle(key: str, wanted: int) -> float:
    """Seconds until so many replicas answer, alike."""
    begun = time.monotonic()
    while time.monotonic() - begun < 300:
        try:
            found = replicas(key)
        except (subprocess.CalledProcessError, json.JSONDecodeError):
            found = []
        if len(found) == wanted and all(one["lists"] == found[0]["lists"] for one in found):
            return round(time.monotonic() - begun, 1)
        time.sleep(0.5)
    raise TimeoutError("the replicas do not come to rest")


def kill_one() -> None:
    """SIGKILL to everything in one replica's container; its restart policy starts it again."""
    name = sorted(compose("ps", "--format", "{{.Name}}", "service").split())[0]
    subprocess.run(
        ["docker", "exec", name, "python", "-c", "import os; os.kill(-1, 9)"], capture_output=True, check=False
    )


def stop_redis() -> None:
    """For two seconds."""
    compose("kill", "redis")
    time.sleep(2)
    compose("start", "redis")


def main() -> int:
    """Drive, print, write; the exit code says whether anything was lost or refused without a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--key", required=True)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    run = f"{int(time.time()) % 100_000}"
    with httpx.Client(base_url=options.url, headers={"X-API-Key": options.key}, timeout=60) as client:
        settle(options.key, options.replicas)
        before = replicas(options.key)
        quiet = Writer(client, f"quiet-{run}")
        quiet.write(ITEMS)
        alike_s = settle(options.key, options.replicas)
        shares = [one["writes"] - old["writes"] for one, old in zip(replicas(options.key), before, strict=True)]
        killed = Writer(client, f"killed-{run}")
        killed.write(ITEMS, kill_one)
        healed_s = settle(options.key, options.replicas)
        deaf = Writer(client, f"deaf-{run}")
        deaf.write(ITEMS, stop_redis)
        deaf_s = settle(options.key, options.replicas)
        found = {
            "what": f"{len(before)} replicas behind one port, {ITEMS} items created in each run",
            "command": " ".join(["python", "benchmarks/compose.py", *sys.argv[1:]]).replace(options.key, "KEY"),
            "machine": {"cores": os.cpu_count(), "load": os.getloadavg()[0]},
            "undisturbed": {**quiet.result(), "by_replica": shares, "alike_after_s": alike_s},
            "one replica killed": {**killed.result(), "all_answer_alike_again_after_s": healed_s},
            "redis killed": {**deaf.result(), "alike_after_s": deaf_s},
        }
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return int(any(found[name]["lost"] for name in ("undisturbed", "one replica killed", "redis killed")))


if __name__ == "__main__":
    sys.exit(main())
