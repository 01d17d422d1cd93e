"""Makes personal data that is valid and belongs to nobody, in sentences."""

import base64
from collections.abc import Callable
import itertools
import json
from random import Random
import string

_ALPHANUMERIC = string.ascii_letters + string.digits
_NAMES = [
  'anna',
  'ben',
  'carla',
  'dmitri',
  'elena',
  'farid',
  'grace',
  'hugo',
  'ines',
  'jonas',
  'kemal',
  'lucia',
  'maria',
  'nadia',
  'omar',
  'petra',
  'quentin',
  'rosa',
  'sven',
  'tomas',
  'ulla',
  'victor',
  'wei',
  'xiao',
  'yusuf',
  'zhang',
]
_DOMAINS = [
  'gmail.com',
  'qq.com',
  '163.com',
  'mail.example.org',
  'uni-bonn.de',
  'cs.oxford.ac.uk',
  'outlook.com',
  'startup.io',
  'city.gov.sg',
  'foxmail.com',
  'company.co.jp',
  'proton.me',
]
_COUNTRIES = (
  ('DE', 18, 'd'),
  ('FR', 23, 'd'),
  ('GB', 14, 'GB'),
  ('NL', 10, 'NL'),
  ('ES', 20, 'd'),
  ('CH', 17, 'd'),
  ('IT', 22, 'IT'),
  ('PL', 24, 'd'),
  ('NO', 11, 'd'),
)


def email(random: Random) -> str:
  """Returns an e-mail address."""
  a, b = random.choice(_NAMES), random.choice(_NAMES)
  local = random.choice(
    (
      f'{a}.{b}',
      f'{a}{random.randrange(1, 2000)}',
      f'{a[0]}_{b}',
      f'{a}+lists',
      f'{random.randrange(10**5, 10**10)}',
      f'{a.capitalize()}-{b.capitalize()}',
      f'{a[0]}.{b}%home',
    )
  )
  domain = random.choice(_DOMAINS)
  form = random.randrange(12)
  if form == 0:
    return f'{local} (at) {domain}'
  if form == 1:
    return f'{local}[at]{domain.replace(".", "[dot]")}'
  if form == 2:
    return f'{local}＠{domain}'
  return f'{local}@{domain}'


def phone(random: Random) -> str:
  """Returns a telephone number of the US, China or another country."""

  def digits(count: int) -> str:
    return ''.join(random.choices(string.digits, k=count))

  def first(least: int) -> str:
    return str(random.randrange(least, 10))

  area, office, line = first(2) + digits(2), first(2) + digits(2), digits(4)
  mobile = f'1{first(3)}{digits(1)}', digits(4), digits(4)
  city = random.choice(('010', '021', '0755', '0571', '028', '0931'))
  local = first(2) + digits(7)
  abroad = (
    f'+44 20 {digits(4)} {digits(4)}',
    f'+44 (0)20 {digits(4)} {digits(4)}',
    f'+49 30 {digits(6)}',
    f'+49-89-{digits(7)}',
    f'+33 1 {digits(2)} {digits(2)} {digits(2)} {digits(2)}',
    f'+81-3-{digits(4)}-{digits(4)}',
    f'+91{first(6)}{digits(9)}',
    f'+7 (495) {digits(3)}-{digits(2)}-{digits(2)}',
    f'+1 ({area}) {office}-{line}',
    f'+1{area}{office}{line}',
    f'+1.{area}.{office}.{line}',
    f'0044 20 {digits(4)} {digits(4)}',
  )
  american = (
    f'({area}) {office}-{line}',
    f'({area}){office}-{line}',
    f'{area}-{office}-{line}',
    f'{area}.{office}.{line}',
    f'{area} {office}-{line}',
    f'{area} {office} {line}',
    f'1-{area}-{office}-{line}',
    f'{area}-{office}-{line} ext. {digits(3)}',
  )
  chinese = (
    ''.join(mobile),
    ' '.join(mobile),
    '-'.join(mobile),
    f'+86 {" ".join(mobile)}',
    f'+86-{"".join(mobile)}',
    f'(+86){"".join(mobile)}',
    f'0086{"".join(mobile)}',
    f'86-{"".join(mobile)}',
    f'{city}-{local}',
    f'({city}){local}',
    f'（{city}）{local}',
    f'{city}-{local[:4]} {local[4:]}',
    f'+86-{city[1:]}-{local}',
    f'400-{digits(3)}-{digits(4)}',
    ''.join(chr(ord(x) + 0xFEE0) for x in ''.join(mobile)),
  )
  return random.choice(random.choice((abroad, american, chinese)))


def ip(random: Random) -> str:
  """Returns a public IP address of either version."""
  if random.random() < 0.3:
    groups = [f'{random.randrange(65536):x}' for _ in range(7)]
    head = f'2{random.choice("4568abc")}{random.randrange(256):02x}'
    return random.choice(
      (
        ':'.join([head, *groups]),
        f'{head}:{groups[0]}::{groups[1]}',
        f'{head}:{groups[0]}:{groups[1]}::1',
        ':'.join([head, *groups]).upper(),
      )
    )
  first = random.choice((23, 31, 45, 52, 66, 81, 94, 104, 118, 151, 188, 220))
  return '.'.join([str(first), *(str(random.randrange(256)) for _ in '123')])


def iban(random: Random) -> str:
  """Returns an IBAN with valid check digits."""
  country, length, form = random.choice(_COUNTRIES)
  digits = ''.join(random.choices(string.digits, k=length))
  body = {
    'd': digits,
    'GB': f'NWBK{digits}',
    'NL': f'ABNA{digits}',
    'IT': f'X{digits}',
  }[form]
  number = ''.join(str(int(x, 36)) for x in f'{body}{country}00')
  whole = f'{country}{98 - int(number) % 97:02d}{body}'
  groups = [whole[n : n + 4] for n in range(0, len(whole), 4)]
  return random.choice((whole, ' '.join(groups), '-'.join(groups)))


def card(random: Random) -> str:
  """Returns a card number with a valid last digit."""
  prefix, length = random.choice(
    (
      ('4', 16),
      ('4', 13),
      ('51', 16),
      ('55', 16),
      ('2310', 16),
      ('37', 15),
      ('6011', 16),
      ('3530', 16),
      ('36', 14),
      ('622202', 16),
      ('621700', 19),
    )
  )
  body = prefix + ''.join(
    random.choices(string.digits, k=length - len(prefix) - 1)
  )
  doubled = [int(x) * (2 - n % 2) for n, x in enumerate(reversed(body))]
  number = body + str(-sum(x // 10 + x % 10 for x in doubled) % 10)
  sign = random.choice(('', ' ', '-'))
  ends = {13: (13,), 14: (4, 10, 14), 15: (4, 10, 15), 19: (4, 8, 12, 16, 19)}
  cuts = (0, *ends.get(length, (4, 8, 12, 16)))
  return sign.join(number[a:b] for a, b in itertools.pairwise(cuts))


def chinese_id(random: Random) -> str:
  """Returns the number of a Chinese resident, with a valid last character."""
  area = random.choice(('110105', '310101', '440106', '510104', '610113'))
  date = (
    f'{random.randrange(1930, 2020)}{random.randrange(1, 13):02d}'
    f'{random.randrange(1, 29):02d}'
  )
  order = f'{random.randrange(1000):03d}'
  total = sum(
    int(x) * pow(2, 17 - n, 11) for n, x in enumerate(area + date + order)
  )
  last = '10X98765432'[total % 11]
  number = f'{area}{date}{order}{last}'
  return random.choice(
    (
      number,
      number,
      number.lower(),
      f'{area} {date} {order}{last}',
      f'{area}-{date}-{order}{last}',
      ''.join(chr(ord(x) + 0xFEE0) for x in number),
    )
  )


def key(random: Random) -> str:
  """Returns a key, token or password; some with the name they are given."""

  def drawn(count: int, letters: str = _ALPHANUMERIC) -> str:
    return ''.join(random.choices(letters, k=count))

  def coded(value: dict[str, str]) -> str:
    raw = base64.urlsafe_b64encode(json.dumps(value).encode())
    return raw.decode().rstrip('=')

  safe = _ALPHANUMERIC + '-_'
  capitals = string.ascii_uppercase + string.digits
  lines = '\n'.join(drawn(64, _ALPHANUMERIC + '+/') for _ in range(6))
  kind = random.choice(('RSA PRIVATE KEY', 'PRIVATE KEY', 'EC PRIVATE KEY'))
  return random.choice(
    (
      f'AKIA{drawn(16, capitals)}',
      f'ASIA{drawn(16, capitals)}',
      f'gh{drawn(1, "pousr")}_{drawn(36)}',
      f'github_pat_{drawn(22)}_{drawn(59)}',
      f'xox{drawn(1, "bp")}-{drawn(12, string.digits)}-{drawn(24)}',
      f'AIza{drawn(35, safe)}',
      f'sk_live_{drawn(24)}',
      f'rk_test_{drawn(24)}',
      f'sk-{drawn(48)}',
      f'sk-proj-{drawn(60, safe)}',
      f'{coded({"alg": "HS256", "typ": "JWT"})}.'
      f'{coded({"sub": drawn(9), "name": drawn(6)})}.{drawn(43, safe)}',
      f'-----BEGIN {kind}-----\n{lines}\n-----END {kind}-----',
      f'hf_{drawn(34)}',
      f'glpat-{drawn(20)}',
    )
  )


def secret(random: Random) -> str:
  """Returns a random value for a named secret."""
  letters = random.choice((_ALPHANUMERIC, '0123456789abcdef'))
  while True:
    value = ''.join(random.choices(letters, k=random.choice((20, 32, 40))))
    if sum(map(str.isdigit, value)) > 1 and not value.isdigit():
      return value


MAKERS: dict[str, Callable[[Random], str]] = {
  'email': email,
  'phone': phone,
  'ip': ip,
  'iban': iban,
  'card': card,
  'chinese_id': chinese_id,
  'key': key,
}
_CARRIERS = {
  'email': (
    'Write to {} before Friday.',
    'Contact: {}, or come by.',
    'From: Someone <{}>',
    '有问题请发邮件到{}，我们会尽快回复。',
    '邮箱：{}。',
  ),
  'phone': (
    'Call {} after six.',
    'You can reach her at {}, or leave a note.',
    'Phone: {}.',
    '联系电话：{}，周末不接。',
    '请拨打{}预约。',
  ),
  'ip': (
    'The request came from {} at noon.',
    'ping {} gave no answer.',
    'Server: {}, port 443.',
    '登录地址是{}，请核对。',
    '来自 {} 的访问被拒绝。',
  ),
  'iban': (
    'Please pay to {} within ten days.',
    'IBAN: {}.',
    'The account {} was closed.',
    '请汇款到账户{}，谢谢。',
    '银行账号：{}。',
  ),
  'card': (
    'The card {} was refused.',
    'Card number: {}.',
    'He paid with {}, valid until spring.',
    '请用银行卡{}付款。',
    '卡号：{}，有效期至明年。',
  ),
  'chinese_id': (
    'Her identity number is {}.',
    'ID: {}, checked.',
    '身份证号码：{}。',
    '公民身份号码{}，已核实。',
    '证件号为{}的乘客请到前台。',
  ),
  'key': (
    'export ACCESS={}',
    'I pasted {} by mistake.',
    'use "{}" for the demo',
    '密钥是{}，请勿外传。',
    '令牌：{}。',
  ),
}
_NAMED = (
  'secret = "{}"',
  'api_key={}',
  "password: '{}'",
  'aws_secret_access_key = {}',
  '"client_secret": "{}",',
  'AUTH_TOKEN={}',
  '密码：{}，请修改。',
)


def sentence(kind: str, random: Random) -> tuple[str, str]:
  """Returns a sentence and the item of personal data that it holds.

  Args:
    kind: of the item, of `MAKERS`.
    random: what is drawn from.
  """
  if kind == 'key' and random.random() < 0.3:
    item, carrier = secret(random), random.choice(_NAMED)
  else:
    item = MAKERS[kind](random)
    carrier = random.choice(_CARRIERS[kind])
  return carrier.format(item), item
