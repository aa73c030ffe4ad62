"""Optional dependencies: what a missing one is needed for, and how to install it."""

from __future__ import annotations


class MissingExtraError(ImportError):
    """A part of the package needs an optional dependency that is not installed.

    Raised as ``MissingExtraError(purpose, package, extra)``.
    """

    def __init__(self, purpose: str, package: str, extra: str) -> None:
        super().__init__(purpose, package, extra)
        self.purpose = purpose
        self.package = package
        self.extra = extra

    def __str__(self) -> str:
        return (
            f"{self.purpose} requires {self.package}, which is not installed: "
            f'pip install "nfd_fast[{self.extra}]"'
        )
