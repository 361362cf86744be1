"""Rows a second of examples/ray_batch.py with one and two actors, and an ``mlflow server`` on PostgreSQL.

python tests/benchmarks/ray_rows.py --rows 2000
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.mlflow_server import MlflowServer
from tests.postgres import find_postgres, postgres

EXAMPLE = Path(__file__).parents[2] / "examples" / "ray_batch.py"


def main() -> None:
    """Run the example with each number of actors, and print what it prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2000)
    options = parser.parse_args()
    programs = find_postgres()
    if programs is None:
        raise SystemExit("PostgreSQL is not installed")
    with (
        tempfile.TemporaryDirectory() as folder,
        postgres(programs) as store,
        MlflowServer(Path(folder), store) as server,
    ):
        environment = {**os.environ, "MLFLOW_TRACKING_URI": server.uri, "RAY_AUTH_MODE": "disabled"}
        for actors in (1, 2):
            command = [
                sys.executable,
                EXAMPLE,
                f"--rows={options.rows}",
                f"--actors={actors}",
            ]
            subprocess.run(command, env=environment, check=True, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
