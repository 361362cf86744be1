"""Tools, output schema, runtime settings and media of a render, translated to provider parameters."""

from __future__ import annotations

from pomlflow.frame.schema import checked_answer, json_value, parse_answer, response_format, schema_name, strict_form
from pomlflow.frame.settings import Provider, Settings, settings
from pomlflow.frame.tools import ToolSpec, check_accepts, check_arguments, match, named, tool_specs

__all__ = [
    "Provider",
    "Settings",
    "ToolSpec",
    "check_accepts",
    "check_arguments",
    "checked_answer",
    "json_value",
    "match",
    "named",
    "parse_answer",
    "response_format",
    "schema_name",
    "settings",
    "strict_form",
    "tool_specs",
]
