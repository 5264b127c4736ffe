import type { Random } from '../infra/random.ts'

/** A value per axis of taste: sentiment (praise +), length (detailed +), hedging (tentative +). */
export type Triple = readonly [sentiment: number, length: number, hedging: number]

/** A writer of the simulator: how many words it likes and how faithfully it follows a steer. */
export interface Voice {
  faithfulness: number // probability that an axis is written as asked, else at random
  from: number // where in the word lists its taste begins
  words: number // how many words of each list it uses
}

const voices: Record<string, Voice> = {
  'sim-small': { faithfulness: 0.8, from: 0, words: 5 },
  'sim-medium': { faithfulness: 0.9, from: 3, words: 5 },
  'sim-large': { faithfulness: 0.95, from: 0, words: 8 },
}
const ordinaryVoice: Voice = { faithfulness: 0.9, from: 2, words: 7 }

const praise = 'good superb wonderful lovely delightful beautiful amazing funny'
const blame = 'bad boring awful terrible dreadful horrible ugly annoying'
const plain = 'ordinary typical usual familiar'
const adjectives = [blame, plain, praise].map((list) => list.split(' '))
const subjects = [
  'plot',
  'acting',
  'ending',
  'music',
  'pacing',
  'dialogue',
  'cast',
  'story',
  'camera',
]
const tentative = ['perhaps', 'maybe', 'possibly', 'i suppose', 'i guess', 'arguably']
const assertive = ['certainly', 'clearly', 'definitely', 'truly', 'surely', 'obviously']

/** The voice of a model alias; unknown aliases share one. */
export function voiceOf(model: string): Voice {
  return voices[model] ?? ordinaryVoice
}

/**
 * A review in short lower-case sentences: one when brief, two when neither, three when detailed; words
 * of praise or blame, tentative or assertive markers as the steer's signs say.
 */
export function writeReview(of: {
  steer: Triple
  title: string
  voice: Voice
  random: Random
}): string {
  const { steer, title, voice, random } = of
  const [sentiment, length, hedging] = steer.map((sign) =>
    random.next() < voice.faithfulness ? sign : random.int(3) - 1,
  )
  const topics = random.shuffle(subjects).slice(0, length! + 2)
  const named = title !== '' && random.next() < 0.3 ? random.int(topics.length) : -1
  return topics
    .map((topic, i) => {
      const subject = i === named ? `the ${topic} of ${title}` : `the ${topic}`
      return writeSentence({ subject, sentiment: sentiment!, hedging: hedging!, voice, random })
    })
    .join(' ')
}

function writeSentence(of: {
  subject: string
  sentiment: number
  hedging: number
  voice: Voice
  random: Random
}): string {
  const { subject, sentiment, hedging, voice, random } = of
  const marks = hedging > 0 ? tentative : assertive
  const marker = hedging !== 0 && random.next() < 0.95 ? `${random.pick(marks)} ` : ''
  const verb = random.next() < 0.7 ? 'is' : 'feels'
  const [one, other] = [0, 1].map(() => adjectiveOf(sentiment, voice, random))
  // Two adjectives: side by side they show a small model which ones praise.
  return `${marker}${subject} ${verb} ${one} and ${other}.`
}

function adjectiveOf(sentiment: number, { from, words }: Voice, random: Random): string {
  const sign = sentiment === 0 ? (random.next() < 0.6 ? 0 : random.int(3) - 1) : sentiment
  const list = adjectives[sign + 1]!
  return list[(from + random.int(words)) % list.length]!
}

// What the simulator's judge knows of English; its own lists, so that it may err about a text.
const liked = words(
  `${praise} great charming clever perfect brilliant excellent fantastic gripping moving strong
   fresh loved love enjoyed enjoy best fun impressive memorable masterpiece stunning engaging
   powerful magnificent fine nice`,
)
const disliked = words(
  `${blame} dull weak poor messy hated hate worst tedious disappointing stale bland lazy clumsy
   flat mess waste forgettable predictable slow confusing shallow pointless silly`,
)
const hedges =
  /\b(?:perhaps|maybe|possibly|probably|arguably|apparently|might|could|seems?|seemed|somewhat|i (?:suppose|guess|think|believe)|sort of|kind of)\b/g
const boosts =
  /\b(?:certainly|clearly|definitely|truly|surely|obviously|absolutely|undoubtedly|always|never|must|no doubt|without doubt|of course)\b/g

/** How a reader of the simulator takes a text; each value has a deviation of about 1 over its reviews. */
export function readReview(text: string): Triple {
  const lower = text.toLowerCase()
  const tokens = lower.match(/[a-z']+/g) ?? []
  let balance = 0
  let telling = 0
  for (const [i, token] of tokens.entries()) {
    const sign = liked.has(token) ? 1 : disliked.has(token) ? -1 : 0
    if (sign === 0) continue
    const before = tokens[i - 1]
    balance += before === 'not' || before === 'never' ? -sign : sign
    telling++
  }
  const sentences = Math.max(lower.split(/[.!?](?:\s|$)/).filter(Boolean).length, 1)
  const hedging = (count(lower, hedges) - count(lower, boosts)) / sentences
  const length = Math.log2(Math.max(tokens.length, 1) / 10)
  return [telling === 0 ? 0 : balance / telling / 0.85, length / 0.65, hedging / 0.85]
}

/** What a text about a person says of their tastes: weight 0 with `isKnown` means indifferent. */
export interface Taste {
  weight: number
  isKnown: boolean
}

// Cues of each axis: [against, for, the words for the axis itself].
const cues = [
  [
    /\b(?:critical|faults?|harsh|severe|unsparing|dislike[sd]?|hated)\b/,
    /\b(?:praise|warm|enthusiastic|loved|kind)\b/,
    /\b(?:praise|critical|tone)\b/,
  ],
  [
    /\b(?:brief|short|concise|terse)\b/,
    /\b(?:detail|detailed|thorough|long|length)\b/,
    /\b(?:brief|length|detailed)\b/,
  ],
  [
    /\b(?:certain|confident|sure|decided)\b/,
    /\b(?:tentative|cautious|unsure|hedged)\b/,
    /\b(?:certain|tentative)\b/,
  ],
] as const
const indifferent = /\b(?:does not mind|equally|indifferent)\b/

/**
 * The tastes that a description, or a steer, names in words, per axis. What is named first, or 'above
 * all', weighs most; later sentences do not overrule.
 */
export function readTastes(description: string): [Taste, Taste, Taste] {
  const tastes: [Taste, Taste, Taste] = [unknown(), unknown(), unknown()]
  let emphasis = 1
  for (const sentence of description.toLowerCase().split(/[.!?;]\s*/)) {
    const isIndifferent = indifferent.test(sentence)
    const weight = sentence.includes('above all') ? 1.4 : emphasis
    for (const [axis, [against, inFavour, about]] of cues.entries()) {
      const taste = tastes[axis]!
      if (taste.isKnown) continue
      const sign = isIndifferent
        ? 0
        : Number(inFavour.test(sentence)) - Number(against.test(sentence))
      taste.isKnown = sign !== 0 || (isIndifferent && about.test(sentence))
      taste.weight = sign * weight
      if (sign !== 0) emphasis = 0.8
    }
  }
  return tastes
}

/** A sentence about a person's taste on one axis. */
export function tasteSentence(axis: number, sign: number): string {
  return tasteSentences[axis]![sign + 1]!
}

const tasteSentences = [
  [
    'This person also likes critical reviews that name the faults.',
    'This person does not mind whether a review is critical or full of praise.',
    'This person also likes warm reviews full of praise.',
  ],
  [
    'This person also likes brief reviews.',
    'This person does not mind whether a review is brief or detailed.',
    'This person also likes detailed reviews.',
  ],
  [
    'This person also likes reviews that sound certain.',
    'This person does not mind whether a review sounds certain or tentative.',
    'This person also likes reviews that sound tentative.',
  ],
]

function unknown(): Taste {
  return { weight: 0, isKnown: false }
}

function words(list: string): Set<string> {
  return new Set(list.split(/\s+/))
}

function count(text: string, pattern: RegExp): number {
  return text.match(pattern)?.length ?? 0
}
