"""The cache of compiled programs: bounded, whole, and the user's choice."""

import os
import subprocess
import sys
import zlib

import pytest

from lm.runtime import compilation_cache
from tests import programs

CODE = """
import jax, sys
from lm.runtime import compilation_cache
from tests import programs
jax.config.update('jax_platforms', 'cpu')
place = compilation_cache.prepare()
print(place)
compiled = []
jax.monitoring.register_event_listener(
  lambda name, **_: compiled.append(name) if 'cache_misses' in name else None)
jax.jit(lambda x: x * 2 + 1)(3.0).block_until_ready()
print(len(compiled))
"""


def entry(folder, name, size=100, age=0.0):
  path = folder / f'{name}-cache'
  path.write_bytes(zlib.compress(os.urandom(size)))
  then = path.stat().st_mtime - age
  os.utime(path, (then, then))
  return path


def run(home, **settings):
  environment = {
    k: v for k, v in os.environ.items() if not k.startswith('JAX_')
  } | {'XDG_CACHE_HOME': str(home), **settings}
  done = subprocess.run(
    [sys.executable, '-W', 'error', '-c', CODE],
    env=environment,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout.split()


@pytest.mark.process
def test_a_second_process_compiles_nothing(tmp_path):
  first = run(tmp_path)
  second = run(tmp_path)
  assert first[0] == second[0] and first[0].startswith(str(tmp_path))
  assert int(first[1]) > 0 and int(second[1]) == 0


@pytest.mark.process
def test_a_trained_run_leaves_its_programs(data, tmp_path):
  environment = {
    k: v for k, v in os.environ.items() if not k.startswith('JAX_COMP')
  } | {'XDG_CACHE_HOME': str(tmp_path)}
  flags = programs.flags(data, tmp_path / 'run', steps=8)
  command = [sys.executable, '-m', 'lm.train', *flags]
  subprocess.run(command, cwd=programs.ROOT, env=environment, check=True)
  kept = [*(tmp_path / 'lm' / 'compiled').rglob('*-cache')]
  assert any('train' in x.name or 'update' in x.name for x in kept), kept


@pytest.mark.process
def test_a_cut_entry_is_compiled_again_without_a_warning(tmp_path):
  (place, *_) = run(tmp_path)
  for path in compilation_cache.Path(place).glob('*-cache'):
    path.write_bytes(path.read_bytes()[:-5])
  assert int(run(tmp_path)[1]) > 0
  assert int(run(tmp_path)[1]) == 0


@pytest.mark.process
def test_the_user_chooses(tmp_path):
  own = {'JAX_COMPILATION_CACHE_DIR': str(tmp_path / 'own')}
  assert run(tmp_path, **own)[0] == 'None'
  assert run(tmp_path, JAX_ENABLE_COMPILATION_CACHE='false')[0] == 'None'
  assert not (tmp_path / 'lm').exists()
  assert run(tmp_path / 'file', XDG_CACHE_HOME='/proc/none')[0] == 'None'


def test_the_oldest_entries_go_first(tmp_path):
  old, new = entry(tmp_path, 'old', age=50), entry(tmp_path, 'new', age=5)
  compilation_cache.tidy(tmp_path, most_bytes=150)
  assert new.exists() and not old.exists()


def test_what_was_checked_once_is_not_read_again(tmp_path):
  path = entry(tmp_path, 'a', age=50)
  compilation_cache.tidy(tmp_path, most_bytes=10**6)
  then = path.stat().st_mtime
  path.write_bytes(b'\x78 cut')
  os.utime(path, (then, then))
  compilation_cache.tidy(tmp_path, most_bytes=10**6)
  assert path.exists()
  os.utime(path)
  compilation_cache.tidy(tmp_path, most_bytes=10**6)
  assert not path.exists()
