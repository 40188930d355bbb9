// Publishes with the npm package `redis`, as a Node backend would.
//
//     node publisher.mjs REDIS_URL[,REDIS_URL..] ROOMS MESSAGES PAUSE_MS
//
// MESSAGES rounds of one message to each of the rooms `room-0` and so on, with a pause between rounds.
// Several URLs are those of members of a Cluster. Prints how many proxies had the messages, each number
// once.

import { createRequire } from 'node:module';
import { setTimeout as pause } from 'node:timers/promises';

// Where the package is installed.
const { createClient, createCluster } = createRequire(new URL('../../backend-demo/node/', import.meta.url))('redis');

const [url, rooms, messages, pauseMs] = process.argv.slice(2);
const urls = url.split(',');
const isCluster = urls.length > 1;
const redis = isCluster ? createCluster({ rootNodes: urls.map((url) => ({ url })) }) : createClient({ url });
await redis.connect();
const publish = (channel, message) =>
  isCluster ? redis.sPublish(channel, message) : redis.publish(channel, message);
const reached = new Set();
for (let n = 0; n < Number(messages); n += 1) {
  const text = JSON.stringify({ by: 'node', n });
  const round = Array.from({ length: Number(rooms) }, (_, room) =>
    publish(`steadfast:to:room:room-${room}`, JSON.stringify({ text })));
  for (const proxies of await Promise.all(round)) reached.add(proxies);
  await pause(Number(pauseMs));
}
console.log(JSON.stringify([...reached]));
await redis.close();
