"""Room on the disk for checkpoints."""

from pathlib import Path
import shutil

from lm import errors


def check(root: Path, need: int, what: str) -> None:
  """Checks that there is room for the bytes of `what`.

  Raises:
    errors.Storage: there is not.
  """
  # Manifest, metadata and the last block of each file come on top.
  need += need // 50 + (1 << 20)
  free = shutil.disk_usage(root).free
  if free < need:
    raise errors.Storage(
      f'{root}: {what} needs {need} bytes and {free} are free: make room, or'
      ' lower keep, or use another workdir'
    )


def explain(error: Exception, root: Path, step: int, need: int) -> Exception:
  """Says in one line why a step was not saved, if the system refused it.

  Args:
    error: that ended the save; it is returned if it is of another kind.
    root: of the checkpoints.
    step: that was to be saved.
    need: its bytes.
  """
  cause = errors.refusal(error)
  if cause is None:
    return error
  explained = errors.Storage(
    f'{root}: step {step} not saved: {cause} (needs {need} bytes,'
    f' {shutil.disk_usage(root).free} free); older steps are intact: make room'
  )
  explained.__cause__ = error
  return explained
