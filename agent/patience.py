"""Patience that ends: what may never return, in a thread that is left behind if it does not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from agent.errors import Stuck

T = TypeVar("T")


def within(seconds: float, function: Callable[[], T], subject: str) -> T:
    """Return what a function returns, or raise what it raises; Stuck, named after `subject`, if it takes longer."""
    results: list[T] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001  it is raised again where the result is waited for
            errors.append(error)

    thread = threading.Thread(target=call, name=f"within-{seconds:g}s", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise Stuck(subject, f"no answer within {seconds:g} seconds")
    return results[0]
