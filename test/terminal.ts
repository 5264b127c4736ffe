import { spawn, type ChildProcess } from 'node:child_process'
import { fileURLToPath } from 'node:url'

const cli = fileURLToPath(new URL('../workers/cli.ts', import.meta.url))

// A pseudo-terminal of a size, without a native module: Python is there anyway.
const keeper = `
import fcntl, os, pty, struct, sys, termios
rows, columns = int(sys.argv[1]), int(sys.argv[2])
pid, master = pty.fork()
if pid == 0:
    fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack('HHHH', rows, columns, 0, 0))
    os.execvp(sys.argv[3], sys.argv[3:])
while True:
    try:
        data = os.read(master, 65536)
    except OSError:
        break
    if not data:
        break
    os.write(1, data)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
`

export interface Terminal {
  child: ChildProcess
  /** What a person sees now, line by line, without the blanks at the ends. */
  screen(): string[]
  ended: Promise<number | null>
}

/** Runs `fspo …` in a pseudo-terminal and draws what it writes. */
export function startInTerminal(
  folder: string,
  args: string[],
  { rows = 40, columns = 110 } = {},
): Terminal {
  const { TEMPORAL_ADDRESS: _, ...inherited } = process.env
  const loader = import.meta.resolve('tsx')
  const command = [process.execPath, '--import', loader, cli, ...args]
  const child = spawn('python3', ['-c', keeper, String(rows), String(columns), ...command], {
    cwd: folder,
    env: { ...inherited, FSPO_HOME: `${folder}/.fspo`, TERM: 'xterm-256color' },
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const kill = () => child.kill('SIGKILL')
  process.on('exit', kill)
  let written = ''
  child.stdout?.setEncoding('utf8').on('data', (text: string) => (written += text))
  const ended = new Promise<number | null>((resolve) => {
    child.once('close', (code) => {
      process.off('exit', kill)
      resolve(code)
    })
  })
  return { child, screen: () => draw(written, columns), ended }
}

/**
 * The lines that a terminal shows after so much output, of those control sequences that log-update uses.
 * @throws Error for any other
 */
export function draw(written: string, columns: number): string[] {
  const lines: string[] = ['']
  let row = 0
  let column = 0

  function move(letter: string, parameter: string) {
    const count = Number(parameter || 1)
    if (letter === 'A') row = Math.max(0, row - count)
    else if (letter === 'B') row += count
    else if (letter === 'G') column = count - 1
    else if (letter === 'K') lines[row] = parameter === '2' ? '' : lines[row]!.slice(0, column)
    else if (letter === 'J') lines.length = row + 1
    else if (!'hlm'.includes(letter)) throw new Error(`unknown sequence ${parameter}${letter}`)
  }

  function write(character: string) {
    if (column === columns) {
      row++
      column = 0
      lines[row] ??= ''
    }
    const old = lines[row]!.padEnd(column)
    lines[row] = old.slice(0, column) + character + old.slice(column + 1)
    column++
  }

  const escape = String.fromCharCode(27)
  const token = `${escape}\\[(\\??[\\d;]*)([A-Za-z])|\\r|\\n|[^${escape}\\r\\n]+`
  for (const [text, parameter = '', letter] of written.matchAll(new RegExp(token, 'g'))) {
    if (text === '\r') column = 0
    else if (text === '\n') row++
    else if (letter) move(letter, parameter)
    else for (const character of text) write(character)
    while (lines.length <= row) lines.push('')
  }
  return lines.map((line) => line.trimEnd())
}
