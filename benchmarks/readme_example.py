"""Runs the README's Python example against a fresh demo service and writes what it printed below it.

python benchmarks/readme_example.py --bundle build/demo-bundle
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from walkthrough import Service

README = Path(__file__).parent.parent / "README.md"
BLOCK = re.compile(r"```python\n(.*?)```\n\n```text\n(.*?)```", re.DOTALL)


def main() -> None:
    """Run and rewrite."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    text = README.read_text("utf-8")
    found = BLOCK.search(text)
    if found is None:
        raise SystemExit("README.md has no Python example followed by its output")
    with tempfile.TemporaryDirectory() as data:
        service = Service(parser.parse_args().bundle, Path(data))
        try:
            service.start()
            code = found[1].replace("127.0.0.1:8000", f"127.0.0.1:{service.port}")
            done = subprocess.run(
                [sys.executable, "-c", code], cwd=README.parent, capture_output=True, text=True, check=True
            )
        finally:
            service.stop()
    README.write_text(text[: found.start(2)] + done.stdout + text[found.end(2) :], "utf-8")


if __name__ == "__main__":
    main()
