// Clients of Socket.IO's own library, in rooms, for tests that read what they print.
//
// node socketio_client.mjs URL CLIENTS ROOMS
//
// Client N is in room N modulo ROOMS, and comes by polling only, WebSocket only, or the default
// (polling first, then an upgrade), in turn. Prints `ready` when all are in their rooms and those
// that upgrade have. Then it takes commands, one a line:
//   say TEXT    client of each room with the lowest number says it, and it is waited until every
//               member has it, exactly once; prints `said TEXT`
//   back N      waits until connections were lost N times and all are in their rooms again; prints `back N`
//   where TAG   prints `where TAG` and JSON: of each client its instance, and how often it lost its
//               connection
// What is received twice, or in a room that is not the client's, ends it with 1.
import { createInterface } from 'node:readline'
import { io } from 'socket.io-client'

const [url, clients, rooms] = [process.argv[2], Number(process.argv[3]), Number(process.argv[4])]
const TRANSPORTS = [['polling'], ['websocket'], undefined]

const members = Array.from({ length: clients }, (_, number) => member(number))

function member(number) {
  const transports = TRANSPORTS[number % TRANSPORTS.length]
  const socket = io(url, {
    forceNew: true,
    reconnectionDelay: 50,
    reconnectionDelayMax: 200,
    ...(transports && { transports }),
  })
  const self = { number, socket, room: `room-${number % rooms}`, heard: new Map(), lost: 0 }
  self.upgrades = transports === undefined
  self.joined = false
  socket.on('connect', () => {
    socket.emit('joinRoom', self.room, (instance) => {
      self.joined = true
      self.instance = instance
    })
  })
  socket.on('disconnect', () => {
    self.joined = false
    self.lost += 1
  })
  socket.on('message', ({ room, message }) => {
    if (room !== self.room) fail(`client ${number} heard of ${room}`)
    if (message.endsWith(' joined')) return
    const times = (self.heard.get(message) ?? 0) + 1
    if (times > 1) fail(`client ${number} heard ${message} ${times} times`)
    self.heard.set(message, times)
  })
  return self
}

function fail(what) {
  console.error(what)
  process.exit(1)
}

async function until(what, condition) {
  const end = Date.now() + 20_000
  while (!condition()) {
    if (Date.now() > end) fail(`not in time: ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
}

const onWebSocket = ({ socket }) => socket.io.engine?.transport?.name === 'websocket'
const allJoined = () => members.every(({ joined }) => joined)
const upgraded = () => members.filter((one) => one.upgrades && onWebSocket(one)).length
const upgrading = members.filter(({ upgrades }) => upgrades).length

async function say(text) {
  await until('all are in their rooms', allJoined)
  for (let room = 0; room < rooms; room += 1) {
    const speaker = members[room]
    speaker.socket.emit('chatMessage', { room: speaker.room, message: text })
  }
  await until(`${text} is heard`, () => members.every(({ heard }) => heard.has(text)))
  console.log(`said ${text}`)
}

const COMMANDS = {
  say,
  back: async (times) => {
    const lost = () => members.reduce((sum, one) => sum + one.lost, 0)
    await until(`${times} losses`, () => lost() >= Number(times))
    await until('all are back', allJoined)
    console.log(`back ${times}`)
  },
  where: (tag) => {
    const lines = members.map(({ instance, lost }) => ({ instance, lost }))
    console.log(`where ${tag} ${JSON.stringify(lines)}`)
  },
}

await until('all are in their rooms', allJoined)
await until('all have upgraded', () => upgraded() === upgrading)
console.log('ready')
for await (const line of createInterface({ input: process.stdin })) {
  const [command, ...rest] = line.split(' ')
  await COMMANDS[command](rest.join(' '))
}
process.exit(0)
