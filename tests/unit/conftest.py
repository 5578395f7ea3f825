"""Properties are true or not; how long an example takes is the machine's matter."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
