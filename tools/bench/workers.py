"""The parent's side: starts workers and lets them take turns."""

from collections.abc import Mapping, Sequence
import contextlib
import json
import os
from pathlib import Path
import select
import subprocess
import sys
import tempfile
import time
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_FIRST_SECONDS = 1800.0  # the first step of a compiler on a small machine
_STEP_SECONDS = 900.0
# Threads of the previous worker spin for some milliseconds before they sleep.
_PAUSE_SECONDS = 0.05


class Failed(RuntimeError):
  """Raised when a worker ends or does not answer; the text is one line."""


class Worker:
  """A long-lived process; use it in `with`.

  Attributes:
    name: its name in messages and tables.
    facts: its description of itself, and `start_seconds`: the time from the
      start of the process to the end of its first step.
  """

  def __init__(
    self, name: str, command: Sequence[str], environment: Mapping[str, str]
  ):
    """Starts the worker and waits for its first step.

    Args:
      name: its name in messages and tables.
      command: runs in the root of the repository.
      environment: variables in addition to those of this process.

    Raises:
      Failed: the worker did not finish its first step.
    """
    self.name = name
    self._temporary = tempfile.TemporaryDirectory(prefix='bench-')
    self._errors = Path(self._temporary.name, 'stderr')
    start = time.perf_counter()
    with self._errors.open('w') as errors:
      self._process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        env=self._environment(environment),
        cwd=ROOT,
      )
    try:
      self.facts = self._answer(_FIRST_SECONDS)
    except BaseException:
      self.close()
      raise
    self.facts['start_seconds'] = time.perf_counter() - start

  def __enter__(self) -> 'Worker':
    return self

  def __exit__(self, *unused: object) -> None:
    self.close()

  def ask(self, line: str) -> dict[str, Any]:
    """Sends a line and returns the answer.

    Raises:
      Failed: there is no answer.
    """
    assert self._process.stdin is not None
    try:
      self._process.stdin.write(f'{line}\n'.encode())
      self._process.stdin.flush()
    except OSError as error:
      raise self._failure('ended') from error
    return self._answer(_STEP_SECONDS)

  def close(self) -> None:
    """Ends the process."""
    assert self._process.stdin and self._process.stdout
    # It may have ended with a line of ours unread.
    with contextlib.suppress(OSError):
      self._process.stdin.close()
    try:
      self._process.wait(10)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
    self._process.stdout.close()
    self._temporary.cleanup()

  def _environment(self, more: Mapping[str, str]) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith('JAX_COMP')}
    # Nothing that was compiled earlier may make a first step faster.
    return {
      **kept,
      'JAX_ENABLE_COMPILATION_CACHE': 'false',
      'TORCHINDUCTOR_CACHE_DIR': self._temporary.name,
      'TORCHINDUCTOR_FORCE_DISABLE_CACHES': '1',
      'TRITON_CACHE_DIR': self._temporary.name,
      **more,
    }

  def _answer(self, seconds: float) -> dict[str, Any]:
    out = self._process.stdout
    assert out is not None
    if not select.select([out], [], [], seconds)[0]:
      raise self._failure(f'gave no answer in {seconds:g} s')
    line = out.readline()
    if not line:
      raise self._failure('ended')
    return json.loads(line)

  def _failure(self, what: str) -> Failed:
    lines = self._errors.read_text(errors='replace').strip().splitlines()
    return Failed(f'{self.name}: {what}: {lines[-1][:120] if lines else ""}')


def take_turns(
  workers: Sequence[Worker], rounds: int, block_seconds: float
) -> list[list[dict[str, Any]]]:
  """Lets workers step in alternating blocks: A B A B ...

  Machines drift by a factor of two within minutes, so only blocks that follow
  each other compare.

  Args:
    workers: while one of them works, the others wait for input.
    rounds: how many blocks each worker runs.
    block_seconds: how long a block should take; it has at least two steps.

  Returns:
    For each worker its answers to 'step K', one for each round. `peak` in an
    answer has the FLOP/s of matrix products, where the worker can measure them.
  """
  sizes = []
  for worker in workers:
    least = min(worker.ask('step 2')['seconds'])
    sizes.append(max(2, min(100, round(block_seconds / least))))
  blocks: list[list[dict[str, Any]]] = [[] for _ in workers]
  for _ in range(rounds):
    for worker, size, answers in zip(workers, sizes, blocks, strict=True):
      time.sleep(_PAUSE_SECONDS)
      answers.append(worker.ask(f'step {size}'))
      answers[-1]['peak'] = worker.ask('peak')
  return blocks


def ours() -> list[str]:
  """Returns the command of `ours.py`; a workload is appended to it."""
  return [sys.executable, '-m', 'tools.bench.ours']
