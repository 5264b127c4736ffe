import { engineEventSchema } from './contract.ts'

/** Metrics of a training by step, and of its held-out pairs. */
export interface Curve {
  steps: Point[]
  evals: Point[]
}

interface Point {
  step: number
  metrics: Record<string, number>
}

/** The curve in an engine's events, a JSON line each; of a step that was made again the last one counts. */
export function readCurve(lines: string): Curve {
  const steps = new Map<number, Point>()
  const evals = new Map<number, Point>()
  for (const line of lines.split('\n')) {
    const { success, data } = engineEventSchema.safeParse(parse(line))
    if (!success || (data.event !== 'step' && data.event !== 'eval')) continue
    const { event, step, metrics } = data
    ;(event === 'step' ? steps : evals).set(step, { step, metrics })
  }
  const sorted = (points: Map<number, Point>) =>
    [...points.values()].sort((a, b) => a.step - b.step)
  return { steps: sorted(steps), evals: sorted(evals) }
}

/** A line of a panel. */
interface Line {
  name: string
  colour: string
  /** Pairs of step and value. */
  points: [number, number][]
  isFaint?: boolean
}

interface Panel {
  title: string
  lines: Line[]
}

const [blue, orange, green, grey] = ['#2563eb', '#ea580c', '#15803d', '#93b4f5']
const size = { width: 420, height: 280, left: 56, right: 16, top: 40, bottom: 36 }
const most = 400 // points of a line

/** An SVG of a training: its loss, and for pairs how often the chosen answer wins; '' without any step. */
export function renderCurve({ steps, evals }: Curve, title: string): string {
  if (steps.length === 0) return ''
  const of = (points: Point[], name: string) =>
    points.flatMap(({ step, metrics }): [number, number][] => {
      const value = metrics[name]
      return value === undefined ? [] : [[step, value]]
    })
  const loss = of(steps, 'loss')
  const right = of(steps, 'rewards/accuracies')
  const panels: Panel[] = [
    {
      title: 'loss',
      lines: [
        { name: 'each step', colour: grey, points: loss, isFaint: true },
        { name: 'mean of steps', colour: blue, points: smooth(loss) },
        { name: 'held out', colour: orange, points: of(evals, 'eval_loss') },
      ],
    },
    {
      title: 'share of pairs ranked right',
      lines: [
        { name: 'mean of steps', colour: blue, points: smooth(right) },
        { name: 'held out', colour: orange, points: of(evals, 'eval_rewards/accuracies') },
      ],
    },
    {
      title: 'reward margin, nats times beta',
      lines: [
        { name: 'mean of steps', colour: green, points: smooth(of(steps, 'rewards/margins')) },
        { name: 'held out', colour: orange, points: of(evals, 'eval_rewards/margins') },
      ],
    },
  ]
  const shown = panels.filter(({ lines }) => lines.some(({ points }) => points.length > 0))
  const width = size.width * shown.length
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${size.height + 24}" width="${width}" ` +
      `font-family="system-ui, sans-serif" font-size="11" fill="#334155" role="img">`,
    `<title>${escape(title)}</title><rect width="100%" height="100%" fill="#fff"/>`,
    `<text x="16" y="18" font-size="14" font-weight="600">${escape(title)}</text>`,
    ...shown.map((panel, at) => drawPanel(panel, at * size.width)),
    '</svg>\n',
  ].join('\n')
}

function drawPanel({ title, lines }: Panel, x: number): string {
  const drawn = lines.filter(({ points }) => points.length > 0)
  const all = drawn.flatMap(({ points }) => points)
  const across = scaleOf(
    all.map(([step]) => step),
    [size.left, size.width - size.right],
  )
  const up = scaleOf(
    all.map(([, value]) => value),
    [size.height - size.bottom, size.top + 24],
  )
  const ticks = [
    ...up.ticks.map(({ value, at }) =>
      tick(size.left - 6, at + 4, { text: show(value), end: true }),
    ),
    ...up.ticks.map(
      ({ at }) => `<path d="M${size.left} ${at}H${size.width - size.right}" stroke="#e2e8f0"/>`,
    ),
    ...across.ticks.map(({ value, at }) =>
      tick(at, size.height - size.bottom + 16, { text: show(value) }),
    ),
  ]
  const paths = drawn.map(({ colour, points, isFaint }) => {
    const places = thin(points).map(
      ([step, value]) => `${round(across.at(step))} ${round(up.at(value))}`,
    )
    const d = places.length === 1 ? `M${places[0]}h.1` : `M${places.join('L')}`
    const stroke = `stroke="${colour}" stroke-width="${isFaint ? 1 : 2}" stroke-linecap="round"`
    return `<path d="${d}" fill="none" ${stroke}/>`
  })
  const legend = drawn.map(
    ({ name, colour }, at) =>
      `<text x="${size.left + at * 96}" y="${size.top + 14}" fill="${colour}">${escape(name)}</text>`,
  )
  const head = `<text x="${size.left}" y="${size.top}" font-weight="600">${escape(title)}</text>`
  return `<g transform="translate(${x} 16)">${[head, ...legend, ...ticks, ...paths].join('')}</g>`
}

function tick(
  x: number,
  y: number,
  { text, end = false }: { text: string; end?: boolean },
): string {
  return `<text x="${round(x)}" y="${round(y)}" text-anchor="${end ? 'end' : 'middle'}">${text}</text>`
}

/** Places of values between two ends, with about four round ticks. */
function scaleOf(values: number[], [from, to]: [number, number]) {
  const [least, greatest] = [Math.min(...values), Math.max(...values)]
  const raw = (greatest - least || Math.abs(greatest) || 1) / 4
  const power = 10 ** Math.floor(Math.log10(raw))
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= raw)!
  const low = Math.floor(least / step) * step
  const high = Math.max(low + step, Math.ceil(greatest / step) * step)
  const at = (value: number) => from + ((value - low) / (high - low)) * (to - from)
  const count = Math.round((high - low) / step)
  const ticks = Array.from({ length: count + 1 }, (_, i) => low + i * step)
  return { at, ticks: ticks.map((value) => ({ value, at: round(at(value)) })) }
}

/** Each value as the mean of a fiftieth of the steps up to it. */
function smooth(points: [number, number][]): [number, number][] {
  const window = Math.max(1, Math.ceil(points.length / 50))
  let sum = 0
  return points.map(([step, value], i) => {
    sum += value - (i >= window ? points[i - window]![1] : 0)
    return [step, sum / Math.min(i + 1, window)]
  })
}

function thin<Value>(points: Value[]): Value[] {
  const every = Math.ceil(points.length / most)
  return points.filter((_, i) => i % every === 0 || i === points.length - 1)
}

function show(value: number): string {
  return String(Number(value.toPrecision(3)))
}

function round(value: number): number {
  return Math.round(value * 10) / 10
}

function escape(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;')
}

function parse(line: string): unknown {
  try {
    return JSON.parse(line)
  } catch {
    return undefined
  }
}
