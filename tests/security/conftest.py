"""The real service and its bundles, as the tests of the service make them."""

from __future__ import annotations

from tests.service.conftest import (  # noqa: F401
    _encoders_are_loaded_once,
    _one_thread,
    data_dir,
    demo_bundle,
    demo_folder,
    kept,
    plain_bundle,
    running,
    seeded_file,
)
