"""Prints the main loops of the Triton and the CUDA C++ kernels side by side, instructions an element, for three GPUs.

No GPU is needed: both are compiled for GPUs and counted in their machine code, CUDA C++ in the library as it was built.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "gpu"))

import sass
import test_budgets
import test_cuda_budgets

ARCHITECTURES = (80, 90, 100)
UNITS = ("fma", "alu", "xu", "lsu", "control", "uniform")


def loops(name: str, cc: int) -> list[sass.Counts]:
    """An element's counts in Triton's loop and in that of CUDA C++."""
    launch_of, read, *_ = test_budgets.BARS[name]
    both = (test_budgets.compiled(launch_of, cc)[1].body, test_cuda_budgets.loop(name, cc))
    return [body.per_element(body.elements(read)) for body in both]


def table(head: str, columns: Sequence[str], cell: Callable[[str, str], str]) -> None:
    print(f"| {head} | " + " | ".join(columns) + " |\n|" + " --- |" * (1 + len(columns)))
    for name in test_cuda_budgets.BARS:
        print(f"| {name} | " + " | ".join(cell(name, column) for column in columns) + " |")


def main() -> None:
    counts = {(name, cc): loops(name, cc) for name in test_cuda_budgets.BARS for cc in ARCHITECTURES}

    def both(of: Sequence[sass.Counts], unit: str = "instructions") -> str:
        return " / ".join(f"{getattr(c, unit):.1f}" for c in of)

    print("Instructions an element, Triton / CUDA C++\n")
    table("loop", [f"sm_{cc}" for cc in ARCHITECTURES], lambda name, column: both(counts[name, int(column[3:])]))
    print("\nOn sm_90, by the unit that executes them\n")
    table("loop", UNITS, lambda name, unit: both(counts[name, 90], unit))


if __name__ == "__main__":
    main()
