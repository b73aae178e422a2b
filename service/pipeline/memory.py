"""What a worker holds in memory, all of it derived from SQL: the catalogue, users' histories, and the profiles by which
ratings are predicted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from service.pipeline.catalogue import Catalogue
from service.pipeline.history import Histories
from service.pipeline.profiles import Profiles


@dataclass
class Memory:
    """One worker's memory. `profiles` is there where the bundle predicts ratings."""

    catalogue: Catalogue
    histories: Histories
    profiles: Profiles | None = None

    def known_users(self) -> set[str]:
        """Users of whom anything is in memory."""
        users = {user for user, _ in self.histories.cached()} | self.histories.loading.keys()
        return users if self.profiles is None else users | self.profiles.users()

    def forget_users(self, users: Iterable[str]) -> None:
        """Drop histories and rating profiles of users, after a write that changes them."""
        users = list(users)
        self.histories.forget(users)
        if self.profiles is not None:
            self.profiles.forget("user", users)

    def forget_items(self, items: Iterable[str]) -> None:
        """Drop rating profiles of items, after a write that changes them."""
        if self.profiles is not None:
            self.profiles.forget("item", items)

    def erase_item(self, item: str) -> None:
        """Drop the rating profile of a deleted item, and its content."""
        self.forget_items([item])
        if self.profiles is not None:
            self.profiles.erase(item)

    def forget_profiles(self) -> None:
        """Drop the rating profiles of everybody."""
        if self.profiles is not None:
            self.profiles.clear()
