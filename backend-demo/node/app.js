// A chat on Socket.IO 4, as one of several instances that find each other through Redis: the
// application of many a tutorial, to test a proxy with.
//
// node app.js; prints `listening on PORT` to standard output when it does. From the environment:
//   PORT        0 takes a free one; 3000 where it is not set
//   REDIS_URL   where the official adapter finds the other instances; without it there are none
//   INSTANCE    how this one is called; its process id where it is not set
//   HOST        127.0.0.1 where it is not set
//
// Events of clients:
//   joinRoom ROOM                      joins; the room is told by `message`
//   chatMessage {room, message|text}   to the whole room by `message`, on every instance
// The event `message` is {room, instance, id, message}: which instance had it, and who said it.
// An acknowledgement, where a client asks for one, is the name of the instance.
//
// Plain paths:
//   /health     200
//   /stats      JSON: {instance, clients, errors}; errors counts refused requests by what was said
//
// SIGTERM and SIGINT: every client is told, and the end within two seconds.
'use strict'

const http = require('node:http')
const { createAdapter } = require('@socket.io/redis-adapter')
const { createClient } = require('redis')
const { Server } = require('socket.io')

const STOP_WITHIN_MS = 2000

const instance = process.env.INSTANCE ?? String(process.pid)
const errors = {}

const server = http.createServer((request, response) => {
  const { pathname } = new URL(request.url, 'http://localhost')
  if (pathname === '/health') return answer(response, 200, 'text/plain', 'ok\n')
  if (pathname === '/stats') {
    const stats = { instance, clients: io.engine.clientsCount, errors }
    return answer(response, 200, 'application/json', JSON.stringify(stats))
  }
  answer(response, 404, 'text/plain', 'the chat is at /socket.io/\n')
})
const io = new Server(server)

io.engine.on('connection_error', ({ message }) => {
  errors[message] = (errors[message] ?? 0) + 1
})

io.on('connection', (socket) => {
  socket.on('joinRoom', async (room, joined) => {
    if (typeof room !== 'string') return
    await socket.join(room)
    say(socket, room, `${socket.id} joined`)
    if (typeof joined === 'function') joined(instance)
  })
  socket.on('chatMessage', (chat, said) => {
    if (typeof chat?.room !== 'string') return
    say(socket, chat.room, chat.message ?? chat.text ?? '')
    if (typeof said === 'function') said(instance)
  })
})

function say(socket, room, message) {
  io.to(room).emit('message', { room, instance, id: socket.id, message })
}

function answer(response, status, type, body) {
  response.writeHead(status, { 'Content-Type': type, 'Content-Length': Buffer.byteLength(body) })
  response.end(body)
}

async function connectRedis(url) {
  const publisher = createClient({ url })
  const subscriber = publisher.duplicate()
  for (const client of [publisher, subscriber]) {
    client.on('error', (error) => console.error(`redis: ${error.message}`))
  }
  await Promise.all([publisher.connect(), subscriber.connect()])
  io.adapter(createAdapter(publisher, subscriber))
}

function stop() {
  io.close(() => process.exit(0))
  setTimeout(() => process.exit(0), STOP_WITHIN_MS).unref()
}

async function start() {
  if (process.env.REDIS_URL) await connectRedis(process.env.REDIS_URL)
  server.listen(Number(process.env.PORT ?? 3000), process.env.HOST ?? '127.0.0.1', () => {
    console.log(`listening on ${server.address().port}`)
  })
}

process.on('SIGTERM', stop)
process.on('SIGINT', stop)
start().catch((error) => {
  console.error(error)
  process.exit(1)
})
