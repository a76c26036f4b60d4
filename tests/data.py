"""Where the development data lies; tests that need it skip where it is absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("EDGEID_DATA") or ROOT.parent / "shared" / "data")
REASON = f"no development data at {DATA}: set EDGEID_DATA"

needs_data = pytest.mark.skipif(not (DATA / "people.csv").is_file(), reason=REASON)
