import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'

import { findEngine } from '../workers/engine.ts'
import { openTokenizer } from '../workers/engines/tfjs/tokenizer.ts'
import { packageRoot } from '../workers/paths.ts'
import { tinyCheckpoint } from './nano.ts'

/** What trips tokenizers: scripts, marks that combine, emoji sequences, odd spaces, line ends, layout and controls. */
const texts = [
  'It was a joy to watch.',
  ' leading and trailing ',
  'tabs\tand\nlines\r\nand\rreturns\n\n\n',
  'naïve café – “quoted”… ½ ﬁne',
  'cafe\u0301 A\u030Angstro\u0308m',
  'Ελληνικά, русский, українська, हिन्दी, தமிழ், ไทย, 한국어, 日本語テキスト、中文。',
  'עברית \u202Bbidi\u202C العربية ١٢٣',
  '👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 🇩🇪 ☺️',
  'zero\u200Bwidth\u200C\u200Djoin\uFEFF nbsp\u00A0 thin\u2009 ideographic\u3000 line\u2028para\u2029',
  '\u0000\u0001\u007F\u0085',
  "don't they'll I'd we're CAN'T 'tis",
  '12345678901234567890 3.14e-10 0x1F 1,000,000',
  '𝒜𝓁𝓅𝒽𝒶 𐍈 \u{1F9FF}\u{E0067}',
  '<|endoftext|>',
  'a<|endoftext|>b <|im_start|>user\nhi<|im_end|>\n',
  '## Question\nFilm?\n## Preferred Response\nGood\n## Dispreferred Response\nBad\n\n# Task\n',
  'İstanbul ßtraße ŉ ǆ K Å ﷺ',
  `${'ab'.repeat(300)} ${' '.repeat(40)}${'\n'.repeat(9)}`,
  '\uFFFD \uD83D\uDE00',
  '',
]

const smollm2 = join(packageRoot, '.venv-smollm2', 'SmolLM2-135M-Instruct')
const script = `
import json, sys
from pathlib import Path
from fspo_trainer.tokens import open_tokens
folder = Path(sys.argv[1])
names = ["tokenizer.json", "tokenizer_config.json"]
tokens = open_tokens({name: (folder / name).read_bytes() for name in names})
texts = json.load(sys.stdin)
print(json.dumps([[tokens.encode(text), tokens.decode(tokens.encode(text))] for text in texts]))
`

function missingEngine(): string | false {
  try {
    findEngine('torch', process.env)
    return false
  } catch {
    return 'the torch engine is not installed: `python3 workers/trainer.py --test` installs it'
  }
}

for (const [name, folder] of Object.entries({ nano: tinyCheckpoint, SmolLM2: smollm2 })) {
  const skip = missingEngine() || (!existsSync(folder) && `${folder} is not there`)
  test(
    `both engines give every text the same ids, and ids the same text: ${name}`,
    { skip },
    () => {
      const { command, env } = findEngine('torch', process.env)
      const input = JSON.stringify(texts)
      const python = spawnSync(command[0]!, ['-c', script, folder], {
        env,
        input,
        encoding: 'utf8',
      })
      assert.equal(python.status, 0, python.stderr)
      const theirs: [number[], string][] = JSON.parse(python.stdout)
      const read = (file: string) => readFileSync(join(folder, file), 'utf8')
      const tokenizer = openTokenizer({
        'tokenizer.json': read('tokenizer.json'),
        'tokenizer_config.json': read('tokenizer_config.json'),
      })
      texts.forEach((text, i) => {
        const ids = tokenizer.encode(text)
        assert.deepEqual(ids, theirs[i]![0], JSON.stringify(text))
        assert.equal(tokenizer.decode(ids), theirs[i]![1], JSON.stringify(text))
      })
    },
  )
}
