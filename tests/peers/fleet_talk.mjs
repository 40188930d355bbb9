// What the backend in fleet_backend.mjs says, known to the clients in fleet_clients.mjs as well.

/** A client confirms so many messages at a time. */
export const ACK_EVERY = 8;

const TEXT = Buffer.from('what a backend says may be long or short, and much of it was said before; '.repeat(64));

/** Message N. */
export function told(number) {
  const start = Buffer.from(`backend ${number} `);
  return {
    payload: Buffer.concat([start, TEXT.subarray(number % 64, (number * 397) % TEXT.length)]),
    binary: number % 4 === 3,
    compress: number % 3 !== 0,
    fragments: 1 + (number % 5),
  };
}
