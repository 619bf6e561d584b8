"""What every benchmark shares. A benchmark is a `Case`; its opponents run in one process and in turn, so that a slow
moment of the machine meets them all, and no figure is kept before outputs and gradients agree with the reference.

    cases      a case, and the grid of shapes          calls     what is timed: fresh memory, cold caches, CUDA graphs
    opponents  who runs a case, and memory's limit     timing    the interleaved rounds
    agreement  with the reference: the gate            profiled  bytes held, operators and launches of a call
    machine    what it ran on                          report    the figures of a row

`conftest.py` hands the recorded times to pytest-benchmark; `tables.py` and `render.py` show them.
"""

from .agreement import Gate, arranged
from .calls import caller, graphed, rotated, sets_beyond
from .cases import BATCHES, LATENTS, PIXELS, Case, Inputs, Opponent, Row, both, each, on_gpu, over, selected
from .machine import about
from .opponents import opponent_of, opponents_of
from .profiled import operations, peak_memory
from .report import Results, record, replay
from .timing import Measurement, Settings, interleave, measure, operands

__all__ = [
    "BATCHES",
    "LATENTS",
    "PIXELS",
    "Case",
    "Gate",
    "Inputs",
    "Measurement",
    "Opponent",
    "Results",
    "Row",
    "Settings",
    "about",
    "arranged",
    "both",
    "caller",
    "each",
    "graphed",
    "interleave",
    "measure",
    "on_gpu",
    "operands",
    "operations",
    "opponent_of",
    "opponents_of",
    "over",
    "peak_memory",
    "record",
    "replay",
    "rotated",
    "selected",
    "sets_beyond",
]
