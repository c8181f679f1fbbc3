"""What draws conclusions: one family of findings a module."""

from __future__ import annotations

from typing import Final

from session_tracer.detectors.detached import DetachedLazyLoad
from session_tracer.detectors.protocol import Detector

__all__ = ["DEFAULT_DETECTORS", "DetachedLazyLoad", "Detector"]

DEFAULT_DETECTORS: Final[tuple[Detector, ...]] = (DetachedLazyLoad(),)
