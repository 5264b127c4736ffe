import type { Curve } from './curve.ts'
import { markdownTable } from './format.ts'

/** What is told of one training, beside its curve. */
export interface Trained {
  name: string
  engine: string
  settings: Record<string, string | number>
  data: Record<string, string | number>
  seconds: number
}

const shown = 12 // rows of the table of steps

/** `report.md` of a model that was trained by itself; the plot lies beside it. */
export function describeTraining(
  { name, engine, settings, data, seconds }: Trained,
  curve: Curve,
): string {
  const pairs = (values: Record<string, string | number>) =>
    markdownTable([['', ''], ...Object.entries(values).map(([key, value]) => [key, String(value)])])
  return `# ${name}

Trained by fspo's engine ${engine} in ${seconds.toFixed(0)} s.

![loss, accuracy and margin by step](loss.svg)

## Settings

${pairs(settings)}

## Data

${pairs(data)}

## Steps

${stepTable(curve)}
${evalTable(curve)}`
}

function stepTable({ steps }: Curve): string {
  const every = Math.max(1, Math.ceil(steps.length / shown))
  const rows = steps.filter((_, i) => i % every === 0 || i === steps.length - 1)
  return markdownTable([
    ['step', 'loss', 'margin', 'accuracy', 'gradient', 'learning rate'],
    ...rows.map(({ step, metrics }) => [
      String(step),
      number(metrics.loss),
      number(metrics['rewards/margins']),
      number(metrics['rewards/accuracies']),
      number(metrics.grad_norm),
      number(metrics.learning_rate),
    ]),
  ])
}

function evalTable({ evals }: Curve): string {
  if (evals.length === 0) return ''
  const rows = evals.map(({ step, metrics }) => [
    String(step),
    number(metrics.eval_loss),
    number(metrics['eval_rewards/margins']),
    number(metrics['eval_rewards/accuracies']),
  ])
  const table = markdownTable([['step', 'loss', 'margin', 'accuracy'], ...rows])
  return `\n## Held-out users\n\n${table}\n`
}

function number(value: number | undefined): string {
  return value === undefined ? '-' : String(Number(value.toPrecision(4)))
}
