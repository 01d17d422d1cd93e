"""Sampling text from a run.

  python -m lm.sample --workdir=runs/a --prompt='Once' --temperature=0.8 \\
    --top_p=0.95 --count=5

A single text is shown on a terminal as it comes.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
import sys
from typing import NamedTuple

import jax

from lm import config
from lm.inference import engine, generate
from lm.runtime import devices, memory


class Text(NamedTuple):
  """What was generated.

  Attributes:
    text: the prompt with its continuation, cut before a stop string.
    pieces: the continuation's tokens, each decoded alone; those of a stop
      string, and what was drawn after it, too.
    nats: what each cost, -log p under the model without a sampler.
  """

  text: str
  pieces: list[str]
  nats: list[float]


def sample(workdir: str | Path, prompt: str = '', **settings) -> list[str]:
  """Continues a prompt; arguments and errors are those of `texts`."""
  return [text.text for text in texts(workdir, prompt, **settings)]


def texts(
  workdir: str | Path,
  prompt: str = '',
  *,
  count: int = 1,
  length: int = 200,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
  min_p: float = 0.0,
  repetition_penalty: float = 1.0,
  beams: int = 0,
  length_penalty: float = 0.0,
  stop: Sequence[str] = (),
  seed: int = 0,
  step: int | None = None,
  show: Callable[[list[str]], None] | None = None,
) -> list[Text]:
  """Continues a prompt with the newest verified checkpoint of a run.

  Args:
    workdir: of the run.
    prompt: text to go on from; '' begins a document. A model with an encoder
      reads it there.
    count: how many continuations.
    length: tokens each, at the most.
    temperature, top_k, top_p, min_p, repetition_penalty: see
      `generate.Sampler`.
    beams: above 0, nothing is drawn: the `count` best texts of a search with so
      many beams, see `generate.beam`; their nats are not told.
    length_penalty: of that search.
    stop: strings that end a text and are left out.
    seed: same seed, same texts.
    step: of the checkpoint; None is the newest.
    show: is given all texts so far, every few tokens.

  Raises:
    config.ConfigError: a setting is out of range, the text would outgrow the
      model, there is no such step, or the tokenizer's file has changed.
    errors.Failure: there is no sound checkpoint.
  """
  if count < 1 or length < 1:
    raise config.ConfigError(f'count={count}, length={length}: at least 1 each')
  if beams and not count <= beams:
    raise config.ConfigError(
      f'beams={beams}: at least as many as count={count}'
    )
  if not 0 <= length_penalty < float('inf'):
    raise config.ConfigError(f'length_penalty={length_penalty}: 0 or more')
  if not all(stop):
    raise config.ConfigError("stop='': ends every text at once; leave it out")
  with config.refusals():
    sampler = generate.Sampler(
      temperature, top_k, top_p, min_p, repetition_penalty
    ).check()
  tokenizer, model, begun, params = engine.restore(workdir, step)
  batch = begun([tokenizer.encode(prompt)] * (1 if beams else count))
  settings = {'model': model, 'length': length, 'stop': tokenizer.eos}

  def read(rows: list[list[int]]) -> list[tuple[str, list[int]]]:
    """Decodes what stands before eos, and before a stop string."""
    found = []
    for ids in rows:
      ids = ids[: ids.index(tokenizer.eos)] if tokenizer.eos in ids else ids
      found.append((engine.before(tokenizer.decode(ids), stop), ids))
    return found

  with config.refusals():  # of more than the model has room for
    if beams:
      tokens, _ = generate.beam(
        params, batch, beams=beams, penalty=length_penalty, **settings
      )
      return [
        Text(prompt + text, [tokenizer.decode([i]) for i in ids], [])
        for text, ids in read(tokens[0, :count].tolist())
      ]
    rows, nats = [], []
    for state in generate.stream(
      params, batch, sampler=sampler, rng=jax.random.key(seed), **settings
    ):
      drawn = int(state.count)
      rows = state.tokens[:, :drawn].tolist()
      nats = state.nats[:, :drawn].tolist()
      parts = read(rows)
      if show is not None:
        show([prompt + text for text, _ in parts])
      if stop and all(
        tokenizer.eos in row or len(text) < len(tokenizer.decode(ids))
        for row, (text, ids) in zip(rows, parts, strict=True)
      ):
        break
  return [
    Text(prompt + text, [tokenizer.decode([i]) for i in ids], cost[: len(ids)])
    for (text, ids), cost in zip(read(rows), nats, strict=True)
  ]


class _Terminal:
  """Prints a text as it grows."""

  def __init__(self, stop: Sequence[str]):
    self._stop = stop
    self._shown = 0

  def show(self, found: list[str]) -> None:
    """Prints what is new and sure."""
    known = engine.sure(found[0], self._stop)
    if known > self._shown:
      print(found[0][self._shown : known], end='', flush=True)
      self._shown = known

  def end(self, text: str) -> None:
    """Prints the rest."""
    print(text[self._shown :])


def main(argv: list[str]) -> None:
  """Runs the program; `config.main` turns errors into exit codes."""
  parser = argparse.ArgumentParser(
    prog='python -m lm.sample',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument('--workdir', required=True)
  parser.add_argument('--prompt', default='')
  parser.add_argument('--count', type=int, default=1)
  parser.add_argument('--length', type=int, default=200)
  parser.add_argument('--temperature', type=float, default=1.0)
  parser.add_argument('--top_k', type=int, default=0)
  parser.add_argument('--top_p', type=float, default=1.0)
  parser.add_argument('--min_p', type=float, default=0.0)
  parser.add_argument('--repetition_penalty', type=float, default=1.0)
  parser.add_argument('--beams', type=int, default=0, help='0 draws')
  parser.add_argument('--length_penalty', type=float, default=0.0)
  parser.add_argument(
    '--stop', action='append', default=[], help='a string that ends a text'
  )
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--step', type=int)
  parser.add_argument(
    '--nats', action='store_true', help='a line a token: -log p, and the token'
  )
  args = vars(parser.parse_args(argv))
  memory.prepare()
  devices.announce()
  nats, terminal = args.pop('nats'), None
  if args['count'] == 1 and not args['beams'] and sys.stdout.isatty():
    terminal = _Terminal(args['stop'])
    args['show'] = terminal.show
  for n, text in enumerate(texts(**args)):
    if n:
      print('-' * 72)
    if terminal is None:
      print(text.text)
    else:
      terminal.end(text.text)
    if nats:
      for piece, cost in zip(text.pieces, text.nats, strict=False):
        print(f'{cost:8.3f}  {piece!r}')


if __name__ == '__main__':
  config.main(main)
