"""`compiled`: machine code of a function, by Numba."""

from __future__ import annotations

from typing import Any

import numba


def compiled(function: Any, **options: Any) -> Any:
    """A function of arrays as machine code, which runs without the interpreter's lock; kept for later processes.

    options: of `numba.njit`.
    """
    try:
        return numba.njit(nogil=True, cache=True, **options)(function)
    except RuntimeError as error:
        if "cannot cache function" not in str(error):
            raise
        # Neither beside the package nor in the user's home is there a place to write to, as in a locked-down container.
        # A folder that others may write to would have them choose the code that runs: each process compiles anew.
        return numba.njit(nogil=True, **options)(function)
