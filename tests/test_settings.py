"""Settings: from code, else the environment, else the defaults; an error names an invalid value."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import re
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pomlflow import engine, settings
from pomlflow.exceptions import ConfigurationError

EVERY: dict[str, tuple[str, Any]] = {
    "timeout": ("2", 2.0),
    "prompt_root": ("prompts", Path("prompts").absolute()),
    "max_workers": ("3", 3),
    "max_queue": ("5", 5),
    "max_memory": ("700", 700),
    "max_content": ("99", 99),
    "allow_read": (os.pathsep.join(["/a", "/b"]), (Path("/a").absolute(), Path("/b").absolute())),
    "sandbox": ("0", False),
}


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start each test without settings, and restore them after it."""
    monkeypatch.setattr(settings, "_current", None)
    for name in EVERY:
        monkeypatch.delenv(f"POMLFLOW_{name.upper()}", raising=False)


def test_the_environment_is_read_at_first_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POMLFLOW_TIMEOUT", "2.5")
    monkeypatch.setenv("POMLFLOW_PROMPT_ROOT", str(tmp_path))
    assert settings.settings() == settings.Settings(timeout=2.5, prompt_root=tmp_path)


def test_an_empty_variable_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POMLFLOW_TIMEOUT", "")
    monkeypatch.setenv("POMLFLOW_PROMPT_ROOT", "")
    assert settings.settings() == settings.Settings(timeout=30.0, prompt_root=None)


def test_workers_default_to_the_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray and Spark set OMP_NUM_THREADS to a process's share."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert settings.settings().workers == 8
    for share, workers in {"1": 1, "3": 3, "16": 8, "0": 8, "4,2": 8}.items():
        monkeypatch.setenv("OMP_NUM_THREADS", share)
        assert settings.settings().workers == workers
    settings.configure(max_workers=5)
    assert settings.settings().workers == 5


def test_a_process_of_a_pool_has_one_worker() -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(engine.stats).result().max_workers == 1


def test_code_overrides_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POMLFLOW_TIMEOUT", "2.5")
    assert settings.configure(prompt_root=str(tmp_path)) == settings.Settings(2.5, tmp_path)
    assert settings.configure(timeout=7) == settings.Settings(7.0, tmp_path)
    assert settings.settings() == settings.Settings(7.0, tmp_path)


def test_a_prompt_root_does_not_depend_on_the_working_folder_and_can_be_reset(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here = Path.cwd()
    settings.configure(prompt_root="prompts")
    monkeypatch.chdir(tmp_path)
    assert settings.settings().prompt_root == here / "prompts"
    assert settings.configure(prompt_root="").prompt_root is None


def test_a_block_changes_one_setting_and_sees_later_changes_of_the_others() -> None:
    with settings.configured(timeout=5):
        settings.configure(sandbox=False, timeout=9)
        assert settings.settings() == settings.Settings(timeout=5.0, sandbox=False)
    assert settings.settings() == settings.Settings(timeout=9.0, sandbox=False)


@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan"), "soon", [], "1s"])
def test_an_invalid_timeout_is_refused(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match=r"timeout must be a number of seconds above 0"):
        settings.configure(timeout=value)
    assert settings.settings().timeout == 30.0


@pytest.mark.parametrize(
    ("name", "wrong", "what"),
    [
        ("max_workers", 2.9, "an integer >= 0"),
        ("max_workers", -1, "an integer >= 0"),
        ("max_queue", float("inf"), "an integer >= 0"),
        ("max_queue", "many", "an integer >= 0"),
        ("max_memory", 0, "an integer >= 1"),
        ("max_content", -1, "an integer >= 0"),
        ("max_memory", [], "an integer >= 1"),
        ("max_content", "1.5", "an integer >= 0"),
        ("timeout", 10**400, "a number of seconds above 0"),
        ("prompt_root", 5, "a folder"),
        ("allow_read", 5, "a list of folders"),
        ("allow_read", Path("/a"), "a list of folders"),
        ("allow_read", [5], "a list of folders"),
        ("sandbox", [], r"True or False \(.*\)"),
    ],
)
def test_a_value_of_a_wrong_type_is_refused(name: str, wrong: Any, what: str) -> None:
    before = settings.settings()
    with pytest.raises(ConfigurationError, match=f"^{name} must be {what}, got "):
        settings.configure(**{name: wrong})  # type: ignore[misc]
    assert settings.settings() == before


@pytest.mark.parametrize("name", ["TIMEOUT", "MAX_WORKERS", "SANDBOX"])
def test_an_error_names_the_environment_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"POMLFLOW_{name}", "perhaps")
    with pytest.raises(ConfigurationError, match=f"POMLFLOW_{name} must be .*, got 'perhaps'"):
        settings.settings()


def test_each_setting_is_an_argument_an_environment_variable_and_a_row_of_its_page(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page = (Path(__file__).parents[1] / "docs" / "settings.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)=.*?\| `POMLFLOW_(\w+)`", page, re.MULTILINE)
    names = [field.name for field in dataclasses.fields(settings.Settings)]
    assert names == list(EVERY)
    assert list(settings.SettingsOptions.__annotations__) == names
    assert sorted(rows) == sorted((name, name.upper()) for name in names)
    for name, (text, _) in EVERY.items():
        monkeypatch.setenv(f"POMLFLOW_{name.upper()}", text)
    assert dataclasses.asdict(settings.settings()) == {name: value for name, (_, value) in EVERY.items()}


@pytest.mark.parametrize("name", ["cached_results", "exact_openai_chat"])
def test_a_setting_that_was_removed_names_its_replacement(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for change in (settings.configure, settings.configured):
        with pytest.raises(ConfigurationError, match=f"{name} was removed in pomlflow 0.2: "):
            change(**{name: 1}).__enter__()
    monkeypatch.setenv(f"POMLFLOW_{name.upper()}", "1")
    monkeypatch.setattr(settings, "_current", None)
    with pytest.raises(ConfigurationError, match=f"POMLFLOW_{name.upper()} was removed"):
        settings.settings()
