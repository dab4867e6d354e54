"""Attributes of layers, as strict as pybind11's: what TensorRT does not have cannot be set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import versions


class Setting:
    """One settable attribute with a default, a conversion, and the release that brought it."""

    def __init__(self, default: Any = None, convert: Callable[[Any], Any] | None = None, since: str = "10.0") -> None:
        self.default = default
        self.convert = convert
        self.since = since

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def _require(self, owner: type) -> None:
        if not versions.at_least(self.since):
            raise AttributeError(
                f"TensorRT {versions.current()} has no {owner.__name__}.{self.name} (since {self.since})"
            )

    def __get__(self, instance: Any, owner: type) -> Any:
        self._require(owner)
        if instance is None:
            return self
        return instance.__dict__.get(self.name, self.default)

    def __set__(self, instance: Any, value: Any) -> None:
        self._require(type(instance))
        instance.__dict__[self.name] = value if self.convert is None or value is None else self.convert(value)
        instance.changed(self.name)


class Configurable:
    """An object whose only settable public attributes are its `Setting`s and properties."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            attribute = next((vars(k)[name] for k in type(self).__mro__ if name in vars(k)), None)
            if not hasattr(attribute, "__set__"):
                raise AttributeError(f"{type(self).__name__} has no settable attribute {name!r}")
        object.__setattr__(self, name, value)

    def changed(self, name: str) -> None:
        """Called after a setting took a new value."""
