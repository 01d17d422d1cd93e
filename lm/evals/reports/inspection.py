"""Looks into checkpoints: samples, the loss of each token, attention.

It restores checkpoints, and so takes far longer than the rest of a page.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm import checkpoint, config, errors
from lm.inference import engine
from lm.layers import attention_maps

_MOST_STEPS = 4  # of a run
_MOST_TOKENS = 512  # of a text
_SAMPLED = 60  # tokens of a sample
_TEMPERATURE = 0.8
_SHOWN = 200  # characters of a text's name
# Of attention: a map has the square of the tokens.
_MAPPED_TOKENS = 40
_MOST_MAPS = 64


def inspect(
  folders: Sequence[Path], prompts: Sequence[str], texts: Sequence[str]
) -> dict[str, Any]:
  """Reads checkpoints of runs for a page.

  Args:
    folders: of the runs.
    prompts: are continued.
    texts: are scored, and looked at by attention. One that names a file stands
      for what the file holds.

  Returns:
    `samples`: `{run, step, prompt, text}` for each; `losses`: `{text, run,
    step, pieces, nats}`; `attention`: `{text, run, step, pieces, maps}` of the
    newest step, where a map is `{layer, head, rows}` and a row has 255 times
    the weight of each key; and `remarks`, a line for each run that has none.

  Raises:
    config.ConfigError: a file of text cannot be read.
  """
  found: dict[str, Any] = {
    'samples': [],
    'losses': [],
    'attention': [],
    'remarks': [],
  }
  whole = [_read(text) for text in texts]
  for folder in folders:
    steps = _steps(checkpoint.steps(folder))
    if not steps:
      found['remarks'].append(f'{folder}: no checkpoint to look into')
      continue
    try:
      run = engine.restore(folder, steps[-1])
      with config.user_errors():
        _look(run, folder, steps, prompts, whole, found)
    except (config.ConfigError, errors.Failure) as error:
      found['remarks'].append(f'{folder}: not looked into: {error}')
  return found


def _read(text: str) -> str:
  try:
    if not Path(text).is_file():
      return text
    return Path(text).read_text(encoding='utf-8')
  except UnicodeDecodeError as error:
    raise config.ConfigError(
      f'--text: {text}: is no UTF-8: give a file of text'
    ) from error
  except OSError:  # too long for the name of a file
    return text


def _steps(steps: Sequence[int]) -> list[int]:
  """Chooses steps that lie evenly, the first and the last among them."""
  places = np.linspace(0, len(steps) - 1, min(_MOST_STEPS, len(steps)))
  return [steps[n] for n in dict.fromkeys(places.round().astype(int).tolist())]


def _look(
  run: engine.Run,
  folder: Path,
  steps: Sequence[int],
  prompts: Sequence[str],
  texts: Sequence[str],
  found: dict[str, Any],
) -> None:
  """Adds what there is to see of a run at some steps.

  Raises:
    ValueError: a prompt has no room in the model.
  """
  room = engine.capacity(run, _MOST_TOKENS)
  for step in steps:
    if step != steps[-1]:
      # The model is that of the newest step, so that nothing compiles anew.
      params = checkpoint.restore_params(folder, step)
      at = run._replace(params=params)
    else:
      at = run
    about = {'run': str(folder), 'step': step}
    for prompt in prompts:
      text = _sample(at, prompt, room)
      found['samples'].append({**about, 'prompt': prompt, 'text': text})
    for text in texts:
      shown = {'text': text[:_SHOWN], **about}
      ids = run.tokenizer.encode(text)[: room - 1]
      if not ids:
        continue
      (tokens,) = engine.prompt_logprobs(at, [ids], 0)
      if all(x.logprob is None for x in tokens):
        found['remarks'].append(
          f'{folder}: reads a text in both directions, so that its tokens have'
          ' no loss of their own'
        )
        return
      found['losses'].append(
        {
          **shown,
          'pieces': [x.text for x in tokens],
          'nats': [None if x.logprob is None else -x.logprob for x in tokens],
        }
      )
      if step == steps[-1]:
        _attention(at, ids[:_MAPPED_TOKENS], shown, found)


def _sample(run: engine.Run, prompt: str, room: int) -> str:
  ids = run.read(prompt)
  length = min(_SAMPLED, room - len(ids) - 1)
  if length < 1:
    raise ValueError('--prompt: more tokens than the model has room for')
  parts = engine.stream(
    run,
    [ids],
    engine.Settings(length=length, temperature=_TEMPERATURE),
    capacity=room,
  )
  return ''.join(
    token.text for deltas in parts for x in deltas for token in x.tokens
  )


def _attention(
  run: engine.Run,
  ids: Sequence[int],
  about: dict[str, Any],
  found: dict[str, Any],
) -> None:
  batch = run.prompt([ids])
  layers = attention_maps.observe(lambda: run.model.apply(run.params, batch))
  if not layers:
    line = f'{about["run"]}: no attention, so that there is no map of it'
    if line not in found['remarks']:
      found['remarks'].append(line)
    return
  heads = layers[0].shape[1]
  most = max(1, _MOST_MAPS // heads)
  chosen = np.linspace(0, len(layers) - 1, min(most, len(layers))).round()
  # bos stands before the text.
  pieces = ['<bos>', *(run.tokenizer.decode_next([i]) for i in ids)]
  found['attention'].append(
    {
      **about,
      'pieces': pieces[: layers[0].shape[2]],
      'maps': [
        {
          'layer': int(n),
          'head': head,
          'rows': np.round(255 * weights_LS).astype(int).tolist(),
        }
        for n in chosen.astype(int)
        for head, weights_LS in enumerate(layers[n][0][:_MOST_MAPS])
      ],
    }
  )
