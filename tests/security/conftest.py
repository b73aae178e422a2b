"""The real service and its bundles, as the tests of the service make them."""

from __future__ import annotations

from tests.service.asgi import active, empty_file, engine, startable, store  # noqa: F401
from tests.service.conftest import (  # noqa: F401
    data_dir,
    demo_bundle,
    demo_folder,
    encoders_are_loaded_once,
    kept,
    one_thread,
    plain_bundle,
    running,
    seeded_file,
)
