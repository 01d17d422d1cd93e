"""Runs a cluster of Spark on this machine: a master and two workers.

  make peers                      # installs Spark; it needs Java 17 or later
  python -m tools.spark_cluster   # prints an address, and ends with Ctrl-C

Then, in another terminal, as the first one prints it:

  PYTHONPATH=.cache/pyspark:. python -m tools.factory --engine=spark \\
      --spark=spark://127.0.0.1:PORT --config=... --output=...
"""

from collections.abc import Iterator
import contextlib
import os
from pathlib import Path
import re
import shutil
import signal
import subprocess
import sys
import time
from typing import NamedTuple

from lm import errors
from lm.runtime import temporary
from tools.bench import peers, process_tree, workers

_START_SECONDS = 120.0
_PAUSE_SECONDS = 0.1
_DEPLOY = 'org.apache.spark.deploy'


class Cluster(NamedTuple):
  """A cluster that runs.

  Attributes:
    address: of its master, spark://...
    environment: variables of a program that uses it.
    pids: of the workers.
  """

  address: str
  environment: dict[str, str]
  pids: tuple[int, ...]


def missing() -> str | None:
  """Says what is missing for a cluster; None if it can be started."""
  if peers.spark() is None:
    return 'Spark is not installed: make peers'
  if not (shutil.which('java') or 'JAVA_HOME' in os.environ):
    return 'java is not installed: apt-get install default-jre-headless'
  return None


@contextlib.contextmanager
def running(folder: Path, count: int = 2) -> Iterator[Cluster]:
  """Starts a cluster, and stops all its processes in the end.

  Args:
    folder: for logs, and a folder for each worker.
    count: of workers, of one core each.

  Raises:
    errors.Failure: something is missing, or it does not start.
  """
  if lack := missing():
    raise errors.Failure(lack)
  modules = str(peers.spark())
  environment = {
    'SPARK_HOME': f'{modules}/pyspark',
    'SPARK_LOCAL_IP': '127.0.0.1',
    'PYTHONPATH': os.pathsep.join([modules, str(workers.ROOT)]),
    'PYSPARK_PYTHON': sys.executable,
  }
  # Ports are chosen by the system. Port 6066, for jobs by REST, is not opened.
  options = '-Djava.net.preferIPv4Stack=true -Dspark.master.rest.enabled=false'
  common = ['--host=127.0.0.1', '--port=0', '--webui-port=0']
  common = [y for x in common for y in x.split('=')]
  with contextlib.ExitStack() as stack:

    def start(name: str, kind: str, *flags: str) -> subprocess.Popen[bytes]:
      with (folder / f'{name}.log').open('wb') as log:
        process = subprocess.Popen(
          [f'{modules}/pyspark/bin/spark-class', kind, *common, *flags],
          env={
            **os.environ,
            **environment,
            'SPARK_DAEMON_JAVA_OPTS': options,
            'SPARK_DAEMON_MEMORY': '512m',
          },
          stdout=log,
          stderr=log,
          start_new_session=True,  # so that Ctrl-C is for this program alone
        )
      stack.callback(_stop, process)
      return process

    start('master', f'{_DEPLOY}.master.Master')
    log = folder / 'master.log'
    address = _wait(log, r'Starting Spark master at (\S+)')
    kind = f'{_DEPLOY}.worker.Worker'
    found = []
    for n in range(count):
      limits = ['--cores', '1', '--memory', '1g']
      work = ['--work-dir', str(folder / f'worker-{n}')]
      found.append(start(f'worker-{n}', kind, *limits, *work, address))
    for n in range(count):
      _wait(folder / f'worker-{n}.log', r'(Successfully registered)')
    yield Cluster(address, environment, tuple(x.pid for x in found))


def _wait(log: Path, pattern: str) -> str:
  """Waits for a line of a log, and returns what the pattern's group matches."""
  deadline = time.monotonic() + _START_SECONDS
  while not (match := re.search(pattern, log.read_text(errors='replace'))):
    if time.monotonic() > deadline:
      raise errors.Failure(f'{log}: Spark has not started; read it')
    time.sleep(_PAUSE_SECONDS)
  return match[1]


def _stop(process: subprocess.Popen[bytes]) -> None:
  """Ends a process and all that it has started."""
  # Python on a worker has a group of its own, so a group is not enough.
  for pid in [*process_tree.descendants(process.pid), process.pid]:
    with contextlib.suppress(ProcessLookupError):
      os.kill(pid, signal.SIGKILL)
  process.wait()


def main() -> int:
  """Runs a cluster until Ctrl-C or SIGTERM; returns the exit code."""
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  with (
    temporary.folder('spark-') as folder,
    contextlib.suppress(KeyboardInterrupt),
  ):
    try:
      with running(Path(folder)) as cluster:
        variables = (f'{k}={v}' for k, v in cluster.environment.items())
        print(*variables, f'--spark={cluster.address}', flush=True)
        signal.pause()
    except errors.Failure as e:
      print(f'error: {e}', file=sys.stderr)
      return e.exit_code
  return 0


if __name__ == '__main__':
  sys.exit(main())
