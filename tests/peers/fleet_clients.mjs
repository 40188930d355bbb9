// Strict clients, made of `ws` with permessage-deflate, that hear their backend and others at a time.
//
//     node fleet_clients.mjs CLIENTS ROOMS PUBLISHERS MESSAGES URL..
//
// Opens connections, in turn to each URL and in the rooms `room-0` and so on, each with a user of its own,
// and prints `open` when all are. Each must hear of every publisher (a list with commas) in the texts
// `{"by": PUBLISHER, "n": NUMBER}` all numbers from 0 to MESSAGES - 1, each once and in this order, and of
// its backend all that fleet_backend.mjs says, in between and whole. When all have, it prints `complete`.
// The text `end` to each ends it, with a line of JSON that tells what was heard. Anything else that a
// client hears, and any violation of the protocol, ends it at once, with 1.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import WebSocket from 'ws';
import { ACK_EVERY, told } from './fleet_talk.mjs';

const DEADLINE_MS = 90_000;

const [clients, rooms, publishers, messages, ...urls] = process.argv.slice(2);
const [count, wanted] = [Number(clients), Number(messages)];
const names = publishers.split(',');
const heard = { published: 0, from_backends: 0, between: 0, bytes: 0 };
let [complete, ended] = [0, 0];

function listen(socket, who) {
  const next = Object.fromEntries(names.map((name) => [name, 0]));
  let [fromBackend, left, isLast] = [0, names.length, false];
  let lastWasPublished = false;
  const published = (text) => {
    if (text === 'end') {
      assert.equal(left, 0, 'the end came before all had');
      assert.ok(!isLast, 'the end came twice');
      isLast = true;
      ended += 1;
      return;
    }
    const { by, n } = JSON.parse(text);
    assert.equal(n, next[by], `a message of ${by}`);
    next[by] += 1;
    heard.published += 1;
    if (next[by] < wanted) return;
    left -= 1;
    if (left > 0) return;
    complete += 1;
    if (complete === count) console.log('complete');
  };
  const ofBackend = (data, isBinary) => {
    const { payload, binary } = told(fromBackend);
    assert.ok(data.equals(payload), `message ${fromBackend} of its backend: ${data.subarray(0, 40)}`);
    assert.equal(isBinary, binary, `message ${fromBackend} of its backend came as another type`);
    fromBackend += 1;
    heard.from_backends += 1;
    heard.between += Number(lastWasPublished);
    if (fromBackend % ACK_EVERY === 0) socket.send(String(fromBackend));
  };
  socket.on('message', (data, isBinary) => {
    try {
      heard.bytes += data.length;
      const isOfBackend = data.subarray(0, 8).toString() === 'backend ';
      if (isOfBackend) ofBackend(data, isBinary);
      else published(data.toString());
      lastWasPublished = !isOfBackend;
    } catch (error) {
      fail(`${who}: ${error.stack}`);
    }
    if (ended === count) finish();
  });
  socket.on('error', (error) => fail(`${who}: ${error.stack}`));
  socket.on('close', (code, reason) => fail(`${who}: closed with ${code} ${reason}`));
}

async function open(index) {
  const room = index % Number(rooms);
  const url = new URL(urls[Math.floor(index / Number(rooms)) % urls.length]);
  url.searchParams.set('room', `user-${index}`);
  url.searchParams.set('join', `room-${room}`);
  const socket = new WebSocket(url, { perMessageDeflate: { threshold: 0 } });
  listen(socket, `client ${index} in room ${room}`);
  await once(socket, 'open');
  assert.match(socket.extensions, /permessage-deflate/, 'extensions');
}

function fail(what) {
  console.error(what);
  process.exit(1);
}

function finish() {
  console.log(JSON.stringify(heard));
  process.exit(0);
}

setTimeout(() => {
  fail(`not done after ${DEADLINE_MS} ms: ${complete} have all, ${ended} the end; ${JSON.stringify(heard)}`);
}, DEADLINE_MS).unref();
for (let index = 0; index < count; index += 10) {
  const some = Array.from({ length: Math.min(10, count - index) }, (_, more) => open(index + more));
  await Promise.all(some).catch((error) => fail(error.stack));
}
console.log('open');
