"""Shape and options of a launch."""

from __future__ import annotations

from dataclasses import dataclass

WARP = 32


@dataclass(frozen=True)
class Launch:
    """Shape and options of a launch."""

    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    dynamic_shared: int = 0
    max_steps: int = 20_000_000
    approx_noise: int | None = None
    racecheck: bool = False

    @property
    def blocks(self) -> int:
        return self.grid[0] * self.grid[1] * self.grid[2]

    @property
    def block_threads(self) -> int:
        return self.block[0] * self.block[1] * self.block[2]

    @property
    def padded_threads(self) -> int:
        """Threads of a block, rounded up to whole warps."""
        return -(-self.block_threads // WARP) * WARP
