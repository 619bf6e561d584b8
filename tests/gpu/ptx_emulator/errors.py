"""What the emulator raises when a kernel does something invalid."""


class EmulatorError(Exception):
    """The kernel did something invalid: a deadlock, a failed assertion, a trap, a divergent barrier."""


class MemoryFault(EmulatorError):
    """An access out of bounds or misaligned, or a read of shared memory that nobody wrote."""
