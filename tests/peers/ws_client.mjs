// A WebSocket client made of the npm package `ws`, to try the proxy with another maker's library.
//
//     node ws_client.mjs COMMAND URL [ARGUMENT..]
//
// URL is where a server behind the proxy echoes every message, if the command is not about
// something else. Exits with 0 only if all held; else it prints what did not, and exits with 1.
//
//     echo                        text and binary of many sizes, and fragments with pings between
//     ping                        each ping is answered by a pong with its payload
//     close CODE REASON           our Close is answered with the same code; CODE 0 sends none
//     expect-close CODE [REASON]  the other end closes, with this code and reason
//     subprotocol OFFERED CHOSEN  OFFERED is a list with commas; CHOSEN is `-` for none
//     deflate                     compressed messages come back, and windows live over messages
//     between COUNT               the texts `injected 0` and so on come in order, among binary
//                                 messages that are whole; prints how many of those came meanwhile
//     refused STATUS [BODY]       the handshake is answered with this
//     many N PREFIX               opens N connections at once, with `room=PREFIX0` and so on, and
//                                 prints {"ROOM": FIRST MESSAGE, ..} when each has had its first

import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import WebSocket from 'ws';

const DEADLINE_MS = 60_000;
const SIZES = [0, 1, 125, 126, 65_535, 65_536, 1 << 20, 1 << 24];

const commands = {
  echo,
  ping,
  close,
  'expect-close': expectClose,
  subprotocol,
  deflate,
  between,
  refused,
  many,
};

async function echo(url) {
  const socket = await open(url, { perMessageDeflate: false });
  for (const size of SIZES) {
    await echoes(socket, 'é'.repeat(size >> 1) + 'x'.repeat(size & 1));
    await echoes(socket, randomBytes(size));
  }
  await echoesFragments(socket, ['one ', '', 'two ', 'three']);
  await echoesFragments(socket, [randomBytes(10), randomBytes(70_000), randomBytes(0)]);
  await closeNormally(socket);
}

async function echoes(socket, message) {
  const [back, isBinary] = await answer(socket, () => socket.send(message));
  const what = `${typeof message === 'string' ? 'text' : 'binary'} of ${message.length}`;
  assert.equal(isBinary, typeof message !== 'string', `${what} came back as another type`);
  assert.ok(back.equals(Buffer.from(message)), `${what} came back changed`);
}

// A control frame may stand between two fragments (RFC 6455 section 5.4).
async function echoesFragments(socket, fragments) {
  const pongs = [];
  const onPong = (payload) => pongs.push(payload.toString());
  socket.on('pong', onPong);
  const [back, isBinary] = await answer(socket, () => {
    fragments.forEach((fragment, index) => {
      socket.send(fragment, { fin: index === fragments.length - 1 });
      socket.ping(`behind fragment ${index}`);
    });
  });
  const whole = Buffer.concat(fragments.map((fragment) => Buffer.from(fragment)));
  assert.equal(isBinary, typeof fragments[0] !== 'string', 'fragments: another type');
  assert.ok(back.equals(whole), 'fragments came back changed');
  while (pongs.length < fragments.length) await once(socket, 'pong');
  socket.off('pong', onPong);
  assert.deepEqual(pongs, fragments.map((_, index) => `behind fragment ${index}`), 'pongs');
}

async function ping(url) {
  const socket = await open(url);
  for (const payload of ['', 'hello', 'x'.repeat(125)]) {
    const pong = once(socket, 'pong');
    socket.ping(payload);
    assert.equal((await pong)[0].toString(), payload, 'payload of the pong');
  }
  await closeNormally(socket);
}

async function close(url, code, reason = '') {
  const socket = await open(url);
  const closed = once(socket, 'close');
  const none = code === '0';
  if (none) socket.close();
  else socket.close(Number(code), reason);
  // To this library a Close without a code has the code 1005 (RFC 6455 section 7.1.5).
  assert.equal((await closed)[0], none ? 1005 : Number(code), 'code of the answer to our Close');
}

async function expectClose(url, code, reason) {
  const socket = await open(url);
  const [actual, actualReason] = await once(socket, 'close');
  assert.equal(actual, Number(code), 'close code');
  if (reason !== undefined) assert.equal(actualReason.toString(), reason, 'close reason');
}

async function subprotocol(url, offered, chosen) {
  const opening = open(url, {}, offered.split(',').map((name) => name.trim()));
  if (chosen === '-') {
    // To this library it is an error when none of those offered is chosen.
    await assert.rejects(opening, /Server sent no subprotocol/);
    return;
  }
  const socket = await opening;
  assert.equal(socket.protocol, chosen, 'subprotocol');
  await closeNormally(socket);
}

async function deflate(url) {
  const socket = await open(url, { perMessageDeflate: { threshold: 0 } });
  assert.match(socket.extensions, /permessage-deflate/, 'extensions');
  await echoes(socket, 'compress me '.repeat(10_000));
  await echoes(socket, randomBytes(100_000));
  await echoes(socket, '');
  // Random bytes are compressed only by a compressor that still knows the message before.
  const message = randomBytes(8_192);
  await echoes(socket, message);
  const before = { sent: socket.tcp.bytesWritten, received: socket.tcp.bytesRead };
  await echoes(socket, message);
  const sent = socket.tcp.bytesWritten - before.sent;
  const received = socket.tcp.bytesRead - before.received;
  const short = (bytes) => bytes < message.length / 4;
  assert.equal(short(sent), !socket.agreed.includes('client_no_context_takeover'),
    `${sent} bytes sent for a message said before, agreed: ${socket.agreed}`);
  assert.equal(short(received), !socket.agreed.includes('server_no_context_takeover'),
    `${received} bytes received for a message said before, agreed: ${socket.agreed}`);
  await echoesFragments(socket, ['compressed '.repeat(50), 'in ', 'fragments '.repeat(500)]);
  await closeNormally(socket);
}

async function between(url, count) {
  const socket = new WebSocket(url);
  let [texts, binaries] = [0, 0];
  await new Promise((resolve, reject) => {
    const check = (data, isBinary) => {
      if (isBinary) {
        binaries += 1;
        assert.ok(data.every((byte) => byte === data[0]), 'a binary message of several');
        return;
      }
      assert.equal(data.toString(), `injected ${texts}`);
      texts += 1;
      if (texts === Number(count)) resolve();
    };
    socket.on('message', (data, isBinary) => {
      try {
        check(data, isBinary);
      } catch (error) {
        reject(error);
      }
    });
    socket.on('error', reject);
    socket.on('close', (code) => reject(new Error(`closed with ${code}`)));
  });
  console.log(JSON.stringify({ binaries }));
  socket.terminate();
}

async function refused(url, status, body) {
  const socket = new WebSocket(url);
  const [, response] = await Promise.race([
    once(socket, 'unexpected-response'),
    once(socket, 'open').then(() => assert.fail('the handshake was accepted')),
  ]);
  const chunks = await response.toArray();
  assert.equal(response.statusCode, Number(status), 'status');
  if (body !== undefined) assert.equal(Buffer.concat(chunks).toString(), body, 'body');
}

async function many(url, count, prefix) {
  const rooms = Array.from({ length: Number(count) }, (_, index) => `${prefix}${index}`);
  const greeted = await Promise.all(rooms.map(async (room) => {
    const target = new URL(url);
    target.searchParams.set('room', room);
    const socket = new WebSocket(target);
    const [first] = await once(socket, 'message');
    return { room, socket, first: first.toString() };
  }));
  console.log(JSON.stringify(Object.fromEntries(greeted.map(({ room, first }) => [room, first]))));
  await Promise.all(greeted.map(({ socket }) => closeNormally(socket)));
}

// Opens a connection; `tcp` is its socket, `agreed` the extensions with their parameters.
async function open(url, options = {}, protocols = []) {
  const socket = new WebSocket(url, protocols, options);
  socket.on('upgrade', (response) => {
    socket.tcp = response.socket;
    socket.agreed = response.headers['sec-websocket-extensions'] ?? '';
  });
  await once(socket, 'open');
  return socket;
}

async function answer(socket, send) {
  const message = once(socket, 'message');
  const closed = new AbortController();
  const early = once(socket, 'close', { signal: closed.signal }).then(
    ([code, reason]) => assert.fail(`closed with ${code} ${reason} before an answer came`),
    () => {},
  );
  send();
  try {
    return await Promise.race([message, early.then(() => message)]);
  } finally {
    closed.abort();
  }
}

async function closeNormally(socket) {
  const closed = once(socket, 'close');
  socket.close(1000, 'done');
  assert.equal((await closed)[0], 1000, 'code of the answer to our normal Close');
}

const [name, url, ...rest] = process.argv.slice(2);
if (!Object.hasOwn(commands, name ?? '') || url === undefined) {
  console.error('usage: ws_client.mjs COMMAND URL [ARGUMENT..]; the file lists the commands');
  process.exit(2);
}
setTimeout(() => {
  console.error(`${name}: not done after ${DEADLINE_MS} ms`);
  process.exit(1);
}, DEADLINE_MS).unref();
try {
  await commands[name](url, ...rest);
  process.exit(0);
} catch (error) {
  console.error(`${name}: ${error.stack}`);
  process.exit(1);
}
