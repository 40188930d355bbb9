// The WebSocket server that Node users have, on `ws`, to test a proxy with.
//
// node server.js [PORT]; or PORT in the environment; 0 takes a free one. Prints `listening on PORT`
// to standard output when it does, and nothing per message. HOST is 127.0.0.1 where it is not set.
// SUBPROTOCOLS=a,b  chooses the first that the client offers and this list has
// DEFLATE=1         accepts permessage-deflate, for messages of any size
//
// WebSocket paths, each a behaviour of a backend that a proxy has to cope with:
//   /echo                  echoes text and binary, nothing else
//   /first                 a message in the very packet of the 101, then as /echo
//   /headers               one text message: the handshake's headers as JSON
//   /ping                  pings `are you there`, answers its pong with the text `pong: are you there`
//   /flood?bytes=N         N bytes in binary messages of 64 KiB, as fast as they go; then Close 1000
//   /silent                never reads from its socket
//   /close/CODE?reason=R   a Close right after the handshake; CODE 0 is a Close without a code
//   /close-echo            says nothing; `GET /closes` tells how it ended
//   /refuse/STATUS         no handshake: that HTTP status and a body
//   any other              greets, answers M with `Server received: M`
// Plain paths:
//   /health                200
//   /closes                JSON list of the last 1000 ends: {url, code, reason, clean}
//
// SIGTERM and SIGINT: a Close 1001 to all, and the end within two seconds.
'use strict'

const http = require('node:http')
const { WebSocketServer } = require('ws')

const KEPT_CLOSES = 1000
const FLOOD_MESSAGE = Buffer.alloc(64 * 1024, 'flood ')
const FLOOD_BUFFERED = 4 * FLOOD_MESSAGE.length
const STOP_WITHIN_MS = 2000

const subprotocols = (process.env.SUBPROTOCOLS ?? '').split(',').filter(Boolean)
const sockets = new WebSocketServer({
  noServer: true,
  perMessageDeflate: process.env.DEFLATE === '1' ? { threshold: 0 } : false,
  handleProtocols: (offered) => [...offered].find((name) => subprotocols.includes(name)) ?? false,
})
const closes = []

const server = http.createServer((request, response) => {
  const { pathname } = urlOf(request)
  if (pathname === '/health') return answer(response, 200, 'text/plain', 'ok\n')
  if (pathname === '/closes') {
    return answer(response, 200, 'application/json', JSON.stringify(closes))
  }
  answer(response, 404, 'text/plain', 'this path speaks WebSocket, or is none\n')
})

server.on('upgrade', (request, socket, head) => {
  // Until `ws` has the socket nobody else listens for its errors.
  socket.on('error', () => socket.destroy())
  const { pathname, searchParams } = urlOf(request)
  const refused = /^\/refuse\/([2-5]\d\d)$/.exec(pathname)
  if (refused) return refuse(socket, Number(refused[1]))
  const close = /^\/close\/(\d+)$/.exec(pathname)
  if (close && !mayBeSent(Number(close[1]), searchParams.get('reason'))) return refuse(socket, 400)
  // Corked, what is sent at once goes out together with the 101.
  socket.cork()
  sockets.handleUpgrade(request, socket, head, (client) => serve(client, request))
  process.nextTick(() => socket.uncork())
})

function serve(client, request) {
  const { pathname, searchParams } = urlOf(request)
  client.on('error', () => {}) // It ends with a 'close' in any case.
  client.on('close', (code, reason) => {
    closes.push({ url: request.url, code, reason: reason.toString(), clean: code !== 1006 })
    if (closes.length > KEPT_CLOSES) closes.shift()
  })
  const [, first, second] = pathname.split('/')
  switch (first) {
    case 'echo':
      return echo(client)
    case 'first':
      client.send('first')
      return echo(client)
    case 'headers':
      return client.send(JSON.stringify(request.headers))
    case 'ping':
      client.on('pong', (payload) => client.send(`pong: ${payload}`))
      return client.ping('are you there')
    case 'flood':
      return flood(client, Number(searchParams.get('bytes') ?? Infinity))
    case 'silent':
      return client.pause()
    case 'close':
      if (second === '0') return client.close()
      return client.close(Number(second), searchParams.get('reason') ?? '')
    case 'close-echo':
      return
    default:
      return greet(client)
  }
}

function echo(client) {
  client.on('message', (data, isBinary) => client.send(data, { binary: isBinary }))
}

function greet(client) {
  client.send('Welcome to the WebSocket server!')
  client.on('message', (data) => client.send(`Server received: ${data}`))
}

function flood(client, bytes) {
  const send = () => {
    while (bytes > 0 && client.readyState === client.OPEN) {
      if (client.bufferedAmount > FLOOD_BUFFERED) return
      const message = FLOOD_MESSAGE.subarray(0, bytes)
      bytes -= message.length
      client.send(message, send) // Again, when this one is written.
    }
    if (bytes <= 0) client.close(1000)
  }
  send()
}

/** Whether RFC 6455 lets this Close be on the wire; code 0 stands for a Close without one. */
function mayBeSent(code, reason) {
  if (Buffer.byteLength(reason ?? '') > 123) return false
  const registered = code >= 1000 && code <= 1014 && ![1004, 1005, 1006].includes(code)
  return code === 0 || registered || (code >= 3000 && code <= 4999)
}

function refuse(socket, status) {
  const body = `refused with ${status}\n`
  const head = [
    `HTTP/1.1 ${status} ${http.STATUS_CODES[status] ?? 'Refused'}`,
    'Content-Type: text/plain',
    `Content-Length: ${body.length}`,
    // A 426 says to which protocol (RFC 9110 section 15.5.22).
    ...(status === 426 ? ['Connection: upgrade, close', 'Upgrade: websocket'] : ['Connection: close']),
  ]
  socket.end(`${head.join('\r\n')}\r\n\r\n${body}`)
}

function answer(response, status, type, body) {
  response.writeHead(status, { 'Content-Type': type, 'Content-Length': Buffer.byteLength(body) })
  response.end(body)
}

function urlOf(request) {
  try {
    return new URL(request.url, 'http://localhost')
  } catch {
    return new URL('http://localhost/') // A request target that is no path.
  }
}

function stop() {
  server.close(() => process.exit(0))
  server.closeIdleConnections()
  for (const client of sockets.clients) client.close(1001, 'the backend stops')
  setTimeout(() => process.exit(0), STOP_WITHIN_MS).unref()
}

process.on('SIGTERM', stop)
process.on('SIGINT', stop)
const port = Number(process.argv[2] ?? process.env.PORT ?? 9001)
server.listen(port, process.env.HOST ?? '127.0.0.1', () => {
  console.log(`listening on ${server.address().port}`)
})
