"""Exit codes of all programs: the one table that `--help` and the docs show.

`tools.docs` writes it into README.md and docs/troubleshooting.md.
"""

from typing import NamedTuple


class ExitCode(NamedTuple):
  """What a program says when it ends.

  Attributes:
    code: the number.
    meaning: in a few words.
    programs: modules, or packages of modules, that end so; () is all of them.
  """

  code: int
  meaning: str
  programs: tuple[str, ...] = ()


_TRAINERS = ('lm.train', 'lm.fit')
_READERS = (
  'lm.evaluate',
  'lm.sample',
  'lm.serve',
  'tools.compare',
  'tools.export',
  'tools.lm_eval',
  'tools.neighbours',
)

_TABLE = (
  ExitCode(0, 'done; after training the last step is on disk and verified'),
  ExitCode(1, 'a bug of ours, with its traceback'),
  ExitCode(1, 'the two runs differ', ('tools.compare_runs',)),
  ExitCode(2, 'wrong config, usage or input'),
  ExitCode(
    3,
    'refused: another process holds the workdir',
    (*_TRAINERS, 'lm.evaluate', 'tools.hf_import', 'tools.launch'),
  ),
  ExitCode(3, 'the run does not fit the machine', ('lm.plan',)),
  ExitCode(
    4,
    'a checkpoint or stored items are damaged, and no sound ones are left',
    (*_TRAINERS, *_READERS, 'tools.launch'),
  ),
  ExitCode(5, 'storage: disk full, read only or not answering'),
  ExitCode(
    6,
    'losses or gradients were not finite for too long',
    ('lm.train', 'tools.launch'),
  ),
  ExitCode(
    7,
    'another process of this run failed: the last line names it',
    ('lm.train', 'tools.launch'),
  ),
  ExitCode(
    8,
    'the machine failed, or did not come or answer in time',
    ('tools.launch',),
  ),
  ExitCode(
    9,
    'refused: what was exported is worse than the budget allows',
    ('tools.export',),
  ),
  ExitCode(
    130, 'Ctrl-C: the run goes on where it was launched', ('tools.launch',)
  ),
  ExitCode(
    143,
    'stopped by SIGTERM or Ctrl-C; training has saved',
    ('lm.train', 'lm.serve', 'tools.launch'),
  ),
)


def of(program: str) -> list[ExitCode]:
  """Lists the exit codes of a program, such as 'lm.train'.

  A meaning of its own replaces that of all programs.
  """
  codes: dict[int, ExitCode] = {}
  for entry in sorted(_TABLE, key=lambda entry: bool(entry.programs)):
    if not entry.programs or any(
      f'{program}.'.startswith(f'{name}.') for name in entry.programs
    ):
      codes[entry.code] = entry
  return [codes[code] for code in sorted(codes)]


def exit_code_help(program: str) -> str:
  """Lays the exit codes of a program out for its help text."""
  lines = [f'  {entry.code:>3}  {entry.meaning}' for entry in of(program)]
  return '\n'.join(['exit codes:', *lines])


def _meanings(code: int) -> str:
  """Joins what a code means of all programs, and of some."""
  return '; '.join(
    f'{entry.programs[0]}: {entry.meaning}'
    if len(entry.programs) == 1
    else entry.meaning
    for entry in _TABLE
    if entry.code == code
  )


# What each code means, for a table of all programs.
EXIT_CODES = {
  code: _meanings(code) for code in sorted({entry.code for entry in _TABLE})
}
