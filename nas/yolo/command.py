"""Ultralytics' own command line, in a process where the blocks of nas are registered."""

from __future__ import annotations

from ultralytics.cfg import entrypoint

__all__ = ["entrypoint"]
