"""Fault injection through the environment variable FAULT, for tests.

`FAULT='nan_grad@17,slow_save@0.5'` names faults, each with a step, a range of
steps (`nan_grad@5-60`) or, if its name begins with `slow_`, seconds. Without
the variable no fault ever strikes. It is read only here.
"""

import functools
import os
import signal

NAMES = (
  'nan_grad',  # the gradient of this step is NaN
  'spike_grad',  # the gradient of this step is 1e8 times as large
  'hang_step',  # this step waits for ever, inside of the device
  'flip_bit',  # one bit of a parameter is wrong after this step
  'fail_read',  # reading the batch of this step fails, as a bad disk does
  'die_in_save',  # kill -9 while this step is being saved
  'stop_in_save',  # SIGSTOP while this step is being saved
  'die_in_send',  # kill -9 before this step counts in its bucket
  'die_in_delete',  # kill -9 while this step is being deleted
  'slow_save',  # seconds between writing a step's arrays and committing it
  'slow_delete',  # seconds before each file of a deleted step goes
  'slow_host',  # seconds that this process takes between two steps
  'slow_read',  # seconds before each file of a step is verified
)


def at(name: str) -> tuple[int, ...]:
  """Returns the steps at which a fault strikes; () for none.

  Raises:
    ValueError: FAULT is malformed.
  """
  assert name in NAMES and not name.startswith('slow_'), name
  return tuple(int(step) for step in _read().get(name, ()))


def seconds(name: str) -> float:
  """Returns how many seconds a `slow_` fault lasts, 0 for none.

  Raises:
    ValueError: FAULT is malformed.
  """
  assert name in NAMES and name.startswith('slow_'), name
  return sum(_read().get(name, ()))


def strike(name: str, step: int) -> None:
  """Kills (`die_`) or stops (`stop_`) this process at the steps of a fault."""
  if step in at(name):
    stop = name.startswith('stop_')
    os.kill(os.getpid(), signal.SIGSTOP if stop else signal.SIGKILL)


def _read() -> dict[str, tuple[float, ...]]:
  return _parse(os.environ.get('FAULT', ''))


@functools.lru_cache(maxsize=8)
def _parse(text: str) -> dict[str, tuple[float, ...]]:
  faults: dict[str, tuple[float, ...]] = {}
  for item in filter(None, (part.strip() for part in text.split(','))):
    name, _, value = item.partition('@')
    if name not in NAMES:
      raise ValueError(
        f'FAULT={item[:40]}: unknown fault; choose from {", ".join(NAMES)}'
      )
    try:
      faults[name] = faults.get(name, ()) + _values(name, value)
    except ValueError:
      want = 'SECONDS' if name.startswith('slow_') else 'STEP or FIRST-LAST'
      raise ValueError(f'FAULT={item[:40]}: want {name}@{want}') from None
  return faults


def _values(name: str, value: str) -> tuple[float, ...]:
  if name.startswith('slow_'):
    if not 0 <= float(value) < 1e6:
      raise ValueError
    return (float(value),)
  first, dash, last = value.partition('-')
  steps = tuple(range(int(first), int(last if dash else first) + 1))
  if not steps:
    raise ValueError
  return steps
