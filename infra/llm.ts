/** One chat completion, asked of a model alias. */
export interface ChatRequest {
  alias: string
  messages: { role: 'system' | 'user' | 'assistant'; content: string }[]
  temperature: number
  maxTokens: number
  seed: number
  signal: AbortSignal
}

/** Its reply and what it cost. */
export interface ChatReply {
  text: string
  finishReason: string
  endpoint: string
  model: string
  attempts: number
  promptTokens: number
  completionTokens: number
  costUsd: number
}

/** Sends one request, with in-process retries. @throws LlmError, with `retryable` and the raw reply. */
export type Chat = (request: ChatRequest) => Promise<ChatReply>
