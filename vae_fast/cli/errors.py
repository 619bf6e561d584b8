"""What a user did wrong, and files written whole or not at all."""

import os
import tempfile
from pathlib import Path


class UserError(Exception):
    """A mistake in the arguments or the files given: the command prints it as one line and exits with 2."""


class Interrupted(Exception):
    """SIGINT or SIGTERM, turned into an exception where stopping is safe.

    **Arguments**: the signal's number, and the checkpoint to resume from (None: nothing was trained yet).
    """

    def __init__(self, signum: int, checkpoint: Path | None = None) -> None:
        super().__init__(signum, checkpoint)
        self.signum = signum
        self.checkpoint = checkpoint


def write_whole(path: Path, content: bytes) -> None:
    """Writes a temporary file beside `path`, then renames it: what stood there before survives any failure.

    **Raises** OSError naming `path`, with the temporary file removed.
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
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
