"""Which TensorRT release the reference speaks as, and what arrived when."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

SUPPORTED = ("10.14", "10.15", "10.16", "11.0", "11.1")

# Build numbers only make `__version__` look like TensorRT's; nothing depends on them.
_BUILDS = {"10.14": "1.48", "10.15": "1.29", "10.16": "0.72", "11.0": "0.114", "11.1": "0.106"}

_current = "11.0"
_weak_shapes = False
_listeners: list[Callable[[], None]] = []


def _key(release: str) -> tuple[int, int]:
    major, minor = release.split(".")
    return int(major), int(minor)


def current() -> str:
    """The release spoken now, such as "11.0"."""
    return _current


def full_version() -> str:
    """`tensorrt.__version__` of the current release."""
    return f"{_current}.{_BUILDS[_current]}"


def at_least(release: str) -> bool:
    """Whether the current release is `release` or later."""
    return _key(_current) >= _key(release)


def weak_shapes() -> bool:
    """Whether static dims behind a reshape's -1 or a computed shape element are forgotten."""
    return _weak_shapes


def set_version(release: str) -> None:
    """Speak as `release` from now on. ValueError for one that the reference does not know."""
    global _current
    if release not in SUPPORTED:
        raise ValueError(f"the reference TensorRT speaks {', '.join(SUPPORTED)}, not {release!r}")
    _current = release
    for listener in _listeners:
        listener()


def set_weak_shapes(weak: bool) -> None:
    """Model TensorRT's weak shape inference (see `weak.py`), or stop doing so."""
    global _weak_shapes
    _weak_shapes = bool(weak)


def on_change(listener: Callable[[], None]) -> None:
    """Call `listener` after every change of version, and once now."""
    _listeners.append(listener)
    listener()


@contextlib.contextmanager
def version(release: str) -> Iterator[None]:
    """Speak as `release` inside the block."""
    before = _current
    set_version(release)
    try:
        yield
    finally:
        set_version(before)


@contextlib.contextmanager
def weak_shape_inference(weak: bool = True) -> Iterator[None]:
    """Forget static dims as TensorRT does inside the block."""
    before = _weak_shapes
    set_weak_shapes(weak)
    try:
        yield
    finally:
        set_weak_shapes(before)


class since:
    """A method that exists from one release on: before it, `hasattr` says no on the class and on its instances."""

    def __init__(self, release: str) -> None:
        self.release = release
        self.function: Callable[..., Any] | None = None

    def __call__(self, function: Callable[..., Any]) -> since:
        self.function = function
        self.__doc__ = function.__doc__
        return self

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: object, owner: type) -> Any:
        if not at_least(self.release):
            raise AttributeError(f"TensorRT {_current} has no {owner.__name__}.{self.name} (since {self.release})")
        if instance is None or self.function is None:
            return self.function
        return self.function.__get__(instance, owner)
