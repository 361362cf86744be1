"""POML templates: parsing, variable inference, validation, warnings, and renders as records."""

from __future__ import annotations

from pomlflow.template.source import Snapshot
from pomlflow.template.template import Template

__all__ = ["Snapshot", "Template"]
