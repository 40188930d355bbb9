// A server of SignalR's transport and hub protocols, as far as its own client needs them: negotiation,
// long polling, WebSockets, JSON. As with ASP.NET Core a connection is known to this process alone.
//
// PORT=0 INSTANCE=a node signalr_server.mjs
//
// The hub is at /hub, and answers an invocation of `where` with INSTANCE. /stats tells how many requests
// named a connection that was never known here: a client's last poll may come behind its farewell. Anything else is 200.
import { randomUUID } from 'node:crypto'
import { createServer } from 'node:http'
import { WebSocketServer } from 'ws'

const END = '\x1e'
const { PORT = '0', INSTANCE = 'a' } = process.env
const connections = new Map()
const ended = new Set()
let unknown = 0

class Connection {
  constructor() {
    this.token = randomUUID()
    this.greeted = false
    this.polled = false
    this.queue = ''
  }

  hear(text) {
    for (const record of text.split(END).filter(Boolean)) {
      const message = JSON.parse(record)
      if (!this.greeted) {
        this.greeted = true
        this.say({})
      } else if (message.type === 1) {
        this.say({ type: 3, invocationId: message.invocationId, result: INSTANCE })
      }
    }
  }

  say(message) {
    const text = JSON.stringify(message) + END
    if (this.socket) return this.socket.send(text)
    this.queue += text
    this.flush()
  }

  flush() {
    if (!this.waiting || this.queue === '') return
    this.waiting.end(this.queue)
    this.waiting = undefined
    this.queue = ''
  }

  poll(response) {
    // The first poll only says that the transport is there.
    if (!this.polled) {
      this.polled = true
      return response.end()
    }
    this.waiting = response
    setTimeout(() => {
      if (this.waiting !== response) return
      this.waiting = undefined
      response.end()
    }, 5000).unref()
    this.flush()
  }
}

const server = createServer((request, response) => {
  const url = new URL(request.url, 'http://test')
  if (url.pathname === '/hub/negotiate') {
    const connection = new Connection()
    connections.set(connection.token, connection)
    const transport = (name) => ({ transport: name, transferFormats: ['Text'] })
    response.setHeader('content-type', 'application/json')
    return response.end(
      JSON.stringify({
        connectionToken: connection.token,
        connectionId: randomUUID(),
        negotiateVersion: 1,
        availableTransports: [transport('WebSockets'), transport('LongPolling')],
      }),
    )
  }
  if (url.pathname === '/stats') return response.end(JSON.stringify({ unknown }))
  if (url.pathname !== '/hub') return response.end(INSTANCE)
  const id = url.searchParams.get('id')
  const connection = connections.get(id)
  if (!connection) {
    if (!ended.has(id)) unknown += 1
    response.statusCode = 404
    return response.end('No Connection with that ID')
  }
  if (request.method === 'GET') return connection.poll(response)
  if (request.method === 'DELETE') {
    connections.delete(connection.token)
    ended.add(connection.token)
    connection.waiting?.writeHead(204).end()
    return response.writeHead(202).end()
  }
  let text = ''
  request.on('data', (piece) => (text += piece))
  request.on('end', () => {
    connection.hear(text)
    response.end()
  })
})

const sockets = new WebSocketServer({ noServer: true })
server.on('upgrade', (request, socket, head) => {
  const id = new URL(request.url, 'http://test').searchParams.get('id')
  const connection = id === null ? new Connection() : connections.get(id)
  if (!connection) {
    unknown += 1
    return socket.end('HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n')
  }
  sockets.handleUpgrade(request, socket, head, (open) => {
    connection.socket = open
    open.on('message', (data) => connection.hear(data.toString()))
  })
})
server.listen(Number(PORT), '127.0.0.1', () => console.log(`listening on ${server.address().port}`))
