"""Asks lm_eval about a model of transformers, for tests/tools/harness_test.py.

Runs where torch and transformers are installed, which is not where the tests
run: it imports nothing of `lm`, and talks by files.

  python tests/harness_peer.py random SETTINGS FOLDER [TOKENIZER]
  python tests/harness_peer.py score FOLDER PAIRS.json FOUND.json
  python tests/harness_peer.py evaluate FOLDER TASKS.json FOUND.json

`random` makes a GPT-2 of random weights. `score` finds `[log p, greedy]` of
`[context, continuation]` by the rule of lm_eval. `evaluate` runs lm_eval
itself, which must be installed then, with accelerate and, for FOLDER/x.gguf,
gguf;
TASKS.json has configs of tasks, each with its rows.
"""

import importlib
import json
from pathlib import Path
import sys
from typing import Any


def random(settings: str, folder: str, words: str) -> None:
  """Makes a model; its tokenizer is that of a folder or of a GGUF file."""
  torch: Any = importlib.import_module('torch')
  transformers: Any = importlib.import_module('transformers')
  torch.manual_seed(0)
  path, given = Path(words), {}
  if path.suffix == '.gguf':
    path, given = path.parent, {'gguf_file': path.name}
  tokenizer = transformers.AutoTokenizer.from_pretrained(path, **given)
  config = transformers.GPT2Config(
    vocab_size=len(tokenizer),
    bos_token_id=tokenizer.bos_token_id,
    eos_token_id=tokenizer.eos_token_id,
    **json.loads(settings),
  )
  model = transformers.GPT2LMHeadModel(config)
  with torch.no_grad():  # its biases are 0, and would hide errors
    for x in model.parameters():
      x.add_(0.02 * torch.randn_like(x))
  model.save_pretrained(folder)
  tokenizer.save_pretrained(folder)


def score(folder: str, pairs: str, found: str) -> None:
  """Scores continuations, one at a time."""
  torch: Any = importlib.import_module('torch')
  transformers: Any = importlib.import_module('transformers')
  words = transformers.AutoTokenizer.from_pretrained(folder)
  model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()

  def encode(text):
    return words.encode(text, add_special_tokens=False)

  scores = []
  for context, text in json.loads(Path(pairs).read_text()):
    whole = encode(context + text)
    known = encode(context.rstrip())
    ids = whole[len(known) :]
    read = (known or [words.bos_token_id]) + ids
    read = read[-(model.config.n_positions + 1) :]
    with torch.no_grad():
      logits = model(torch.tensor([read[:-1]])).logits[0, -len(ids) :]
    log = logits.float().log_softmax(-1)
    target = torch.tensor(ids)
    cost = log.gather(1, target[:, None]).sum().item()
    scores.append([cost, bool((log.argmax(-1) == target).all())])
  Path(found).write_text(json.dumps(scores))


def evaluate(folder: str, tasks: str, found: str) -> None:
  """Evaluates by lm_eval's own model of transformers."""
  harness: Any = importlib.import_module('lm_eval')
  models: Any = importlib.import_module('lm_eval.models.huggingface')
  datasets: Any = importlib.import_module('datasets')
  manager: Any = importlib.import_module('lm_eval.tasks')
  path, given = Path(folder), {}
  if path.suffix == '.gguf':
    path, given = path.parent, {'gguf_file': path.name}
  model = models.HFLM(
    str(path), device='cpu', dtype='float32', batch_size=8, **given
  )
  specs = json.loads(Path(tasks).read_text())
  for spec in specs:
    data = {'test': datasets.Dataset.from_list(spec.pop('rows'))}
    spec['custom_dataset'] = lambda data=data, **_: data
  told = harness.simple_evaluate(
    model=model,
    tasks=specs,
    task_manager=manager.TaskManager(include_defaults=False),
    bootstrap_iters=0,
  )
  kept = {key: told[key] for key in ('results', 'samples')}
  Path(found).write_text(json.dumps(kept, default=str))


if __name__ == '__main__':
  programs = {'random': random, 'score': score, 'evaluate': evaluate}
  programs[sys.argv[1]](*sys.argv[2:])
