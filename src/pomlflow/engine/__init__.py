"""Warm POML: markup and variables to a frame, in Node processes that stay.

It starts no process before the first render, ends them with the interpreter in whatever way that ends, and starts
afresh in a forked child. It knows neither frameworks nor MLflow.
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
