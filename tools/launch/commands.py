"""Commands, deadlines, exit codes and locks of the launchers.

A command is a list of words and never goes through a local shell. Every
command and every wait has a deadline. A dry run prints what would run, in
words that can be pasted into a shell, and runs nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
import fcntl
import json
import os
from pathlib import Path
import re
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import IO, NamedTuple, TypeVar

from lm import errors

T = TypeVar('T')

# What services say when the same request may succeed in a moment.
_TRANSIENT = re.compile(
  r'\b(UNAVAILABLE|RESOURCE_EXHAUSTED|DEADLINE_EXCEEDED|429|50[0234])\b'
  r'|timed? ?out|connection (reset|refused|closed|aborted)|Broken pipe'
  r'|Temporary failure in name resolution|ConnectionError|TLS handshake'
  r'|Unable to contact slurm controller|try again later',
  re.IGNORECASE,
)
# Exit codes of lm.train that starting it again would only repeat.
FINAL = (2, 4, 5, 6)
REFUSED = 3  # there is another trainer, or one whose lease has not run out
LOST = 7  # another process of the run has failed
HUNG = 10  # a step took far longer than usual
STOPPED = 143  # by SIGTERM, after saving
SIGNALLED = 128  # and above: by a signal, of this number less 128


class Unreachable(errors.Failure):
  """A machine or a service failed, or did not come or answer in time."""

  exit_code = 8


class Result(NamedTuple):
  """How a command ended; `error` is what it wrote to stderr."""

  code: int
  output: str
  error: str


class Shell:
  """Runs commands, or prints them.

  Attributes:
    dry_run: print, and take every answer to be empty.
  """

  def __init__(
    self, *, dry_run: bool, pause_seconds: float = 5.0, tries: int = 6
  ):
    """Takes the first pause between tries and looks; later ones are longer."""
    self.dry_run = dry_run
    self._pause_seconds = pause_seconds
    self._tries = tries

  def ask(
    self,
    words: Sequence[str],
    *,
    stdin: str = '',
    seconds: float = 600.0,
    comment: str = '',
  ) -> Result:
    """Runs a command, again after failures that may pass, and returns the last.

    Args:
      words: the command.
      stdin: what it reads.
      seconds: the deadline, of all tries together.
      comment: said above the command in a dry run.

    Raises:
      Unreachable: the deadline has passed, or there is no such program.
    """
    if self.dry_run:
      self._print(words, stdin, comment)
      return Result(0, '', '')
    deadline = time.monotonic() + seconds
    pause = self._pause_seconds
    for left in reversed(range(self._tries)):
      result = _communicate(words, stdin, deadline)
      passes = result.code and _TRANSIENT.search(result.error)
      pause = min(pause, _left(deadline))
      if not (passes and left and pause):
        break
      say(f'{title(words)}: {reason(result)}: again in {pause:.0f} s')
      time.sleep(pause)
      pause *= 2
    return result

  def run(self, words: Sequence[str], **options) -> str:
    """Runs a command as `ask` does and returns its output.

    Raises:
      Unreachable: it failed.
    """
    result = self.ask(words, **options)
    if result.code:
      raise failure(words, result)
    return result.output

  def stream(
    self,
    words: Sequence[str],
    sink: Callable[[bytes], object],
    *,
    seconds: float,
    comment: str = '',
  ) -> Result:
    """Runs a command once and hands its output on as it comes.

    The deadline ends it like any other failure.
    """
    if self.dry_run:
      self._print(words, '', comment)
      return Result(0, '', '')
    with (
      tempfile.TemporaryFile() as errors_,
      _process(words, subprocess.DEVNULL, errors_) as process,
    ):
      assert process.stdout is not None
      fd = process.stdout.fileno()
      deadline = time.monotonic() + seconds
      while select.select([fd], [], [], _left(deadline))[0]:
        chunk = os.read(fd, 1 << 16)
        if not chunk:
          break
        sink(chunk)
      try:
        code = process.wait(_left(deadline))
      except subprocess.TimeoutExpired:
        return Result(124, '', f'still running after {duration(seconds)}')
      errors_.seek(0)
      return Result(code, '', errors_.read().decode(errors='replace'))

  def wait(
    self, what: str, look: Callable[[], T | None], *, seconds: float, fix: str
  ) -> T | None:
    """Looks until there is something, with pauses that grow twelvefold.

    Args:
      what: is waited for.
      look: returns None if there is nothing yet.
      seconds: the deadline.
      fix: what to do when it has passed.

    Returns:
      What was found; in a dry run None, after one look.

    Raises:
      Unreachable: there was nothing within the deadline.
    """
    deadline = time.monotonic() + seconds
    pause = self._pause_seconds
    while True:
      found = look()
      if found is not None or self.dry_run:
        return found
      if time.monotonic() + pause > deadline:
        raise Unreachable(f'{what}: not within {duration(seconds)}: {fix}')
      time.sleep(pause)
      pause = min(1.5 * pause, 12 * self._pause_seconds)

  def rest(self) -> None:
    """Waits for as long as the longest pause."""
    if not self.dry_run:
      time.sleep(12 * self._pause_seconds)

  def write(self, path: Path, text: str) -> None:
    """Writes a file and the folders above it."""
    if self.dry_run:
      print(shlex.join(['mkdir', '-p', str(path.parent)]))
      self._print(['cat'], text, '', f' > {shlex.quote(str(path))}')
      return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)

  def _print(
    self, words: Sequence[str], stdin: str, comment: str, end: str = ''
  ) -> None:
    if comment:
      print(f'# {comment}')
    line = shlex.join(words) + end
    if stdin:
      assert '\nEND\n' not in f'\n{stdin}\n'
      line += f" <<'END'\n{stdin.rstrip()}\nEND"
    print(line, flush=True)


@contextlib.contextmanager
def _process(
  words: Sequence[str], stdin: int, stderr: int | IO[bytes]
) -> Iterator[subprocess.Popen[bytes]]:
  """Starts a command; it and all that it started are gone afterwards."""
  try:
    process = subprocess.Popen(
      words,
      stdin=stdin,
      stdout=subprocess.PIPE,
      stderr=stderr,
      start_new_session=True,  # one signal reaches the ssh below a gcloud
    )
  except FileNotFoundError:
    raise Unreachable(f'{words[0]}: no such program: install it') from None
  with process:
    try:
      yield process
    finally:
      for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
          with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
          with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)


def _left(deadline: float) -> float:
  return max(0.0, deadline - time.monotonic())


def _communicate(words: Sequence[str], stdin: str, deadline: float) -> Result:
  with _process(words, subprocess.PIPE, subprocess.PIPE) as process:
    try:
      output, error = process.communicate(stdin.encode(), _left(deadline))
    except subprocess.TimeoutExpired:
      raise Unreachable(
        f'{title(words)}: no answer within its deadline: '
        'try the command of --dry_run by hand'
      ) from None
  return Result(
    process.returncode,
    output.decode(errors='replace'),
    error.decode(errors='replace'),
  )


def title(words: Sequence[str]) -> str:
  """Names a command by its first words, without flags."""
  plain = [x for x in words[:6] if not x.startswith('-')]
  return ' '.join(plain)[:80]


def reason(result: Result) -> str:
  """Finds the line of stderr that says why a command failed."""
  lines = [x.strip() for x in result.error.splitlines() if x.strip()]
  told = [x for x in lines if re.match(r'error\b', x, re.IGNORECASE)]
  line = (told or lines or [f'exit code {result.code}'])[-1]
  return re.sub(r'^error: (\([a-z.-]+\) )?', '', line, flags=re.IGNORECASE)


def failure(words: Sequence[str], result: Result) -> Unreachable:
  """Makes the error of a command that failed for good."""
  return Unreachable(
    f'{title(words)}: {reason(result)}: try the command of --dry_run by hand'
  )


def say(text: str) -> None:
  """Tells the user what happens, apart from the output of a run."""
  print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
  """Spells a duration, such as '36 h'."""
  for unit, name in ((3600, 'h'), (60, 'min')):
    if seconds >= 2 * unit:
      return f'{seconds / unit:.0f} {name}'
  return f'{seconds:.3g} s'


def raised(code: int) -> bool:
  """Tells whether an exception ended lm.train, which would come again."""
  return code < SIGNALLED and code not in (REFUSED, LOST, HUNG)


def outcome(codes: Iterable[int]) -> int:
  """Chooses the exit code of a run from those of its processes.

  One that says what is wrong comes first, and last that of a process that
  ended because another one did.
  """
  found = set(codes)
  final = sorted(found & {REFUSED, *FINAL})
  other = sorted(found - {0, LOST}, reverse=True)
  return [*final, *other, *(found & {LOST}), 0][0]


@contextlib.contextmanager
def alone(name: str, shell: Shell) -> Iterator[None]:
  """Lets one launcher of this user at a time work on what has this name.

  Raises:
    errors.Locked: another one does.
  """
  if shell.dry_run:
    yield
    return
  state = os.environ.get('XDG_STATE_HOME') or Path.home() / '.local/state'
  path = Path(state) / 'lm-launch' / f'{name}.lock'
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open('a+') as file:
    file.seek(0)
    holder = file.read().strip()
    try:
      # The kernel's lock: a holder that is dead, or its machine, holds none.
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise errors.Locked(
        f'{path.stem}: another launcher is at work on it, {holder}: stop that'
        ' one first'
      ) from None
    if holder:
      say(f'{path}: left by {holder}, which is dead: taken over')
    file.truncate(0)
    file.write(f'pid {os.getpid()} on {socket.gethostname()}')
    file.flush()
    try:
      yield
    finally:
      file.truncate(0)


def load_json(text: str, where: str) -> dict:
  """Reads what a service answered.

  Raises:
    Unreachable: it is no JSON object.
  """
  try:
    found = json.loads(text)
  except ValueError:
    found = None
  if not isinstance(found, dict):
    raise Unreachable(f'{where}: answered {text[:60]!r}, which is no JSON')
  return found
