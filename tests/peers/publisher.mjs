// Publishes with the npm package `redis`, as a Node backend would.
//
//     node publisher.mjs REDIS_URL ROOMS MESSAGES PAUSE_MS
//
// MESSAGES rounds of one message to each of the rooms `room-0` and so on, with a pause between rounds.
// Prints how many proxies had the messages, each number once.

import { createRequire } from 'node:module';
import { setTimeout as pause } from 'node:timers/promises';

// Where the package is installed.
const { createClient } = createRequire(new URL('../../backend-demo/node/', import.meta.url))('redis');

const [url, rooms, messages, pauseMs] = process.argv.slice(2);
const redis = await createClient({ url }).connect();
const reached = new Set();
for (let n = 0; n < Number(messages); n += 1) {
  const text = JSON.stringify({ by: 'node', n });
  const round = Array.from({ length: Number(rooms) }, (_, room) =>
    redis.publish(`steadfast:to:room:room-${room}`, JSON.stringify({ text })));
  for (const proxies of await Promise.all(round)) reached.add(proxies);
  await pause(Number(pauseMs));
}
console.log(JSON.stringify([...reached]));
await redis.close();
