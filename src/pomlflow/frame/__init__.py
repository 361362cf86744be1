"""What a POML frame says beside its messages, in the words of those who are to hear it.

`runtime` names the settings as each provider does, `tools` describes the tools, ties them to the user's functions and
checks their arguments, `schema` shapes the output schema and reads the answer by it, `validation` checks values,
`messages` has OpenAI's shape. It knows no framework: the adapters hand over what it gives.
"""

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
