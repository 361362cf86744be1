"""Each example, run as the docs show, in a folder of its own."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from tests.programs import run_program

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, folder: Path) -> str:
    """Run an example; return what it prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    done = run_program(EXAMPLES / name, folder=folder, environment=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(autouse=True)
def _store(tmp_path: Path, empty_store: Path) -> None:
    """Put an empty store where examples look for one: to make a new one takes seconds."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")


def test_the_tests_of_prompts_notice_a_change_of_one_prompt(tmp_path: Path) -> None:
    """And pass for the others."""
    folder = shutil.copytree(EXAMPLES, tmp_path / "examples")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": "syrupy"}
    prompt = folder / "prompts" / "text_qa.poml"
    prompt.write_text(prompt.read_text(encoding="utf-8").replace("If none does", "If there is none"), encoding="utf-8")
    program = "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
    command = ["-q", "-p", "no:cacheprovider", str(folder / "test_prompts.py")]
    report = run_program(program, *command, folder=tmp_path, environment=environment).stdout
    assert "1 snapshot failed. 3 snapshots passed." in report
    assert "+ Quote the sentence that answers the question. If there is none, say so." in report


def test_the_langchain_chain_shows_messages_answer_tree_and_linked_version(tmp_path: Path) -> None:
    shown = run("langchain_chain.py", tmp_path)
    assert "system: # Role\n\nYou brief the crew of a research ship, in plain words." in shown
    assert "- Sampling needs the winch. (chief scientist)" in shown
    assert "Day 3: Swell of three metres, winch work stopped." in shown
    assert re.search(r"human: \[image/png, \d+ bytes\]", shown)
    assert "They stopped winch work: the swell was three metres." in shown
    tree = re.search(r"RunnableSequence  \[CHAIN\].*?(?=\n\n)", shown, re.DOTALL)
    assert tree is not None
    assert re.sub(r"  [\d.]+ ms", "", tree[0]).splitlines() == [
        "RunnableSequence  [CHAIN]",
        "  PomlPromptTemplate  [CHAIN]",
        "    poml prompts.briefing  [PROMPT]",
        "  FakeListChatModel  [CHAT_MODEL]",
        "  StrOutputParser  [CHAIN]",
    ]
    assert "prompts:/prompts.briefing/1: POML from prompts/briefing.poml" in shown
    assert "settings: {'temperature': 0.2, 'max_tokens': 300}" in shown
    assert re.search(r"1 trace\(s\) found by \"prompt = 'prompts.briefing/1'\", the newest: tr-[0-9a-f]{32}", shown)
    assert f"-m mlflow ui --backend-store-uri sqlite:///{(tmp_path / 'mlflow.db').as_posix()}" in shown


def test_the_turns_of_a_conversation_are_one_session(tmp_path: Path) -> None:
    shown = run("conversation.py", tmp_path)
    assert "When did winch work stop? At noon." in shown
    assert len(re.findall(r"^tr-[0-9a-f]{32}: session watch-3$", shown, re.MULTILINE)) == 3


def test_the_query_engine_streams_an_answer_and_shows_what_was_sent(tmp_path: Path) -> None:
    pytest.importorskip("llama_index.core", reason="the extra llama-index is not installed")
    shown = run("llama_index_query_engine.py", tmp_path)
    assert "answer: Winch work stopped at noon and was not taken up again." in shown
    assert re.search(r"QuotingLLM\.stream  \[LLM\].*\n +poml prompts.text_qa  \[PROMPT\]", shown)
    assert "Day 3: swell of three metres.\nWinch work stopped at noon" in shown, "the paper's newline was lost"
    assert "linked prompts: [{'name': 'prompts.text_qa', 'version': '1'}]" in shown


def test_pomls_own_example_has_the_call_and_the_render_in_one_trace(tmp_path: Path) -> None:
    shown = run("plain_poml.py", tmp_path)
    assert "sent:  {'temperature': 0.2, 'stop': ['END'], 'max_completion_tokens': 200}" in shown
    assert "answer: It multiplies speed by time." in shown
    tree = ["the trace > explain", "explain > poml prompts.explain_code", "explain > Completions"]
    assert [line for line in shown.splitlines() if " > " in line] == tree
    assert 'linked prompts: [{"name": "prompts.explain_code", "version": "1"}]' in shown
    assert "local files: 0001.explain_code.context.json, 0001.explain_code.env, 0001.explain_code.poml" in shown


def test_one_added_line_traces_an_agent_of_either_framework(tmp_path: Path) -> None:
    pytest.importorskip("llama_index.core", reason="the extra llama-index is not installed")
    shown = run("attach_to_existing_agent.py", tmp_path)
    assert shown.count("They should stay on board.") == 2
    assert "'poml advice' is a child of 'advice'" in shown
    assert "'poml advice' is a child of 'Model.predict'" in shown
    assert shown.count('linked prompts: [{"name": "advice", "version": "1"}]') == 2


def test_one_poml_file_drives_an_agent_and_its_settings_are_on_the_models_spans(tmp_path: Path) -> None:
    pytest.importorskip("llama_index.core", reason="the extra llama-index is not installed")
    shown = run("agent_with_poml.py", tmp_path)
    assert shown.count("the tool returned: station 4: gale for 6 hours") == 2
    for framework in ("LangChain", "LlamaIndex"):
        assert f'{framework}: {{"ashore": false, "reason": "Gale until noon."}}' in shown
    assert '2 renders, linked: [{"name": "prompts.harbour", "version": "1"}]' in shown
    assert shown.count("ScriptedChatModel called with: temperature 0.2, tokens 300") == 2
    assert '0 renders, linked: [{"name": "prompts.harbour", "version": "1"}]' in shown
    assert shown.count("MockFunctionCallingLLM.astream_chat called with: temperature 0.2, tokens 300") == 2


def test_a_prompt_of_the_registry_brings_its_files_and_follows_its_alias(tmp_path: Path) -> None:
    pytest.importorskip("llama_index.core", reason="the extra llama-index is not installed")
    shown = run("prompt_from_registry.py", tmp_path)
    assert "LangChain renders prompts:/briefing/1: 2 messages" in shown
    assert "LlamaIndex renders prompts:/briefing/1: 2 messages" in shown
    assert re.search(r"stored with the version: log\.txt \(\d+ bytes\), track\.png \(\d+ bytes\)", shown)
    assert shown.count("after the move: '# Task\\n\\nAnswer in one word: May we sample?'") == 2


def test_two_versions_are_evaluated_compared_and_rolled_out(tmp_path: Path) -> None:
    shown = run("evaluate_versions.py", tmp_path)
    evaluated, production = shown.split("evaluated:\n")[1].split("in production:\n")
    assert [line.split() for line in evaluated.splitlines()[2:4]] == [
        ["1", "3", "0.0", "16.0", "0.0"],
        ["2", "3", "0.0", "13.0", "1.0"],
    ]
    rows = [line.split() for line in production.splitlines()[2:4]]
    assert sum(int(row[1]) for row in rows) == 20
    assert all(int(row[1]) for row in rows)
    assert [row[2:] for row in rows] == [["0.0", "0.0"], ["0.0", "1.0"]]
    assert "0 of 20 users would go back" in production


def test_an_optimiser_gets_reasons_and_its_result_loads_with_its_files(tmp_path: Path) -> None:
    pytest.importorskip("llama_index.core", reason="the extra llama-index is not installed")
    shown = run("optimise_prompt.py", tmp_path)
    assert "unchanged: 0.0 No, the winch is locked." in shown
    assert "no picture: 0.0 the candidate for prompts:/briefing/1 has lost the file track.png: change the" in shown
    assert "a fence: 0.0 the candidate for prompts:/briefing/1 is not a POML document: it must be" in shown
    assert "from 0.0 to 1.0: prompts:/briefing/2" in shown
    assert "loaded with its files: ['text', 'text', 'image']" in shown
