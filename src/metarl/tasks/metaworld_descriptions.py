"""All 50 environments of Meta-World, by their official names."""

from __future__ import annotations

from metarl.tasks.metaworld_hinged import HINGED
from metarl.tasks.metaworld_press import PRESSING
from metarl.tasks.metaworld_push import PUSHING
from metarl.tasks.metaworld_tools import TOOLS

DESCRIPTIONS = {**PUSHING, **HINGED, **PRESSING, **TOOLS}
