// One instance of a Socket.IO application with the Redis adapter, whose sockets are all in one room: what
// a fan-out of Steadfast is compared with. Needs `socket.io`, `redis` and `@socket.io/redis-adapter` where
// NODE_PATH says.
//
// node socketio.js REDIS_URL; prints its port when it listens. POST / sends each line of the body to the
// room, on every instance.
'use strict'

const http = require('node:http')
const { createAdapter } = require('@socket.io/redis-adapter')
const { createClient } = require('redis')
const { Server } = require('socket.io')

const ROOM = 'room'

const server = http.createServer((request, response) => {
  let text = ''
  request.setEncoding('utf8')
  request.on('data', (piece) => { text += piece })
  request.on('end', () => {
    for (const line of text.split('\n')) io.to(ROOM).emit('message', line)
    response.writeHead(204).end()
  })
})
// Pings are none of what is measured.
const io = new Server(server, { transports: ['websocket'], pingInterval: 300_000 })
io.on('connection', (socket) => socket.join(ROOM))

async function start() {
  const publisher = createClient({ url: process.argv[2] })
  const subscriber = publisher.duplicate()
  await Promise.all([publisher.connect(), subscriber.connect()])
  io.adapter(createAdapter(publisher, subscriber))
  server.listen(0, '127.0.0.1', () => console.log(server.address().port))
}

start().catch((error) => {
  console.error(error)
  process.exit(1)
})
