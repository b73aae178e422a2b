"""What a use case works with. Use cases take all of it; computations take the parts that they name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from service.pipeline.active import Active
from service.pipeline.memory import Memory
from service.pipeline.runtime import Runtime
from service.ports import Cache, Fetcher, Store


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one request."""

    image_pixels: int = 20_000_000
    text_chars: int = 20_000
    request_pixels: int = 100_000_000  # of all its pictures together


@dataclass(frozen=True, slots=True)
class Calibrating:
    """How confidences are used and calibrated: the `least` by modality that counts, from how many `pairs` on they are
    calibrated (0: never), and beyond which calibration error the service warns (0: never)."""

    least: Mapping[str, float] = field(default_factory=dict)
    pairs: int = 200
    warn_at: float = 0.15


@dataclass
class Engine:
    """One running catalogue under one bundle."""

    store: Store
    cache: Cache
    active: Active
    memory: Memory
    runtime: Runtime
    limits: Limits = field(default_factory=Limits)
    calibrating: Calibrating = field(default_factory=Calibrating)
    fetcher: Fetcher | None = None  # without one, pictures' URLs are refused
    snapshots: Path = Path("snapshots")  # the folder
    closers: list[Callable[[], None]] = field(default_factory=list)

    @property
    def model_version(self) -> str:
        """The bundle's version, as answers carry it."""
        return self.active.version

    async def close(self) -> None:
        """Finish what was begun, leave to the next start what can wait, and let go of everything."""
        await self.retire()
        await self.cache.close()
        await self.store.close()

    async def retire(self) -> None:
        """The same, but for what another engine over the same database goes on using."""
        with suppress(Exception):  # so that the next start need not look for what others have written up to here
            await self.store.absorb((), self.runtime.followed.position)
        await self.runtime.close()
        for close in self.closers:
            close()
