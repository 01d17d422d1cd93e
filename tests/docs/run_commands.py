"""Runs commands of a page one after another, in one process.

  python -m tests.docs.run_commands < commands.json

Reads a JSON list from stdin: of words, as in `python -m MODULE WORDS...`, and
of texts, which are Python code. Importing jax and compiling take most of the
time of a small command, so they are shared. Prints what it runs, and ends with
the exit code of the first command that fails.
"""

import json
import runpy
import sys


def run(command: list[str] | str) -> int:
  """Runs a command as `python -m` would, or code; returns the exit code."""
  print(f'\n$ {command}', flush=True)
  if isinstance(command, str):
    exec(compile(command, 'page', 'exec'), {'__name__': '__page__'})
    return 0
  sys.argv = list(command)
  try:
    runpy.run_module(command[0], run_name='__main__', alter_sys=True)
  except SystemExit as end:
    if end.code is not None and not isinstance(end.code, int):
      print(end.code, file=sys.stderr)
      return 1
    return end.code or 0
  return 0


def main() -> None:
  """Runs all that stdin names."""
  for command in json.load(sys.stdin):
    if code := run(command):
      sys.exit(code)


if __name__ == '__main__':
  main()
