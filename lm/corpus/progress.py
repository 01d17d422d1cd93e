"""The progress of a build: what is done, how fast, and how long it will take.

Results of tasks that say how many documents and bytes they were about, and why
documents were dropped, are added up in the line.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
import contextlib
import time
from typing import Any

from lm.reporting import progress

# (step, number of tasks, tasks that are done, words of the line, is it over)
Say = Callable[[str, int, int, list[str], bool], None]

_REASONS = 3  # that a line has, the most frequent ones


class Steps:
  """Follows the steps of a build."""

  def __init__(
    self, say: Say | None, clock: Callable[[], float] = time.monotonic
  ):
    self._say = say
    self._clock = clock

  def run(
    self, name: str, results: Iterable[tuple[int, Any]], count: int
  ) -> list[Any]:
    """Waits for the results of a step's tasks; returns them in their order."""
    start = self._clock()
    found: dict[int, Any] = {}
    total: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for n, result in results:
      found[n] = result
      if isinstance(result, dict):
        total.update({x: result.get(x, 0) for x in ('documents', 'bytes')})
        reasons.update(result.get('reasons', {}))
      words = _words(total, reasons, self._clock() - start)
      self._tell(name, count, len(found), words, False)
    self._end(name, count, _words(total, reasons, self._clock() - start), start)
    return [found[n] for n in range(count)]

  @contextlib.contextmanager
  def one(self, name: str) -> Iterator[None]:
    """Follows a step that is one task."""
    start = self._clock()
    self._tell(name, 1, 0, [], False)
    yield
    self._end(name, 1, [], start)

  def _end(self, name: str, count: int, words: list[str], start: float) -> None:
    seconds = self._clock() - start
    self._tell(name, count, count, [*words, f'{seconds:.1f} s'], True)

  def _tell(
    self, name: str, count: int, done: int, words: list[str], is_over: bool
  ) -> None:
    if self._say:
      self._say(name, count, done, words, is_over)


def _words(
  total: Counter[str], reasons: Counter[str], seconds: float
) -> list[str]:
  """Says how much was done, how fast, and what was dropped."""
  words = []
  if total['documents']:
    words.append(f'{progress.short(total["documents"])} documents')
  if total['bytes'] and seconds:
    words.append(f'{total["bytes"] / 1e6 / seconds:.1f} MB/s')
  documents = sum(reasons.values())
  dropped = Counter({x: n for x, n in reasons.items() if x})
  if dropped:
    words.append(f'kept {reasons[""] / documents:.1%}')
    words += [
      f'{x} {progress.short(n)}' for x, n in dropped.most_common(_REASONS)
    ]
  return words
