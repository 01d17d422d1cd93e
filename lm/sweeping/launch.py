"""Launches the runs of a sweep on other machines, by the launchers of tools.

Each run is a job of its own, with the launcher's own rules for workdirs, data
and restarts; see docs/launching.md. A launcher is started as a program, since
tools/ uses lm and never the other way round.
"""

from collections.abc import Callable, Sequence
import hashlib
import importlib.util
import re
import subprocess
import sys

from lm import config, errors
from lm.sweeping import trials

# The command of a launcher that hands a run over, if the user names none.
LAUNCHERS = {'slurm': (), 'tpu_vm': ('all',), 'gke': ('apply',)}
_LONGEST = 40  # characters of a job's name, as GKE takes it
_DIGITS = 6


class Refused(errors.Failure):
  """A launcher has ended with an error."""

  def __init__(self, text: str, code: int):
    """Takes the text, and the launcher's exit code."""
    super().__init__(text)
    self.exit_code = code


def job(sweep: str, name: str) -> str:
  """Names the job of a run, in the letters that all launchers take."""
  plain = re.sub('[^a-z0-9]+', '-', f'{sweep}-{name}'.lower()).strip('-')
  digest = hashlib.sha256(f'{sweep}/{name}'.encode()).hexdigest()[:_DIGITS]
  begin = re.sub('^[^a-z]+', '', plain)[: _LONGEST - _DIGITS - 1].rstrip('-')
  return f'{begin or "sweep"}-{digest}'


class Launcher:
  """Hands the runs of a sweep over."""

  def __init__(self, name: str, own: Sequence[str], sweep: str, place: str):
    """Checks what can be checked before anything is launched.

    Args:
      name: 'slurm', 'tpu_vm' or 'gke'.
      own: its own flags, and its command.
      sweep: name of the sweep.
      place: the folder of the runs, as the machines see it.

    Raises:
      config.ConfigError: there is no such launcher here, or a flag is the
        sweep's own.
    """
    if name not in LAUNCHERS:
      raise config.ConfigError(
        f'--launch={name}{config.did_you_mean(name, LAUNCHERS)}'
      )
    if importlib.util.find_spec('tools') is None:
      raise config.ConfigError(
        f'--launch={name}: tools/launch is not here: start in a checkout'
      )
    for word in own:
      if re.match('--(name|dry_run)(=|$)', word):
        raise config.ConfigError(
          f'{word}: lm.sweep gives each job its own: leave it out'
        )
    self._name, self._own, self._sweep, self._place = name, own, sweep, place

  def words(self, trial: trials.Trial, *, dry_run: bool) -> list[str]:
    """Spells the command that hands a run over, or prints how it would."""
    verbs = [x for x in self._own if not x.startswith('-')]
    return [
      '-m',
      f'tools.launch.{self._name}',
      f'--name={job(self._sweep, trial.name)}',
      *(x for x in self._own if x.startswith('-')),
      *(['--dry_run'] if dry_run else []),
      *(verbs or LAUNCHERS[self._name]),
      '--',
      *trial.words,
      f'--workdir={self._place.rstrip("/")}/{trial.name}',
    ]

  def check(self, trial: trials.Trial) -> None:
    """Lets the launcher check its flags, with one run, and launch nothing.

    Raises:
      Refused: it does not take them.
    """
    process = subprocess.run(
      [sys.executable, *self.words(trial, dry_run=True)],
      capture_output=True,
      text=True,
      check=False,
    )
    if process.returncode:
      lines = process.stderr.strip().splitlines() or ['']
      raise Refused(
        f'--launch={self._name}: {lines[-1].removeprefix("error: ")}',
        process.returncode,
      )

  def launch(self, trial: trials.Trial, *, dry_run: bool = False) -> None:
    """Runs the launcher until it has handed the run over.

    Raises:
      Refused: it has ended with an error, which it has printed.
    """
    command = [sys.executable, *self.words(trial, dry_run=dry_run)]
    code = subprocess.run(command, check=False).returncode
    if code:
      raise Refused(
        f'{trial.name}: its launcher ended with exit code {code}, see above; '
        'the same command hands over what is left',
        code if code > 0 else 1,
      )

  def launch_all(
    self, chosen: Sequence[trials.Trial], say: Callable[[str], None]
  ) -> None:
    """Hands several runs over; one that is refused does not stop the others.

    Raises:
      Refused: of the first one that was.
    """
    refused: list[Refused] = []
    for trial in chosen:
      say(f'{trial.name}: launching')
      try:
        self.launch(trial)
      except Refused as error:
        say(str(error))
        refused.append(error)
    if refused:
      raise refused[0]
