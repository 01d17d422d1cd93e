"""Samples text from a run.

  python -m lm.sample --workdir=runs/a --prompt='Once' --temperature=0.8 \\
    --top_p=0.95 --count=5

A run that was tuned by a form, such as `reply` or `chat`, gets the prompt in
that form, and its answer is shown alone. A single text is shown on a terminal
as it is drawn. In Python:

  from lm import sample
  texts = sample.sample('runs/a', 'Once', temperature=0.8, count=5)
"""

import argparse
from collections.abc import Sequence
import sys

from lm import config
from lm.inference import detokenizer, sampling
from lm.runtime import compilation_cache, devices, memory

sample = sampling.sample


class _Terminal:
  """Prints a text as it grows."""

  def __init__(self, stop: Sequence[str]):
    self._stop = stop
    self._printed = 0

  def show(self, texts: list[str]) -> None:
    """Prints the part of the first text that is new and certain."""
    stable = detokenizer.stable_length(texts[0], self._stop)
    if stable > self._printed:
      print(texts[0][self._printed : stable], end='', flush=True)
      self._printed = stable

  def end(self, text: str) -> None:
    """Prints the rest of the text."""
    print(text[self._printed :])


def _flags(argv: list[str]) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog='python -m lm.sample',
    description=__doc__,
    epilog=config.exit_code_help('lm.sample'),
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  config.trust_flag(parser)
  add('--workdir', required=True)
  add('--step', type=int)
  add('--prompt', default='')
  helps = {'beams': '0 draws', 'stop': 'a string that ends a text'}
  for name, default in sampling.Settings()._asdict().items():
    if name == 'stop':
      add('--stop', action='append', default=[], help=helps[name])
    else:
      kind = type(default)
      add(f'--{name}', type=kind, default=default, help=helps.get(name))
  add(
    '--special',
    action='store_true',
    help='take the prompt as written: special tokens by name, and no form',
  )
  add('--nats', action='store_true', help='a line a token: -log p, the token')
  return parser.parse_args(argv)


def main(argv: list[str]) -> None:
  """Runs the program; `config.main` turns errors into exit codes."""
  flags = _flags(argv)
  settings = sampling.Settings(
    *(getattr(flags, name) for name in sampling.Settings._fields)
  )
  memory.prepare()
  compilation_cache.prepare()
  devices.announce()
  terminal = None
  if settings.count == 1 and not settings.beams and sys.stdout.isatty():
    terminal = _Terminal(settings.stop)
  texts = sampling.texts(
    flags.workdir,
    flags.prompt,
    settings,
    flags.step,
    show=None if terminal is None else terminal.show,
    special=flags.special,
  )
  for n, text in enumerate(texts):
    if n:
      print('-' * 72)
    if terminal is None:
      print(text.text)
    else:
      terminal.end(text.text)
    if flags.nats:
      for piece, nats in zip(text.pieces, text.nats, strict=False):
        print(f'{nats:8.3f}  {piece!r}')


if __name__ == '__main__':
  config.main(main)
