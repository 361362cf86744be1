"""The engine: renders markup and variables to a frame, in long-lived Node processes.

It starts no process before the first render. All processes end with the interpreter, however that ends. A forked child
starts processes of its own.
"""

from pomlflow.engine.engine import arun, close, prewarm, run, stats
from pomlflow.engine.installation import poml_version
from pomlflow.engine.protocol import Request, Result, Stats
from pomlflow.engine.serialize import encode, is_identifier

__all__ = [
    "Request",
    "Result",
    "Stats",
    "arun",
    "close",
    "encode",
    "is_identifier",
    "poml_version",
    "prewarm",
    "run",
    "stats",
]
