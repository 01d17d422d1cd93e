"""One machine for all tests: eight simulated CPU devices, strict shapes.

Settings:
  LM_TEST_PLATFORM: 'cpu', or the jax platform of an accelerator ('cuda', 'tpu')
    to run the tests on it; tests marked `gpu` are skipped on 'cpu'.
  LM_DATA: folder of the shared data sets, relative to the repository's root
    unless absolute.
"""

import os
from pathlib import Path
import sys
import tempfile
from typing import Any

import hypothesis
import jax
import pytest

from lm.training import compiled
from tools.bench import peers

pytest_plugins = ['tests.programs']  # fixtures of whole programs
ROOT = Path(__file__).resolve().parent.parent
PLATFORM = os.environ.get('LM_TEST_PLATFORM', 'cpu')
DATA = ROOT / os.environ.get('LM_DATA', '../shared/data')
MAPPINGS = Path('/proc/self/maps')
MOST_MAPPINGS = 20_000  # Linux gives a process 65,530 unless told otherwise
_STARTING = {'start', 'alone', 'peer'}  # fixtures that start programs
started: list[str] = []  # executables, by the test that runs

if PLATFORM == 'cpu':
  # compiling is most of what tests wait for: this takes a third off it
  os.environ['XLA_FLAGS'] = (
    '--xla_backend_optimization_level=0 '
    '--xla_llvm_disable_expensive_passes=true '
    + os.environ.get('XLA_FLAGS', '')
  )
# in the environment too, for the programs that tests start
SETTINGS = {
  'jax_platforms': 'cpu' if PLATFORM == 'cpu' else f'{PLATFORM},cpu',
  'jax_compilation_cache_dir': os.environ.get(
    'JAX_COMPILATION_CACHE_DIR', str(ROOT / '.cache' / 'jax')
  ),
  'jax_persistent_cache_min_compile_time_secs': 0,
}
for name, value in SETTINGS.items():
  jax.config.update(name, value)
  os.environ[name.upper()] = str(value)
jax.config.update('jax_num_cpu_devices', 8)
os.environ.setdefault('NPROC', '32')  # as memory.give_threads
# Runs of tests name functions of tests, and read data of other tests.
os.environ['LM_TRUST'] = f'tests,{tempfile.gettempdir()}/,{DATA}/,{ROOT}/'
jax.config.update('jax_numpy_rank_promotion', 'raise')
if PLATFORM != 'cpu':
  # tolerances are those of float32, which a GPU rounds to 10 bits by default
  jax.config.update('jax_default_matmul_precision', 'highest')
# a slow machine is no failure, and a failure must come again
hypothesis.settings.register_profile('lm', deadline=None, derandomize=True)
hypothesis.settings.load_profile('lm')


def pytest_configure() -> None:
  """Watches for programs that tests start."""
  sys.addaudithook(_watch)


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
  if event == 'subprocess.Popen':
    started.append(str(arguments[0]))


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
  """Names bytes by their argument.

  Packed bytes hold the time, and the processes that share the tests would give
  the same test two names.
  """
  return argname if isinstance(val, bytes) else None


@pytest.fixture(autouse=True)
def _marked_if_it_starts_a_program(request: pytest.FixtureRequest):
  """Fails a test that starts Python and is not marked so: see make check."""
  started.clear()
  yield
  pythons = [x for x in started if Path(x).name.startswith('python')]
  if pythons and not request.node.get_closest_marker('process'):
    pytest.fail('it starts a program: mark it with pytest.mark.process')


@pytest.fixture(autouse=True)
def _own_programs():
  """Lets no test find a program that another test has changed and compiled."""
  compiled.forget()


@pytest.hookimpl(tryfirst=True)  # before -m selects by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  """Puts a module's tests of one model in a row: they share its programs."""
  for item in items:
    if _STARTING & set(getattr(item, 'fixturenames', ())):
      item.add_marker(pytest.mark.process)
  modules = {x.path: n for n, x in enumerate(reversed(items))}
  items.sort(key=lambda x: (-modules[x.path], _model(x)))


def pytest_runtest_teardown(
  item: pytest.Item, nextitem: pytest.Item | None
) -> None:
  """Frees programs: jax dies in a process that has spent its mappings."""
  if (
    nextitem is not None
    and (item.path, _model(item)) != (nextitem.path, _model(nextitem))
    and MAPPINGS.exists()
    and MAPPINGS.read_bytes().count(b'\n') > MOST_MAPPINGS
  ):
    jax.clear_caches()


def _model(item: pytest.Item) -> str:
  called = getattr(item, 'callspec', None)
  return str(called and called.params.get('name', ''))


def pytest_runtest_setup(item: pytest.Item) -> None:
  if PLATFORM == 'cpu' and item.get_closest_marker('gpu'):
    pytest.skip('needs an accelerator: LM_TEST_PLATFORM=cuda')


@pytest.fixture(scope='session')
def shared_data() -> Path:
  """The folder of the shared data sets, or a skip where there is none."""
  if not DATA.is_dir():
    pytest.skip(f'no data at {DATA}: set LM_DATA to the folder of the data')
  return DATA


@pytest.fixture(scope='session')
def peer():
  """The Python that has torch and transformers: `make peers`."""
  python = peers.FOLDER / 'bin' / 'python'
  if not peers.installed():
    pytest.skip('transformers is not installed: make peers')
  return str(python)


@pytest.fixture(scope='session')
def libtpu() -> None:
  """Lets tests compile for TPUs that are not here, or skips: `make peers`."""
  library = peers.libtpu()
  if library is None:
    pytest.skip('libtpu is not installed: make peers')
  os.environ.setdefault('TPU_LIBRARY_PATH', str(library))
