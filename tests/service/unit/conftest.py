"""An engine over an empty database, for the app in the test's own process."""

from __future__ import annotations

from tests.service.asgi import active, empty_file, engine, startable, store  # noqa: F401
