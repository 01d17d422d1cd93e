"""Profiles some steps of a run, for xprof and Perfetto.

`profile=(100, 110)` of a config traces the updates from step 100 to step 110,
ten of them, into RUN/profile. Device operations carry the scopes of the code
that they come from, such as `loss`, `optimizer` and `layers_0/attention`.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib

import jax

from lm import checkpoint, config
from lm.checkpoint import manifest

FOLDER = 'profile'


def check(c: config.Config) -> None:
  """Checks the steps that a config asks a profile of.

  Raises:
    config.ConfigError: they are no steps of the run.
  """
  if not c.profile:
    return
  if len(c.profile) != 2 or c.profile[0] >= c.profile[1]:
    raise config.ConfigError(
      f'profile: {c.profile} is no pair of steps: give the first and the last,'
      ' such as (100,110), or () for none'
    )
  if c.profile[1] > c.steps:
    raise config.ConfigError(
      f'profile: {c.profile} ends after the last step, which is steps={c.steps}'
    )


class Profile:
  """Traces the steps of a run that its config asks for.

  Only the process that leads does, and of its own devices. A trace that fails
  costs a warning; the run goes on.
  """

  def __init__(
    self,
    steps: Sequence[int],
    checkpointer: checkpoint.Checkpointer,
    wait: Callable[[], None],
    say: Callable[[str], None],
  ):
    """Prepares.

    Args:
      steps: the first and the last, see `check`; () for none.
      checkpointer: of the run's folder.
      wait: returns when the devices have done what they were given.
      say: prints a line: where the trace lies.
    """
    self._first, self._last = steps or (0, 0)
    if not checkpointer.leads:
      self._last = 0
    self._folder = checkpointer.workdir / FOLDER
    self._wait, self._say = wait, say
    self._on = False

  @contextlib.contextmanager
  def step(self, step: int) -> Iterator[None]:
    """Stands around what makes a step; traces it if it is one of those."""
    if not self._first < step <= self._last:
      yield
      return
    if not self._on:
      self._wait()  # what came before is no part of it
      self._on = self._guarded(self._start)
    ended = True
    try:
      with jax.profiler.StepTraceAnnotation('train', step_num=step):
        yield
      ended = False
    finally:
      if self._on and (ended or step == self._last):
        self._stop()

  def _start(self) -> None:
    options = jax.profiler.ProfileOptions()
    # Python's calls would fill the file, and slow the host down.
    options.python_tracer_level = 0
    jax.profiler.start_trace(
      self._folder, create_perfetto_trace=True, profiler_options=options
    )

  def _stop(self) -> None:
    self._on, self._last = False, 0
    self._wait()
    if self._guarded(jax.profiler.stop_trace):
      self._say(f'the profile lies in {self._folder}')

  def _guarded(self, fn: Callable[[], None]) -> bool:
    try:
      fn()
    except (OSError, RuntimeError, ValueError) as error:
      self._last = 0
      manifest.warn(f'profile: there is none: {error}')
      return False
    return True
