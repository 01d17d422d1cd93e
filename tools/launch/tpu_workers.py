"""The machines of a TPU VM slice, as gcloud reaches them."""

import argparse

from lm import errors
from tools.launch import commands

# The part that runs there.
SCRIPT = 'python3 lm-launch/src/tools/launch/worker.py'
# A dead connection is noticed within two minutes.
_SSH = (
  '--ssh-flag=-oServerAliveInterval=30',
  '--ssh-flag=-oServerAliveCountMax=4',
)


class Workers:
  """All workers of a slice.

  Attributes:
    shell: that runs the commands.
    name: of the slice.
  """

  def __init__(self, flags: argparse.Namespace, shell: commands.Shell):
    """Takes checked flags."""
    self.shell, self.name = shell, flags.name
    self._zone, self._project = flags.zone, flags.project
    self._internal = ['--internal-ip'] if flags.internal_ip else []

  def remote(self, script: str, seconds: float = 600.0) -> str:
    """Runs a script on all workers, says what they say, and returns it.

    Raises:
      errors.Locked: a worker refuses, since a run is alive there.
      commands.Unreachable: it failed on a worker.
    """
    words = self.ssh(script)
    result = self.shell.ask(words, seconds=seconds)
    if result.output:
      commands.say(result.output.rstrip())
    if result.code == commands.REFUSED:
      raise errors.Locked(f'{self.name}: {commands.reason(result)}')
    if result.code:
      raise commands.failure(words, result)
    return result.output

  def send(self, path: str, target: str = '', seconds: float = 900.0) -> None:
    """Sends a file to all workers, to a path below their home."""
    where = f'{self.name}:{target}'
    words = ['scp', path, where, '--worker=all', *self._internal]
    self.shell.run(self.gcloud('tpu-vm', *words), seconds=seconds)

  def ssh(self, script: str, worker: str = 'all') -> list[str]:
    """Spells the command that runs a script on workers."""
    return self.gcloud(
      'tpu-vm',
      'ssh',
      self.name,
      f'--worker={worker}',
      f'--command={script}',
      *_SSH,
      *self._internal,
    )

  def gcloud(self, group: str, verb: str, *words: str) -> list[str]:
    """Spells a command of gcloud."""
    return [
      'gcloud',
      'compute',
      'tpus',
      group,
      verb,
      *words,
      f'--zone={self._zone}',
      *([f'--project={self._project}'] if self._project else []),
      '--quiet',
    ]
