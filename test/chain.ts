import { episodes } from '../activities/episodes.ts'
import { personas } from '../activities/personas.ts'
import { preferences } from '../activities/preferences.ts'
import { presets } from '../activities/presets.ts'
import { questions } from '../activities/questions.ts'
import type {
  Episode,
  Persona,
  Preference,
  Question,
  Refinement,
  Reject,
  Response,
} from '../activities/records.ts'
import { refinements } from '../activities/refinements.ts'
import { responses } from '../activities/responses.ts'
import type { Spec } from '../activities/spec.ts'
import type { ItemStage, StageContext, StageName } from '../activities/stage.ts'
import { FspoError } from '../infra/errors.ts'
import type { Chat, ChatRequest } from '../infra/llm.ts'
import { seedOf } from '../infra/random.ts'
import { createMind } from '../workers/mind.ts'

/** A whole specification of few users and questions. */
export const smallSpec: Spec = {
  ...presets.tiny,
  users: { ...presets.tiny.users, train: 8, unseen: 4 },
  questions: { ...presets.tiny.questions, seen: 8, unseen: 4 },
  preferences: { ...presets.tiny.preferences, pairs: 40, unseenPairs: 8 },
  episodes: { ...presets.tiny.episodes, perUser: 4 },
}

/** Every item stage's rows, made in this process by the simulator's mind. */
export interface Chain {
  personas: Persona[]
  questions: Question[]
  responses: Response[]
  refinements: Refinement[]
  preferences: Preference[]
  episodes: Episode[]
  rejects: Pick<Reject, 'id' | 'stage' | 'errorClass' | 'message'>[]
}

/** What a stage reads its rows by, each stage in one part. */
export function reading(rows: StageContext['rows']): Pick<StageContext, 'rows' | 'parts'> {
  return {
    rows,
    async *parts<Row>(stage: StageName) {
      yield await rows<Row>(stage)
    },
  }
}

/** The rows of an item stage, made one after the other; `onError` hears of items that have none. */
export async function makeRows<Item, Row>(
  stage: ItemStage<Item, Row>,
  { spec, rows, chat }: { spec: Spec; rows: StageContext['rows']; chat: Chat },
  onError: (id: string, error: unknown) => void = (_, error) => {
    throw error
  },
): Promise<Row[]> {
  const context = { spec, ...reading(rows) }
  const planned = await stage.items(context)
  const done: Row[] = []
  for (const [index, item] of planned.slice(0, planned.length).entries()) {
    const id = `${stage.name}-${index}`
    const { signal } = new AbortController()
    const means = { ...context, id, index, seed: seedOf(spec.seed, id), signal, chat }
    try {
      done.push(stage.schema.parse(await stage.process(item, means)))
    } catch (error) {
      onError(id, error)
    }
  }
  return done
}

/** Runs all item stages of a spec in this process, without server, store or Temporal; takes seconds. */
export async function makeChain(
  spec: Spec,
  {
    mind = createMind(),
    onRequest = () => {},
  }: { mind?: ReturnType<typeof createMind>; onRequest?: (request: ChatRequest) => void } = {},
): Promise<Chain> {
  const rejects: Chain['rejects'] = []
  const made = new Map<string, unknown[]>()
  const chat: Chat = async (request) => {
    onRequest(request)
    const { text, finishReason } = mind({ ...request, model: request.alias })
    const cost = { attempts: 1, promptTokens: 0, completionTokens: 0, costUsd: 0 }
    return { text, finishReason, endpoint: 'mind', model: request.alias, ...cost }
  }

  async function rows<Row>(stage: string): Promise<Row[]> {
    return made.get(stage) as Row[]
  }

  async function make<Item, Row>(stage: ItemStage<Item, Row>): Promise<Row[]> {
    const done = await makeRows(stage, { spec, rows, chat }, (id, error) => {
      if (!(error instanceof FspoError)) throw error
      const { type: errorClass, message } = error
      rejects.push({ id, stage: stage.name, errorClass, message })
    })
    made.set(stage.name, done)
    return done
  }

  return {
    personas: await make(personas),
    questions: await make(questions),
    responses: await make(responses),
    refinements: await make(refinements),
    preferences: await make(preferences),
    episodes: await make(episodes),
    rejects,
  }
}
