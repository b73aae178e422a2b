"""Whatever is written in whichever order, through one or two services, what is derived ends as it follows from what is
stored."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.feedback import EVENT_TYPES, RATED
from tests.service.running import Running, base64_of, settings_for
from training.demo.catalogue import demo_item

WORDS = ("red", "blue", "striped", "linen", "leather", "mug", "shoe", "lamp")
PICTURES = [base64_of(demo_item(k=number).picture) for number in range(4)]
AUDIO = 12


class Writer:
    """Random writes to items new and old, and feedback of users known and new, at any time."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.items = [f"demo-{number:04d}" for number in range(0, 120, 7)]
        self.users = [*(f"shopper-{number:03d}" for number in range(6)), *(f"somebody-{number}" for number in range(6))]

    def write(self, service: Running) -> None:
        """Write something; what it meets with does not matter, as the other service may have been faster."""
        weights = {self.put: 5, self.patch: 5, self.feedback: 12, self.take_back: 3, self.delete: 2, self.erase: 1}
        (act,) = self.rng.choices(list(weights), list(weights.values()))
        act(lambda *asked, **options: service.client.request(*asked, **options))

    def put(self, ask: Callable[..., Any]) -> None:
        item = self.rng.choice([*self.items, f"made-{self.rng.randrange(30)}"])
        self.items.append(item)
        ask("PUT", f"/items/{item}", json={"modalities": {name: self.content(name) for name in self.some_modalities()}})

    def patch(self, ask: Callable[..., Any]) -> None:
        contents = {name: self.rng.choice([None, self.content(name)]) for name in self.some_modalities()}
        ask("PATCH", f"/items/{self.rng.choice(self.items)}", json={"modalities": contents})

    def feedback(self, ask: Callable[..., Any]) -> None:
        events = []
        for _ in range(self.rng.randint(1, 5)):
            kind = self.rng.choice(EVENT_TYPES)
            event = {"user": self.rng.choice(self.users), "item": self.rng.choice(self.items), "type": kind}
            event["timestamp"] = f"2026-03-{self.rng.randint(1, 28):02d}T00:00:00Z"
            events.append(event | ({"value": self.rng.randint(1, 5)} if kind in RATED else {}))
        ask("POST", "/feedback", json={"feedback": events})

    def take_back(self, ask: Callable[..., Any]) -> None:
        ask("DELETE", "/feedback", params={"user": self.rng.choice(self.users), "item": self.rng.choice(self.items)})

    def delete(self, ask: Callable[..., Any]) -> None:
        ask("DELETE", f"/items/{self.rng.choice(self.items)}")

    def erase(self, ask: Callable[..., Any]) -> None:
        ask("DELETE", f"/users/{self.rng.choice(self.users)}")

    def some_modalities(self) -> list[str]:
        return self.rng.sample(["text", "image", "audio"], self.rng.randint(0, 3))

    def content(self, name: str) -> Any:
        if name == "text":
            return " ".join(self.rng.sample(WORDS, 3))
        return (
            self.rng.choice(PICTURES) if name == "image" else {"vector": [self.rng.gauss(0, 1) for _ in range(AUDIO)]}
        )


@pytest.mark.parametrize("seed", range(3))
def test_one_service(alone: Running, seed: int) -> None:
    writer = Writer(seed)
    for _ in range(3):
        for _ in range(40):
            writer.write(alone)
        alone.check_index()


@pytest.mark.parametrize("seed", range(2))
def test_two_services(seeded_file: Path, demo_bundle: Path, demo_folder: Path, tmp_path: Path, seed: int) -> None:
    """Each learns of the other's writes late."""
    file = Path(shutil.copy(seeded_file, tmp_path / "lacuna.db"))
    settings = settings_for(demo_bundle, demo_folder, file, follow_seconds=1)
    writer = Writer(10 + seed)
    with Running(settings) as one, Running(settings) as other:
        for _ in range(3):
            for _ in range(40):
                writer.write(writer.rng.choice([one, other]))
            for service in (one, other, one, other):
                service.settle()
            for service in (one, other):
                service.check_index()
    with Running(settings) as again:
        again.check_index()
