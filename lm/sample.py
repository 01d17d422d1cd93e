"""Sampling text from a run.

  python -m lm.sample --workdir=runs/a --prompt='Once' --temperature=0.8 \\
    --top_p=0.95 --count=5
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp

from lm import checkpoint, config, generate, memory, saved


def sample(
  workdir: str | Path,
  prompt: str = '',
  *,
  count: int = 1,
  length: int = 200,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
  seed: int = 0,
  step: int | None = None,
) -> list[str]:
  """Continues a prompt with the newest verified checkpoint of a run.

  Args:
    workdir: of the run.
    prompt: text to go on from; '' begins a document.
    count: how many continuations.
    length: tokens each, at the most.
    temperature, top_k, top_p: see `generate.Sampler`.
    seed: same seed, same texts.
    step: of the checkpoint; None is the newest.

  Returns:
    The prompt with each continuation.

  Raises:
    config.ConfigError: a setting is out of range, the text would outgrow the
      model, there is no such step, or the tokenizer's file has changed.
    errors.Failure: there is no sound checkpoint.
  """
  if count < 1 or length < 1:
    raise config.ConfigError(f'count={count}, length={length}: at least 1 each')
  try:
    sampler = generate.Sampler(temperature, top_k, top_p).check()
    c, tokenizer, model = saved.build(workdir, step)
  except (ValueError, checkpoint.Gone) as e:
    raise config.ConfigError(str(e)) from e
  objective = config.build(
    c.data.objective, tokenizer=tokenizer, length=c.data.length
  )
  if objective.prompt is None:
    raise config.ConfigError(
      f'{workdir}: trained by {c.data.objective.fn}, which goes on from no text'
    )
  batch = objective.prompt([tokenizer.encode(prompt)] * count)
  params = jax.tree.map(jnp.asarray, checkpoint.restore_params(workdir, step))
  try:
    rows = generate.generate(
      params,
      batch,
      model=model,
      sampler=sampler,
      length=length,
      stop=tokenizer.eos,
      rng=jax.random.key(seed),
    )
  except ValueError as e:  # more than the model has room for
    raise config.ConfigError(str(e)) from e
  texts = []
  for row in rows.tolist():
    end = row.index(tokenizer.eos) if tokenizer.eos in row else None
    texts.append(prompt + tokenizer.decode(row[:end]))
  return texts


def main(argv: list[str]) -> None:
  """Runs the program; `config.main` turns errors into exit codes."""
  parser = argparse.ArgumentParser(
    prog='python -m lm.sample', description=__doc__, allow_abbrev=False
  )
  parser.add_argument('--workdir', required=True)
  parser.add_argument('--prompt', default='')
  parser.add_argument('--count', type=int, default=1)
  parser.add_argument('--length', type=int, default=200)
  parser.add_argument('--temperature', type=float, default=1.0)
  parser.add_argument('--top_k', type=int, default=0)
  parser.add_argument('--top_p', type=float, default=1.0)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--step', type=int)
  args = parser.parse_args(argv)
  memory.keep_freed()
  for n, text in enumerate(sample(**vars(args))):
    if n:
      print('-' * 72)
    print(text)


if __name__ == '__main__':
  config.main(main)
