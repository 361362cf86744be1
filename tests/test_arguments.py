"""Arguments that do not exist: an error names the replacement, or the argument with the most similar name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.templates import HELLO

import pomlflow
from pomlflow.exceptions import ConfigurationError


def test_autolog_names_register_for_register_prompts() -> None:
    with pytest.raises(ConfigurationError, match=r"register_prompts was removed in pomlflow 0\.2: use register="):
        pomlflow.autolog(register_prompts=False)


@pytest.mark.parametrize(
    ("call", "meant"),
    [
        (lambda: pomlflow.autolog(registr=False), "'registr'; did you mean 'register'"),
        (lambda: pomlflow.configure(timout=1), "'timout'; did you mean 'timeout'"),
        (lambda: pomlflow.render(HELLO, nam="a"), "'nam'; did you mean 'name'"),
        (
            lambda: pomlflow.render(Path("a"), zzz=1),
            "'zzz'; pass a variable in a mapping, .*: {\"zzz\": …}$",
        ),
        (lambda: pomlflow.configure(**dict.fromkeys("hgfedcba")), "'a'$"),  # of several, the first in the alphabet
    ],
)
def test_a_misspelled_argument_names_the_one_that_was_meant(call: Callable[[], Any], meant: str) -> None:
    with pytest.raises(TypeError, match=f"got an unexpected keyword argument {meant}"):
        call()
