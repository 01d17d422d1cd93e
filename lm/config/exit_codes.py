"""Exit codes of all programs: the one table that `--help` and the docs show.

`tools.docs` writes it into README.md and docs/troubleshooting.md.
"""

from typing import NamedTuple


class ExitCode(NamedTuple):
  """An exit code and its meaning.

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
  'lm.predict',
  'lm.sample',
  'lm.serve',
  'tools.arena',
  'tools.compare',
  'tools.diff',
  'tools.export',
  'tools.lm_eval',
  'tools.neighbours',
  'tools.replay',
  'tools.report',
  'tools.rerun',
  'tools.tokenizer_lab',
  'tools.where',
)

_TABLE = (
  ExitCode(0, 'done and verified'),
  ExitCode(1, 'a bug, with its traceback'),
  ExitCode(1, 'the runs differ', ('tools.compare_runs', 'tools.rerun')),
  ExitCode(2, 'wrong config, usage or input'),
  ExitCode(
    3,
    'refused: another process holds the workdir',
    (
      *_TRAINERS,
      'lm.evaluate',
      'lm.sweep',
      'tools.arena',
      'tools.factory',
      'tools.hf_import',
      'tools.launch',
      'tools.prepare_data',
    ),
  ),
  ExitCode(3, 'the run does not fit the machine', ('lm.plan',)),
  ExitCode(
    4,
    'a checkpoint or stored items are damaged, and no sound ones are left',
    (*_TRAINERS, *_READERS, 'lm.sweep', 'tools.launch'),
  ),
  ExitCode(5, 'storage: disk full, read only or not answering'),
  ExitCode(
    6,
    'updates were not finite for too long, or a state to be saved is not',
    (*_TRAINERS, 'tools.hf_import', 'tools.launch'),
  ),
  ExitCode(
    7,
    'another process of this run failed: the last line names it',
    ('lm.train', 'tools.factory', 'tools.launch', 'tools.prepare_data'),
  ),
  ExitCode(
    7, 'some runs of a sweep failed; all others are done', ('lm.sweep',)
  ),
  ExitCode(
    8,
    'launchers: the machine failed, or did not come or answer in time',
    ('lm.sweep', 'tools.launch'),
  ),
  ExitCode(
    9,
    'an export was refused: it is worse than its budget allows',
    ('tools.export',),
  ),
  ExitCode(9, 'the board does not admit a proposal', ('tools.arena',)),
  ExitCode(
    10,
    'a step took far longer than usual: all threads were printed',
    ('lm.train', 'lm.sweeping.worker', 'tools.launch'),
  ),
  ExitCode(130, 'stopped by Ctrl-C, with nothing to save'),
  ExitCode(
    130,
    'Ctrl-C, and the run goes on where it was launched',
    ('tools.launch',),
  ),
  ExitCode(
    143,
    'stopped by SIGTERM or Ctrl-C, after saving',
    (
      'lm.train',
      'lm.sweep',
      'lm.sweeping.worker',
      'lm.serve',
      'tools.arena',
      'tools.launch',
    ),
  ),
)


# Codes of a program that was asked to end, and did.
_STOPPED = (130, 143)


def last_line(text: str, code: int) -> str:
  """Spells the line with which a program ends that did not reach its end.

  Args:
    text: what happened.
    code: the exit code.
  """
  return f'{"stopped" if code in _STOPPED else "error"}: {text}'


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


def _meaning(code: int) -> str:
  """Says what a code means, and in brackets what it means of one program."""
  entries = [entry for entry in _TABLE if entry.code == code]
  text = entries[0].meaning
  for name, meaning in ((e.programs[0], e.meaning) for e in entries[1:]):
    text += f' ({name}: {meaning})'
  return text


# What each code means, for a table of all programs.
EXIT_CODES = {
  code: _meaning(code) for code in sorted({entry.code for entry in _TABLE})
}
