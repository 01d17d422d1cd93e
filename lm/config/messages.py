"""Error lines for users, and the words that they may have meant."""

from collections.abc import Iterable
import difflib
import re
from typing import Any

from lm.runtime import logins

_LINE = 200  # characters of an error, so that it stays one line of a log

# What other libraries call our keys, as `_stem` leaves it, by the ends of the
# keys that are meant: the first that a config has.
_SYNONYMS = {
  'optim.peak peak': 'lr learningrate peaklr baselr peaklearningrate',
  'optim.final final': 'minlr finallr endlr minlearningrate minlrratio',
  'optim.warmup warmup': 'warmupstep warmupiter warmupratio lrwarmup',
  'optim.schedule schedule': 'scheduler lrscheduler lrschedule lrschedulertype',
  'optim.decay decay': 'weightdecay wd',
  'optim.clip clip': 'gradclip gradnorm clipnorm clipgrad gradientclipping',
  'rule.b1 rule.momentum b1': 'beta1 adambeta1',
  'rule.b2 b2': 'beta2 adambeta2',
  'rule.eps eps': 'adamepsilon adamep',
  'optim.rule.fn optim.fn': 'optimizer',
  'depth': 'layer hiddenlayer decoderlayer nlayer block',
  'model.width width': 'dmodel embd embed hiddensize hiddendim embeddim'
  ' embeddingdim modeldim dim nembd',
  'mixer.heads heads': 'head attentionhead queryhead nhead',
  'mixer.kv_heads kv_heads': 'kvhead keyvaluehead headkv querygroup',
  'mixer.head_width head_width': 'headdim dhead dkv headsize kvchannel',
  'mlp.width': 'dff ffndim mlpdim ffdim intermediatesize inner ffnhiddensize',
  'mlp.activation activation': 'act actfn hiddenact activationfunction',
  'mixer.window window': 'slidingwindow windowsize attentionwindow',
  'positions.base': 'ropetheta ropebase rotarybase theta',
  'norm.epsilon epsilon': 'rmsnormep layernormep layernormepsilon normep',
  'head.tied tied': 'tiewordembedding tieembedding tiedembedding weighttying',
  'mlp.count count': 'expert localexpert routedexpert',
  'router.top_k': 'expertspertok expertspertoken moetopk',
  'model.dropout dropout': 'dropoutrate residpdrop attnpdrop hiddendropout',
  'model.remat remat': 'gradientcheckpointing activationcheckpointing',
  'model.dtype dtype': 'precision mixedprecision amp bf16 fp16 torchdtype',
  'data.length length': 'seqlen seqlength sequencelength blocksize ctx len'
  ' contextlength contextlen ctxlen positionembedding position',
  'train.path': 'dataset datapath datasetpath trainfile trainpath datadir',
  'steps': 'step trainstep trainingstep iter iteration trainiter'
  ' epoch trainepoch',
  'batch_size': 'batch bs bsz batchsize globalbatchsize trainbatchsize'
  ' perdevicetrainbatchsize perdevicebatchsize',
  'microbatches': 'gradientaccumulationstep gradaccum gradaccumstep accumstep'
  ' accumulategradbatche microbatchsize',
  'seed': 'randomseed rngseed dataseed',
  'save_every': 'savestep saveinterval savefreq checkpointevery'
  ' checkpointinterval ckptinterval',
  'eval_every': 'evalstep evalinterval evalfreq valevery valcheckinterval',
  'log_every': 'loggingstep loginterval logfreq logeverynstep',
  'keep': 'savetotallimit tokeep keeplast checkpoint',
  'early.patience patience': 'earlystopping earlystoppingpatience',
  'early.metric': 'metricforbestmodel monitor',
  'threads': 'worker dataloadernumworker',
  'init_from': 'pretrained pretrainedmodel initcheckpoint modelnameorpath'
  ' loadfrom resumefrom',
  'loss.smoothing smoothing': 'labelsmoothing labelsmoothingfactor',
  'loss.z_weight z_weight': 'zlos zlossweight',
  'mesh.tensor': 'tp tensorparallel tensorparallelsize modelparallel',
  'mesh.data': 'dp dataparallel dataparallelsize',
  'mesh.stage': 'pp pipelineparallel pipelineparallelsize',
  'mesh.sequence': 'sp cp contextparallel sequenceparallel',
  'mesh.expert': 'ep expertparallel expertparallelsize',
}
_OURS = {
  theirs: ours.split()
  for ours, words in _SYNONYMS.items()
  for theirs in words.split()
}


class ConfigError(ValueError):
  """A user's mistake in a config, flag or input: one line, exit code 2."""

  exit_code = 2

  def __init__(self, message: str):
    super().__init__(one_line(message))


def one_line(text: str) -> str:
  """Joins the lines of a message; of a long one, the middle is cut out.

  The place stands at its front and the fix at its end. Logins are left out.
  """
  text = logins.hidden(' '.join(text.split()))
  half = (_LINE - 5) // 2
  return text if len(text) <= _LINE else f'{text[:half]} ... {text[-half:]}'


def show(value: Any) -> str:
  """Prints a value in at most 40 characters, for an error line."""
  text = logins.hidden(repr(value))  # before a cut could hide its end
  return text if len(text) <= 40 else text[:37] + '...'


def did_you_mean(word: str, known: Iterable[str]) -> str:
  """Ends an error line: the nearest known word, or else the known words."""
  names = sorted(known)
  # A word alone may be one of others: rules of sharding have 'heads' as well.
  ways = [_same_end, _synonym] if '.' in word else [_synonym, _same_end]
  near = ways[0](word, names) or ways[1](word, names)
  near = near or difflib.get_close_matches(word, names, 1)
  near = near or _near_end(word, names)
  if near:
    return f'; did you mean {near[0]}?'
  return f'; known: {", ".join(names)}' if names else '; there are none'


def _same_end(word: str, names: list[str]) -> list[str]:
  """Finds the key with this name that is nearest: 'peak' is 'optim.peak'."""
  last = word.rpartition('.')[2]
  same = [k for k in names if k.rpartition('.')[2] == last]
  return difflib.get_close_matches(word, same, 1, 0.0)


def _near_end(word: str, names: list[str]) -> list[str]:
  """Finds the key whose own name is near: 'widht' is 'model.width'."""
  ends = {k.rpartition('.')[2] for k in names}
  near = difflib.get_close_matches(word.rpartition('.')[2], sorted(ends), 1)
  return _same_end(near[0], names) if near else []


def _synonym(word: str, names: list[str]) -> list[str]:
  """Finds the key that a word of other libraries stands for."""
  place, _, last = word.rpartition('.')
  found = []
  for ours in _OURS.get(_stem(last), ()):
    ends = [k for k in names if f'.{k}'.endswith(f'.{ours}')]
    found += sorted(ends, key=len)  # the outermost first
  found.sort(key=lambda k: not k.startswith(f'{place}.'))
  return found[:1]


def _stem(word: str) -> str:
  """Strips a word of what libraries spell in many ways: 'num_layers' is layer.

  Counts begin with num, n, max or total, and end with s.
  """
  word = re.sub(r'^(num|n|max|total)[_-]', '', word.lower())
  return re.sub(r'[_-]', '', word).removesuffix('s')
