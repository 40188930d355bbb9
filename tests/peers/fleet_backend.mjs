// A WebSocket backend made of `ws` that never stops talking, to have others send in between.
//
//     node fleet_backend.mjs
//
// Takes a free port of 127.0.0.1 and prints `listening on PORT`. A connection joins the rooms that its
// query names in `join`, as a backend asks for it, and is told numbered messages as fast as it confirms
// them: whole and in fragments with pings between them, text and binary, compressed and not. Message N is
// what `told` in fleet_clients.mjs expects.

import { createServer } from 'node:http';
import { WebSocketServer } from 'ws';
import { ACK_EVERY, told } from './fleet_talk.mjs';

// Messages that may be unconfirmed: so what is under way is bounded, and never nothing.
const WINDOW = 2 * ACK_EVERY;

const server = createServer();
const sockets = new WebSocketServer({
  server,
  // Each message may refer to those before it, so whatever is put in between must not disturb that.
  perMessageDeflate: { threshold: 0, zlibDeflateOptions: { level: 1, memLevel: 5 } },
});

sockets.on('headers', (headers, request) => {
  const rooms = new URL(request.url, 'http://host').searchParams.getAll('join');
  if (rooms.length > 0) headers.push(`Steadfast-Join: ${rooms.map(encodeURIComponent).join(', ')}`);
});

sockets.on('connection', (socket) => {
  let [next, confirmed] = [0, 0];
  const talk = () => {
    while (next < confirmed + WINDOW && socket.readyState === socket.OPEN) {
      say(socket, told(next));
      next += 1;
    }
  };
  socket.on('message', (data) => {
    confirmed = Number(data);
    talk();
  });
  socket.on('error', () => {}); // It ends with a 'close' in any case.
  talk();
});

function say(socket, { payload, binary, compress, fragments }) {
  const length = Math.ceil(payload.length / fragments);
  for (let index = 0; index < fragments; index += 1) {
    if (index > 0) socket.ping('between fragments');
    const part = payload.subarray(index * length, (index + 1) * length);
    socket.send(part, { binary, compress, fin: index === fragments - 1 });
  }
}

server.listen(0, '127.0.0.1', () => console.log(`listening on ${server.address().port}`));
