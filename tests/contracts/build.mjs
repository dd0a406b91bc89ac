// Compiles src/ and writes one JSON file: the creation code of every contract by name, Multicall3's among them.
import { readFileSync, readdirSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const require = createRequire(import.meta.url)
const solc = require('solc')
// viem deploys this where it is missing, and does not export it by a name.
const { multicall3Bytecode } = require('./node_modules/viem/_cjs/constants/contracts.js')

const here = fileURLToPath(new URL('.', import.meta.url))
const source = (path) => ({ content: readFileSync(path, 'utf8') })
const input = {
  language: 'Solidity',
  sources: Object.fromEntries(readdirSync(join(here, 'src')).map((name) => [name, source(join(here, 'src', name))])),
  settings: {
    evmVersion: 'cancun',
    optimizer: { enabled: true, runs: 1_000_000 },
    outputSelection: { '*': { '*': ['evm.bytecode.object'] } },
  },
}
const imported = (path) => ({ contents: readFileSync(join(here, 'node_modules', path), 'utf8') })
const output = JSON.parse(solc.compile(JSON.stringify(input), { import: imported }))
const problems = (output.errors ?? []).map((problem) => problem.formattedMessage)
if (problems.length > 0) {
  console.error(problems.join('\n'))
  process.exit(1)
}
const codes = { Multicall3: multicall3Bytecode }
for (const file of Object.keys(input.sources)) {
  for (const [name, contract] of Object.entries(output.contracts[file])) {
    codes[name] = `0x${contract.evm.bytecode.object}`
  }
}
writeFileSync(process.argv[2], JSON.stringify(codes))
