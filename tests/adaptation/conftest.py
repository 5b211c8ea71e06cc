"""One thread for torch: these networks are too small to share, and threads that wait for each other cost the most."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from metarl.core.threads import torch_threads


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with torch_threads(1):
        yield
