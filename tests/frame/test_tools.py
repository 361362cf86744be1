"""The tools of a POML file, their functions, and the arguments of their calls."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pomlflow.exceptions import ToolArgumentsError, ToolError
from pomlflow.frame.tools import (
    ToolSpec,
    check_accepts,
    check_arguments,
    check_functions,
    functions_by_name,
    tool_specs,
)

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "maximum": 7}},
    "required": ["city"],
}
WEATHER = ToolSpec("weather", "The weather.", PARAMETERS)


def weather(city: str, days: int = 1) -> str:
    return f"Rain in {city} for {days}"


def test_the_tools_of_a_render_are_read_in_order() -> None:
    output = {
        "messages": [],
        "tools": [
            {"type": "function", "name": "weather", "description": "The weather.", "parameters": PARAMETERS},
            {"type": "function", "name": "now"},
        ],
    }
    assert tool_specs(output) == [WEATHER, ToolSpec("now", "", {"type": "object"})]
    assert tool_specs({"messages": []}) == []


def test_the_shape_of_openai() -> None:
    assert WEATHER.openai() == {
        "type": "function",
        "function": {"name": "weather", "description": "The weather.", "parameters": PARAMETERS},
    }


def test_functions_are_keyed_by_their_names() -> None:
    tool = SimpleNamespace(name="now")
    assert functions_by_name([weather, tool]) == {"weather": weather, "now": tool}
    assert functions_by_name({"other": weather}) == {"other": weather}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([weather, weather], "two functions have the name 'weather'"),
        ([lambda: 1], "has no name of its own"),
        ({"weather": "rain"}, "needs a function, not a str"),
    ],
)
def test_invalid_functions_are_refused(given: Any, message: str) -> None:
    with pytest.raises(ToolError, match=message):
        functions_by_name(given)


def test_an_error_names_unmatched_tools_and_functions() -> None:
    """Those that match are accepted."""
    check_functions([WEATHER], ["weather"])
    check_functions([], [])
    with pytest.raises(ToolError, match=r"a\.poml defines 'weather' without a function.*for the function 'now'") as e:
        check_functions([WEATHER], ["now"], "a.poml")
    assert e.value.tool == "weather"


def test_a_function_without_a_tool_is_accepted_where_variables_decide_on_the_tools() -> None:
    check_functions([], ["now"], exact=False)
    with pytest.raises(ToolError, match="defines 'weather' without a function"):
        check_functions([WEATHER], ["now"], exact=False)


def test_valid_arguments_lose_the_nulls_of_strict_mode() -> None:
    assert check_arguments(WEATHER, {"city": "Oslo", "days": None}) == {"city": "Oslo"}


def test_arguments_of_a_choice_lose_the_nulls_of_strict_mode() -> None:
    choice = {"anyOf": [{"type": "object", "properties": {"b": {"type": "string"}}}, {"type": "null"}]}
    spec = ToolSpec("weather", "The weather.", {"type": "object", "properties": {"a": choice}})
    assert check_arguments(spec, {"a": {"b": None}}) == {"a": {}}
    assert check_arguments(spec, {"a": None}) == {"a": None}


def test_invalid_arguments_are_an_error_with_places() -> None:
    with pytest.raises(ToolArgumentsError, match=r"weather: .*'city' is a required.*\$\.days: 9 is greater") as caught:
        check_arguments(WEATHER, {"days": 9}, "a.poml")
    error = caught.value
    assert (error.tool, error.arguments, len(error.problems)) == ("weather", {"days": 9}, 2)


def test_a_function_without_an_argument_of_its_tool_is_an_error() -> None:
    check_accepts(WEATHER, ["city", "days", "state"])
    with pytest.raises(
        ToolError, match=r"a\.poml: the function of <tool-definition> 'weather' does not accept 'days'"
    ) as caught:
        check_accepts(WEATHER, ["city"], "a.poml")
    assert caught.value.tool == "weather"
