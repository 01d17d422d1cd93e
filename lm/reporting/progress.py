"""A progress line on stderr, with the speed of the last steps."""

import collections
from collections.abc import Callable, Sequence
import io
import math
import shutil
import sys
import time
from typing import TextIO


def short(value: float) -> str:
  """Prints a count in about four characters: 999, 12.3k, 4.56M."""
  for limit, unit in ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    if value >= limit:
      return f'{value / limit:.3g}{unit}'
  return f'{value:.0f}'


class Progress:
  """A line on stderr: redrawn on a terminal, else printed every 10 seconds."""

  def __init__(
    self,
    steps: int,
    tokens_per_step: int = 0,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
    name: str = 'step',
  ):
    """Begins a line.

    Args:
      steps: how many there are.
      tokens_per_step: for the speed in tokens; 0: it is not shown.
      stream: to write to; None: stderr.
      clock: gives seconds.
      name: what is counted.
    """
    self._name = name
    self._steps = steps
    self._tokens_per_step = tokens_per_step
    self._stream = sys.stderr if stream is None else stream
    self._clock = clock
    self._live = self._stream.isatty()
    self._every_seconds = 0.1 if self._live else 10.0
    # The rate is that of the last updates: compiling does not count for long.
    self._times: collections.deque[tuple[float, int]] = collections.deque(
      maxlen=50
    )
    self._drawn = -math.inf
    self._open = False

  def rate(self) -> float:
    """Returns the steps per second of the last updates; 0 while unknown."""
    if len(self._times) < 2:
      return 0.0
    (t0, s0), (t1, s1) = self._times[0], self._times[-1]
    return max(0.0, (s1 - s0) / (t1 - t0)) if t1 > t0 else 0.0

  def update(
    self,
    step: int,
    loss_nats: float | None = None,
    bits_per_byte: float | None = None,
    words: Sequence[str] = (),
  ) -> None:
    """Notes a finished step, and draws it if it is time, or the last step."""
    now = self._clock()
    self._times.append((now, step))
    if step < self._steps and 0 <= now - self._drawn < self._every_seconds:
      return
    self._drawn = now
    rate = self.rate()
    parts = [f'{self._name} {step}/{self._steps}', *words]
    if loss_nats is not None:
      parts.append(f'loss {loss_nats:.4f} nats')
    if bits_per_byte is not None:
      parts.append(f'{bits_per_byte:.4f} bits/byte')
    if rate and self._tokens_per_step:
      parts.append(f'{short(rate * self._tokens_per_step)} tokens/s')
    if rate and step < self._steps:
      left = round((self._steps - step) / rate)
      parts.append(f'ETA {left // 3600}:{left // 60 % 60:02}:{left % 60:02}')
    self._draw('  '.join(parts), step)

  def _draw(self, line: str, step: int) -> None:
    if self._live:
      done = round(20 * min(1.0, step / max(1, self._steps)))
      line = f'[{"#" * done}{"." * (20 - done)}] {line}'
      # The terminal would break a wider line, and `\r` overwrites one row.
      line = line[: shutil.get_terminal_size().columns - 1]
      self._stream.write(f'\r{line}\x1b[K')
      self._open = True
    else:
      self._stream.write(line + '\n')
    self._stream.flush()

  def say(self, line: str) -> None:
    """Prints a line of its own, above the live one."""
    self.close()
    self._stream.write(line + '\n')
    self._stream.flush()

  def close(self) -> None:
    """Ends the live line."""
    if self._open:
      self._stream.write('\n')
      self._stream.flush()
      self._open = False


class Unseen(io.StringIO):
  """Takes what a process that does not lead would print, and forgets it."""

  def write(self, text: str, /) -> int:
    return len(text)
