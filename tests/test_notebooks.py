"""Each notebook of examples/ runs, and its stored outputs are those of a run; ``make notebooks`` stores them anew."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
# A kernel and its client are programs of their own, with whatever warnings they have.
pytestmark = pytest.mark.filterwarnings("ignore")


def execute(notebook: Path, folder: Path) -> Any:
    """Run a copy of a notebook next to copies of its prompts."""
    shutil.copytree(EXAMPLES / "prompts", folder / "prompts")
    read = nbformat.read(notebook, as_version=4)
    client = nbclient.NotebookClient(
        read, timeout=100, kernel_name="python3", record_timing=False, resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    return read


def outputs(notebook: Any) -> list[Any]:
    """All outputs, without what differs: trace ids, the kernel's logs, and a repr's length, which the folder changes.

    The text that a cell prints may be in several outputs, so it is joined.
    """
    shown: list[Any] = []
    for cell in notebook.cells:
        found = [one for one in cell.get("outputs", ()) if one.get("name") != "stderr"]
        shown.append("".join(one["text"] for one in found if "text" in one))
        shown += [one["data"] for one in found if "data" in one]
    texts = [json.dumps(one, sort_keys=True, indent=1, ensure_ascii=False) for one in shown]
    return [re.sub(r"(?<=tr-)[0-9a-f]{32}|\d+(?= more characters\])", "…", text) for text in texts]


def install_kernel(folder: Path) -> None:
    """Define the kernel ``python3`` as this environment's, whatever kernels the user has."""
    spec = {"argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]}
    spec |= {"display_name": "Python 3", "language": "python"}
    (folder / "kernels" / "python3").mkdir(parents=True)
    (folder / "kernels" / "python3" / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=[notebook.stem for notebook in NOTEBOOKS])
def test_a_notebook_shows_what_is_stored_in_it(
    notebook: Path, tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if notebook.stem == "llama_index":
        pytest.importorskip("llama_index.core", reason="the extra llama-index is not installed")
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "JUPYTER", "IPYTHON"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    install_kernel(tmp_path / "jupyter")
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    stored = nbformat.read(notebook, as_version=4)
    assert outputs(execute(notebook, tmp_path)) == outputs(stored)
    assert any("text/html" in output.get("data", {}) for cell in stored.cells for output in cell.get("outputs", ()))


def main() -> None:
    for notebook in NOTEBOOKS:
        with tempfile.TemporaryDirectory() as folder:
            made = execute(notebook, Path(folder))
            for cell in made.cells:
                if cell.cell_type == "code":
                    cell["outputs"] = [one for one in cell.outputs if one.get("name") != "stderr"]
            nbformat.write(made, notebook)


if __name__ == "__main__":
    main()
