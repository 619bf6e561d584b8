"""What a user did wrong, and files written whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """A mistake in the arguments or the files given: the command prints it as one line and exits with 2."""


@contextmanager
def refusals() -> Iterator[None]:
    """Around code that refuses options by ValueError or TypeError, as Lightning does: the mistake is the user's."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error


class Interrupted(BaseException):
    """SIGINT or SIGTERM, turned into an exception where stopping is safe; no `except Exception` swallows it.

    **Arguments**: the signal's number, and the checkpoint to resume from (None: nothing was trained yet).
    """

    def __init__(self, signum: int, checkpoint: Path | None = None) -> None:
        super().__init__(signum, checkpoint)
        self.signum = signum
        self.checkpoint = checkpoint


def write_whole(path: Path, content: bytes) -> None:
    """Writes a temporary file beside `path`, then renames it: what stood there before survives any failure.

    **Raises** OSError naming `path`. The temporary file is removed whatever stops the writing.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = file.name
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
