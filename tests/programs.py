"""Tiny data, runs and processes for the tests of whole programs.

A pytest plugin, for its fixtures; see conftest.py.
"""

from collections.abc import Callable, Iterator, Mapping
import os
from pathlib import Path
import re
import shutil
import subprocess
import sys
import time
import types
from typing import Any

import jax
import pytest

from lm import checkpoint, config, train
from lm.checkpoint import manifest
from lm.data import writer
from lm.data.tokenizers import utf8_bytes
from lm.reporting import metrics_log

ROOT = Path(__file__).resolve().parent.parent
TEXT = (
  'the quick brown fox jumps over a lazy dog while seven wizards quietly mix '
  'big pots of soup, and nobody knows why\n'
)
# A deadline for what takes seconds, on a machine that may be very slow.
PATIENCE_SECONDS = 240.0


def write_data(folder: Path) -> None:
  """Writes `train` (two shards) and `valid`, the same text every time."""
  documents = [TEXT[i % 31 :][: 10 + 11 * i % 73] for i in range(60)]
  bytes_ = utf8_bytes.make()
  writer.write(folder / 'train', documents, bytes_, shard_tokens=3000)
  writer.write(folder / 'valid', documents[::10], bytes_)


def settings(**changes: Any) -> dict[str, str]:
  """Names overrides: `data__seconds=1` is the key data.seconds."""
  return {k.replace('__', '.'): str(v) for k, v in changes.items()}


def make(folder: Path, **changes: Any) -> config.Config:
  """Makes the tiny config over the data in a folder."""
  return config.load(
    f'{ROOT}/tests/tiny_config.py:{folder}', settings(**changes).items()
  )


def on_eight(folder: Path, **changes: Any) -> config.Config:
  """Makes it for the simulated devices of the tests' own process."""
  return make(folder, **{'mesh__fsdp': 2, 'mesh__tensor': 2, **changes})


def flags(folder: Path, workdir: Path | str, **changes: Any) -> list[str]:
  """Spells the flags that train the tiny config."""
  return [
    f'--config={ROOT}/tests/tiny_config.py:{folder}',
    f'--workdir={workdir}',
    *(f'--config.{k}={v}' for k, v in settings(**changes).items()),
  ]


class Process:
  """A program of its own; what it prints goes to a file, so it never waits."""

  def __init__(
    self,
    program: str,
    arguments: list[str],
    output: Path,
    fault: str = '',
    settings: Mapping[str, str] = types.MappingProxyType({}),
  ):
    module = program if '.' in program else f'lm.{program}'
    self.output = output
    with output.open('wb') as out:
      self._popen = subprocess.Popen(
        [sys.executable, '-m', module, *arguments],
        cwd=ROOT,
        env={**os.environ, 'FAULT': fault, **settings},
        stdout=out,
        stderr=subprocess.STDOUT,
      )
    self.pid = self._popen.pid

  def send(self, number: int) -> None:
    """Sends a signal."""
    self._popen.send_signal(number)

  def running(self) -> bool:
    """Tells whether it has not ended."""
    return self._popen.poll() is None

  def text(self) -> str:
    """Returns what it has printed."""
    return self.output.read_text()

  def printed(self) -> str:
    """Returns what it has printed after the devices, which come first."""
    first, _, rest = self.text().partition('\n')
    assert re.fullmatch(r'device: \d+ x .+', first), self.text()
    return rest

  def wait(self) -> int:
    """Waits for the end and returns the exit code."""
    return self._popen.wait(PATIENCE_SECONDS)

  def wait_for(self, condition: Callable[[], Any]) -> None:
    """Waits for something that it does while it runs."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
      assert self.running(), f'ended with {self.wait()}: {self.text()}'
      assert time.monotonic() < deadline, f'waited in vain: {self.text()}'
      time.sleep(0.005)

  def error(self, code: int) -> str:
    """Waits for the end with a code; returns the one line that says why."""
    assert self.wait() == code, self.text()
    lines = self.text().splitlines()
    word = 'stopped: ' if code in (130, 143) else 'error: '
    found = [line for line in lines if re.match('error: |stopped: ', line)]
    assert lines and found == lines[-1:], self.text()
    assert 'Traceback' not in self.text()
    assert found[0].startswith(word) and len(found[0]) <= len(word) + 200
    return found[0].removeprefix(word)


@pytest.fixture(scope='session')
def data(tmp_path_factory) -> Path:
  """A folder with the datasets `train` and `valid`."""
  folder = tmp_path_factory.mktemp('data')
  write_data(folder)
  return folder


@pytest.fixture
def one_device(monkeypatch):
  """Hides seven of eight devices, which small models only wait for."""
  first = jax.devices()[:1]
  monkeypatch.setattr(jax, 'devices', lambda *_: first)


@pytest.fixture
def start(tmp_path) -> Iterator[Callable[..., Process]]:
  """Starts programs, and ends those that a test leaves behind."""
  started: list[Process] = []

  def launch(program: str, arguments: list[str], **how: Any) -> Process:
    output = tmp_path / f'output.{len(started)}'
    started.append(Process(program, arguments, output, **how))
    return started[-1]

  yield launch
  for process in started:
    if process.running():
      process.send(9)
      process.wait()


@pytest.fixture(scope='session')
def alone(data, tmp_path_factory) -> Path:
  """An uninterrupted run of a process with one device; do not change it."""
  workdir = tmp_path_factory.mktemp('alone') / 'run'
  process = Process('train', flags(data, workdir), workdir.parent / 'output')
  assert process.wait() == 0, process.text()
  return workdir


@pytest.fixture(scope='session')
def trained(data, tmp_path_factory) -> Path:
  """An uninterrupted run in this process, 8 devices; do not change it."""
  workdir = tmp_path_factory.mktemp('trained') / 'run'
  train.train(on_eight(data), workdir)
  return workdir


def rewind(workdir: Path, to: Path, step: int) -> Path:
  """Copies a run as it was when `step` was just saved."""
  shutil.copytree(workdir, to)
  for later in checkpoint.steps(to):
    if later > step:
      shutil.rmtree(manifest.directory(to, later))
  assert checkpoint.steps(to)[-1] == step
  return to


def losses(workdir: Path) -> list[tuple[int, float]]:
  """Lists `(step, loss)` of metrics.jsonl, in its order."""
  records = metrics_log.read(workdir / 'metrics.jsonl')
  return [(r['step'], r['loss_nats']) for r in records if 'loss_nats' in r]


def flip(path: Path, byte: int = -1) -> None:
  """Flips a bit, in the middle of the file if not told where."""
  content = bytearray(path.read_bytes())
  content[len(content) // 2 if byte < 0 else byte] ^= 1
  path.write_bytes(content)


def damage(workdir: Path, step: int) -> None:
  """Flips a bit in the largest array of a checkpoint."""
  files = (manifest.directory(workdir, step) / 'state').rglob('*')
  flip(max((f for f in files if f.is_file()), key=lambda f: f.stat().st_size))
