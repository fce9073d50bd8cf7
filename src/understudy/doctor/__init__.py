"""Preflight: everything that can be found wrong before a run costs anything, and how to put it right."""

from understudy.doctor.examine import examine
from understudy.doctor.finding import Finding

__all__ = ["Finding", "examine"]
